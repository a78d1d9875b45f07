"""Pooling, resizing and padding with the tiles of a GPU (kernels/device/columns.py), in the interpreter.

Each program has one split of the rows, and the last split is shorter.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from tests.support.check import check, randn
from trinn.kernels.device import columns
from trinn.kernels.device.indexing import Axis
from trinn.layers.pad2d import pad2d

Call = Callable[..., Tensor]
NARROW, WIDE = (2, 3, 20, 17), (2, 16, 20, 17)


def _both(name: str, **options: Any) -> tuple[Call, Call]:
    return (lambda x: getattr(tnn, name)(x, **options)), (lambda x: getattr(F, name)(x, **options))


CALLS: dict[str, tuple[Call, Call]] = {
    "max_pool2d": _both("max_pool2d", kernel_size=3, stride=2, padding=1),
    "max_pool2d, overlapping": _both("max_pool2d", kernel_size=3, stride=1, padding=1),
    "max_pool2d, adjacent": _both("max_pool2d", kernel_size=2, ceil_mode=True),
    "max_pool2d, gaps": _both("max_pool2d", kernel_size=2, stride=3),
    "max_pool2d, dilated": _both("max_pool2d", kernel_size=3, stride=2, dilation=2),
    "max_pool2d, many taps": _both("max_pool2d", kernel_size=(7, 5), stride=(1, 2), padding=(3, 2)),
    "avg_pool2d": _both("avg_pool2d", kernel_size=3, stride=2, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": _both("adaptive_avg_pool2d", output_size=(13, 5)),
    "adaptive_max_pool2d": _both("adaptive_max_pool2d", output_size=(13, 5)),
    "bilinear": _both("interpolate", scale_factor=2, mode="bilinear"),
    "bilinear, smaller": _both("interpolate", size=(13, 5), mode="bilinear", align_corners=True),
    "bilinear, much larger": _both("interpolate", size=(90, 80), mode="bilinear"),
    "antialias": _both("interpolate", size=(13, 5), mode="bilinear", antialias=True),
    "nearest": _both("interpolate", size=(31, 40)),
    "pad2d": ((lambda x: pad2d(x, (2, 1, 3, 2), "reflect")), (lambda x: F.pad(x, (2, 1, 3, 2), "reflect"))),
}  # fmt: skip


@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=["few channels", "channels"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) if n in ("max_pool2d, many taps", "bilinear, much larger") else n for n in CALLS],
)
def test_tiles_of_a_gpu(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "architecture_of", lambda device: "sm_90")
    ours, torchs = CALLS[name]
    check(ours, torchs, randn(*shape))
    check(ours, torchs, randn(*shape).to(memory_format=torch.channels_last))


def test_last_split_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition of test_tiles_of_a_gpu: splits of several rows, and fewer rows in the last one."""
    monkeypatch.setattr(columns, "architecture_of", lambda device: "sm_90")
    _, _, splits, _, _, rows_per_split = columns.plan_columns(torch.empty(NARROW), ()).grid
    assert splits > 1 and 1 < rows_per_split and splits * rows_per_split > NARROW[2]


@pytest.mark.parametrize(
    ("axis", "size", "inside"),
    [
        (Axis(3, 2, 1, 1), 112, (1, 3)),
        (Axis(3, 2, 1, 1), 113, (1, 2)),
        (Axis(3, 2, 0, 1), 55, (0, 3)),
        (Axis(3, 1, 1, 1), 1, (1, 2)),
        (Axis(3, 1, 2, 2), 9, (1, 2)),
        (Axis(5, 1, 4, 1), 1, (4, 4)),
    ],
)
def test_taps_always_inside(axis: Axis, size: int, inside: tuple[int, int]) -> None:
    windows = (size + 2 * axis.padding - axis.dilation * (axis.taps - 1) - 1) // axis.stride + 1
    taps = columns.taps_always_inside(axis, size, windows)
    assert taps == inside
    for tap in range(*taps):
        pixels = [window * axis.stride - axis.padding + tap * axis.dilation for window in range(windows)]
        assert 0 <= min(pixels) and max(pixels) < size
