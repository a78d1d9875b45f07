"""Padding modes: widths, layouts, dtypes, errors, and Conv2d(padding_mode=...)."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, gradients, on_a_cpu, raises_like, randn
from trinn.layers.pad2d import pad2d

MODES = ("reflect", "replicate", "circular")
CASES = {
    "a different width at each edge": ((2, 3, 5, 6), (1, 2, 3, 4)),
    "largest widths": ((1, 2, 4, 3), (2, 2, 3, 3)),
    "one edge": ((1, 2, 4, 3), (0, 2, 0, 0)),
    "unbatched": ((3, 4, 5), (1, 1, 2, 2)),
    "nothing to pad": ((1, 2, 4, 3), (0, 0, 0, 0)),
    "cropped on one side, padded on the other": ((1, 2, 5, 6), (-1, 3, 2, -2)),
    "cropped on all sides": ((1, 2, 5, 6), (-1, -2, -1, -1)),
    "cropped to nothing": ((1, 2, 4, 3), (-2, -1, 1, 1)),
    "empty batch": ((0, 3, 4, 5), (1, 1, 2, 2)),
}


def torchs(mode: str) -> Callable[..., torch.Tensor]:
    """F.pad. Reflect and replicate run on the CPU: on a GPU, torch uses atomics or, for replicate, a decomposition."""
    return F.pad if mode == "circular" else on_a_cpu(F.pad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: tuple[tuple[int, ...], tuple[int, int, int, int]], mode: str) -> None:
    check(pad2d, torchs(mode), randn(*case[0]), pad=case[1], mode=mode)


def test_one_pixel() -> None:
    """Replication copies one pixel to every position. Circular padding wraps around at most once."""
    check(pad2d, torchs("replicate"), randn(2, 3, 1, 1), pad=(1, 2, 3, 4), mode="replicate")
    check(pad2d, torchs("replicate"), randn(2, 3, 1, 1), pad=(-1, 2, 3, -4), mode="replicate")
    check(pad2d, torchs("circular"), randn(2, 3, 1, 1), pad=(1, 1, 1, 0), mode="circular")
    check(pad2d, torchs("reflect"), randn(2, 3, 2, 1), pad=(0, 0, 1, 1), mode="reflect")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, mode: str) -> None:
    check(pad2d, torchs(mode), randn(2, 3, 4, 5, dtype=dtype), pad=(1, 2, 3, 2), mode=mode)


def test_integers() -> None:
    x = torch.arange(24, device=DEVICE).view(1, 2, 3, 4)
    for dtype in (torch.int64, torch.uint8):
        check(pad2d, torchs("reflect"), x.to(dtype), pad=(1, 2, 2, 1), mode="reflect")


LAYOUTS = {
    "channels_last": lambda: randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "channels_last, unbatched": lambda: randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)[1],
    "transposed, every second row": lambda: randn(2, 3, 5, 8).transpose(2, 3)[:, :, ::2],
    "expanded": lambda: randn(1, 3, 4, 5).expand(2, 3, 4, 5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_layouts(layout: Any, mode: str) -> None:
    check(pad2d, torchs(mode), layout(), pad=(1, 2, 3, 2), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_gathers_every_copy(mode: str) -> None:
    """Every pair of widths. The gradient of ones counts the copies of each pixel."""
    for size in (1, 2, 3):
        most = {"reflect": size - 1, "circular": size, "replicate": 3}[mode]
        for near, far in product(range(-1, most + 1), repeat=2):
            if size + near + far > 0 and (mode != "circular" or max(near, far) <= size + min(near, far, 0)):
                options = {"pad": (0, 0, near, far), "mode": mode}
                got, expected = (gradients(f, randn(1, 1, size, 2), **options) for f in (pad2d, torchs(mode)))
                assert torch.equal(got[0], expected[0]), (size, near, far)


IMAGE, ONES = (1, 2, 4, 5), (1, 1, 1, 1)
ERRORS: dict[str, tuple[tuple[int, ...], tuple[Any, ...], str]] = {
    "reflection as wide as the image": (IMAGE, (5, 1, 1, 1), "reflect"),
    "reflection as high as the image": (IMAGE, (1, 1, 1, 4), "reflect"),
    "wrapping more than once": (IMAGE, (1, 1, 5, 1), "circular"),
    "reflecting more than is left after cropping": (IMAGE, (-1, 5, 1, 1), "reflect"),
    "cropping more than the image": (IMAGE, (-3, -3, 1, 1), "replicate"),
    "wrapping an image cropped to nothing": (IMAGE, (-5, -1, 1, 1), "circular"),
    "no rows": ((1, 2, 0, 5), ONES, "replicate"),
    "no rows to wrap": ((1, 2, 0, 5), ONES, "circular"),
    "no channels": ((1, 0, 4, 5), ONES, "reflect"),
    "two axes": ((4, 5), ONES, "reflect"),
    "five axes": ((1, 1, 2, 4, 5), ONES, "circular"),
    "one axis to pad": (IMAGE, (1, 1), "replicate"),
    "three widths": (IMAGE, (1, 1, 1), "replicate"),
    "widths of floats": (IMAGE, (1.0, 1.0, 1.0, 1.0), "reflect"),
    "another mode": (IMAGE, ONES, "mirror"),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[Any, ...]) -> None:
    raises_like(F.pad, pad2d, randn(*case[0]), *case[1:])


def test_bool() -> None:
    raises_like(F.pad, pad2d, randn(*IMAGE) > 0, ONES, "reflect")


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "padding for each axis": ((2, 3, 5, 6), {"padding": (2, 1), "stride": 2}),
    "same, even kernel: one more row at the far edge": ((2, 3, 5, 6), {"padding": "same"}),
    "same, dilated": ((2, 3, 7, 6), {"padding": "same", "dilation": (1, 2)}),
    "valid": ((2, 3, 5, 6), {"padding": "valid"}),
    "unbatched": ((3, 5, 6), {"padding": 1}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", named(CONVOLUTIONS))
def test_conv2d_padding_modes(case: tuple[tuple[int, ...], dict[str, Any]], mode: str) -> None:
    """Conv2d(padding_mode=...) equals torch's: outputs, and the gradients of input, weight and bias."""
    ours, torchs = (nn.Conv2d(3, 4, (4, 3), padding_mode=mode, **case[1]) for nn in (tnn, torch.nn))
    assert repr(ours) == repr(torchs)
    tensors = randn(*case[0]), randn(4, 3, 4, 3, seed=1), randn(4, seed=2)
    check(ours._conv_forward, torchs._conv_forward, *tensors)


def test_conv2d_pads_without_torch() -> None:
    """The padding calls no operator of torch, forward or backward."""
    conv = tnn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect").to(DEVICE)
    with SeenOperators() as operators:
        conv(randn(2, 3, 5, 6).requires_grad_()).sum().backward()
    assert {"trinn::pad2d_forward", "trinn::pad2d_backward"} <= operators.names
    assert not any("pad" in name for name in operators.names if not name.startswith("trinn::"))


class SeenOperators(TorchDispatchMode):
    """Records the names of the operators called in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **kwargs or {})
