"""First layers: the TMA kernels convolve images of few channels through a window copy, in which each window is contiguous."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from tests.support.cases import Conv, named
from tests.support.check import DEVICE, check, randn
from tests.support.tma import check_fused, operands
from trinn.kernels import launchers
from trinn.kernels.conv2d import few_channels, tma, tma_wgrad
from trinn.kernels.conv2d.few_channels import WindowCopy, copy_filters, copy_image, plan_window_copy, window_view
from trinn.kernels.conv2d.tma_box import Box, GatherAxis, best_box
from trinn.kernels.device.indexing import Axis
from trinn.kernels.runtime import launch, tuning
from trinn.kernels.runtime.hardware import architecture_of
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

HOPPER = INTERPRETED or architecture_of(torch.device(DEVICE)) == "sm_90"
pytestmark = pytest.mark.skipif(not HOPPER, reason="this GPU has no TMA")

LAST = torch.channels_last
ARITHMETIC = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
CASES = {
    "3 channels, 7x7, stride 2": Conv((2, 3, 15, 20), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "3 channels, 11x11, stride 4, ends before the edge": Conv((2, 3, 17, 33), (8, 3, 11, 11), {"stride": 4, "padding": 2}),
    "3 channels, 3x3": Conv((2, 3, 5, 8), (8, 3, 3, 3), {"padding": 1}),
    "4 channels, 5x5": Conv((2, 4, 6, 7), (8, 4, 5, 5), {"padding": 2}),
    "1 channel, 7x7, stride 2": Conv((2, 1, 11, 14), (8, 1, 7, 7), {"stride": 2, "padding": 3}),
    "1 channel, 3x3": Conv((2, 1, 4, 7), (8, 1, 3, 3)),
    "5 channels, stride 3": Conv((2, 5, 9, 19), (8, 5, 4, 5), {"stride": 3, "padding": (1, 2)}),
    "stride along the rows": Conv((2, 3, 7, 8), (8, 3, 3, 3), {"stride": (2, 1), "padding": 1}),
    "stride along the columns": Conv((2, 3, 4, 21), (8, 3, 3, 2), {"stride": (1, 4), "padding": (0, 1)}),
    "stride larger than the kernel": Conv((2, 3, 9, 25), (8, 3, 2, 2), {"stride": 4}),
    "dilation along the columns of taps": Conv((2, 3, 9, 12), (8, 3, 3, 3), {"stride": 2, "padding": 2, "dilation": (2, 1)}),
    "padding wider than the kernel": Conv((2, 2, 3, 4), (8, 2, 2, 3), {"padding": (4, 5), "stride": 2}),
    "same, even kernel: one more column at the far edge": Conv((2, 3, 5, 7), (8, 3, 2, 4), {"padding": "same"}),
    "a column of taps": Conv((2, 3, 6, 11), (8, 3, 5, 1), {"stride": 2, "padding": (2, 0)}),
    "a row of taps": Conv((2, 3, 3, 9), (8, 3, 1, 5), {"padding": (0, 2)}),
    "runs of images": Conv((19, 3, 5, 6), (24, 3, 5, 3), {"stride": 2, "padding": 1}),
    "unbatched, no bias": Conv((3, 5, 8), (8, 3, 3, 3), bias=False),
}


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Use window copies wherever possible, and large tiles in other kernels. Yield the names of launched kernels."""
    monkeypatch.setattr(settings, "interpreted_block", 4096)
    names: list[str] = []

    def recorded(kernel: Any, *args: Any, **options: Any) -> None:
        names.append(kernel.__name__)
        launch.launch(kernel, *args, **options)

    monkeypatch.setattr(tma, "launch", recorded)
    monkeypatch.setattr(tma_wgrad, "launch", recorded)
    monkeypatch.setattr(few_channels, "launch", recorded)
    monkeypatch.setattr(settings, "interpret_tma", True)
    monkeypatch.setattr(tma, "MIN_CHANNELS", 8)
    monkeypatch.setattr(few_channels, "LAUNCH_COST", -(2**40))  # the cost of a window copy is negative: it always pays
    yield names


def in_tf32(case: Conv, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """`operands`, after allowing TF32 in convolutions."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    return operands(case, dtype, layout)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, arithmetic: str, started: list[str]) -> None:
    """fprop copies the image and the filters, wgrad copies the image again, and dgrad uses the pointer kernel."""
    check(tnn.conv2d, F.conv2d, *in_tf32(CASES[name], ARITHMETIC[arithmetic], "channels_last"), **CASES[name].options)
    wgrads = started.count("_conv2d_wgrad_tma_kernel")
    assert started.count("_conv2d_gather_tma_kernel") == 1 and started.count("_few_channels_copy_kernel") == 2 + wgrads
    if INTERPRETED:  # most rows here are shorter than the runs of a GPU's tile
        assert wgrads == int(arithmetic != "tf32" or name == "runs of images")  # TF32 has runs of images only


@pytest.mark.parametrize("name", ["3 channels, 7x7, stride 2", "3 channels, 3x3", "runs of images"])
def test_contiguous(name: str, started: list[str]) -> None:
    check(tnn.conv2d, F.conv2d, *in_tf32(CASES[name], torch.bfloat16, "contiguous"), **CASES[name].options)
    assert started.count("_few_channels_copy_kernel") == 3


def test_views(started: list[str]) -> None:
    """Any strides and addresses: slices of channels, rows, columns and images, expanded images, columns outermost."""
    w = randn(8, 3, 3, 3, dtype=torch.bfloat16, seed=1)
    large = randn(4, 8, 6, 9, dtype=torch.bfloat16)
    for x in (large[:, 1:4], large[::2, 5:, 1::2], large[:1, :3].expand(3, 3, 6, 9), large[:, :3].mT, large[:, :3, :, 1::2]):
        check(tnn.conv2d, F.conv2d, x, w, None, padding=1)
    assert started.count("_conv2d_gather_tma_kernel") == 5


@pytest.mark.parametrize("case", ["3 channels, 7x7, stride 2", "runs of images"])
def test_tiles_of_a_gpu(case: str, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 and 64 that exceed the depth; copies with several tiles along each axis."""
    monkeypatch.setattr(settings, "tile_of", lambda *_: tuning.GemmTile(64, 64, 64, 4, 3))
    monkeypatch.setattr(settings, "interpreted_block", 8)
    check(tnn.conv2d, F.conv2d, *in_tf32(CASES[case], torch.float16, "channels_last"), **CASES[case].options)
    assert "_conv2d_gather_tma_kernel" in started


@pytest.mark.parametrize("case", ["3 channels, 7x7, stride 2", "3 channels, 3x3"])
def test_fused(case: str, started: list[str]) -> None:
    """A scale, a shift, ReLU and statistics in the epilogue."""
    check_fused(*in_tf32(CASES[case], torch.bfloat16, "channels_last"), CASES[case].options, started)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("arithmetic", ["bf16", "tf32"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite(value: float, arithmetic: str) -> None:
    """An infinity or NaN changes only the outputs that read it: padding zeros are never multiplied by it."""
    for operand, position in (0, (1, 2, 4, 5)), (0, (0, 0, 0, 0)), (0, (0, 1, 8, 11)), (1, (2, 1, 0, 2)), (1, (7, 2, 2, 2)):
        x, w, _ = in_tf32(Conv((2, 3, 9, 12), (8, 3, 3, 3)), ARITHMETIC[arithmetic], "channels_last")
        (x, w)[operand][position] = value
        y, expected = tnn.conv2d(x, w, stride=2), F.conv2d(x.double().cpu(), w.double().cpu(), stride=2)
        assert torch.equal(y.isnan().cpu(), expected.isnan()) and torch.equal(y.isinf().cpu(), expected.isinf())
        assert torch.equal(y[y.isinf()].double().cpu(), expected[expected.isinf()])


def test_same_bits() -> None:
    x, _, _ = in_tf32(CASES["runs of images"], torch.float32, "contiguous")
    dy = randn(19, 24, 2, 3, seed=3)
    args = (5, 3), (2, 2), (1, 1), (1, 1), 1
    assert torch.equal(launchers.conv2d_wgrad(x, dy, *args), launchers.conv2d_wgrad(x, dy, *args))


@pytest.mark.parametrize(
    "case",
    [
        Conv((2, 3, 5, 5), (16, 3, 3, 3), {"dilation": (1, 2)}),  # the pixels of a window are not contiguous
        Conv((2, 3, 5, 5), (6, 3, 3, 3)),  # few filters
        Conv((2, 4, 5, 5), (16, 2, 3, 3), {"groups": 2}),
        Conv((2, 3, 5, 5), (16, 3, 1, 1)),  # windows of one pixel
    ],
)
def test_pointer_kernel_instead(case: Conv, started: list[str]) -> None:
    check(tnn.conv2d, F.conv2d, *in_tf32(case, torch.bfloat16, "channels_last"), **case.options)
    assert not started


def test_pointer_kernel_for_float32(started: list[str]) -> None:
    x, w, b = in_tf32(CASES["3 channels, 3x3"], torch.float32, "channels_last")
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    check(tnn.conv2d, F.conv2d, x, w, b, padding=1)
    assert not started


def test_where_a_copy_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Window copies pay for the first layers of large networks, but not if they are mostly padding or the work is little."""
    monkeypatch.setattr(few_channels, "LAUNCH_COST", 2**23)

    def pays(images: int, channels: int, taps: int, stride: int, unit: int = 8, filters: int = 64) -> bool:
        x, size = torch.empty(images, channels, 224, 224, device="meta"), [(224 - taps) // stride + 1] * 2
        return plan_window_copy(x, (filters, channels, taps, taps), size, (stride, stride), (0, 0), (1, 1), unit) is not None

    assert pays(64, 3, 7, 2) and pays(128, 3, 11, 4) and pays(64, 3, 3, 1) and pays(64, 3, 3, 2)
    assert pays(64, 4, 7, 2, unit=4) and pays(64, 3, 16, 16, filters=768)
    assert not (pays(64, 1, 3, 1) or pays(64, 1, 5, 1) or pays(64, 3, 1, 1) or pays(1, 3, 7, 2))


def test_blocks_and_boxes() -> None:
    """Blocks have 64 bytes or more and little padding. TMA boxes have adjacent columns if this wastes little."""
    for depth, block in ((28, 32), (44, 64), (12, 16), (72, 32), (64, 64), (8, 16)):
        assert WindowCopy(1, 1, 1, 0, depth, 1, 1).block(64) == block
    assert WindowCopy(4, 1, 1, 0, 11, 4, 1).block(32) == 16 and WindowCopy(4, 1, 1, 0, 7, 2, 1).block(16) == 16
    rows, columns = GatherAxis(55, 224, Axis(11, 4, 2, 1), False, one=True), GatherAxis(55, 55, Axis(1, 1, 0, 1), False)
    assert best_box(128, 128, rows, columns) == Box(128, 1, 1)
    assert best_box(128, 128, rows, columns, slack=0.1) == Box(16, 1, 8)


WINDOW_COPIES = {
    "3 channels in 4": (3, WindowCopy(4, 5, 14, 3, 7, 2, 4)),
    "3 channels in 8, no zeros at the near edge": (3, WindowCopy(8, 6, 9, 0, 3, 1, 7)),
    "1 channel in 2, rows truncated": (1, WindowCopy(2, 3, 16, 2, 4, 4, 4)),
    "all columns are zeros": (2, WindowCopy(8, 6, 4, 9, 2, 1, 3)),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=LAST),
    "every other column of the transposed": lambda x: x.repeat_interleave(2, 2).mT.contiguous().mT[:, :, ::2],
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
@pytest.mark.parametrize("case", named(WINDOW_COPIES))
def test_copies(case: tuple[int, WindowCopy], layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Window copies equal torch's pad and unfold bit by bit, in one tile and in several; unwritten memory is NaN."""
    channels, (pitch, rows, columns, near, taps, stride, count) = case[0], case[1]
    for block in (16384, 2):
        monkeypatch.setattr(settings, "interpreted_block", block)
        for dtype in (torch.bfloat16, torch.float32):
            x = layout(randn(3, channels, 6, 8, dtype=dtype))
            copy = copy_image(x, case[1])
            expected = F.pad(x, (near, columns, 0, 0, 0, pitch - channels))[:, :, :rows, :columns]
            assert torch.equal(copy, expected) and copy.is_contiguous(memory_format=LAST)
            windows = expected.unfold(3, taps, stride)[:, :, :, :count].permute(0, 4, 1, 2, 3)
            assert torch.equal(window_view(copy, case[1]), windows.flatten(1, 2))
            w = layout(randn(5, channels, 2, taps, dtype=dtype))
            for block in (16, 64):
                depth = math.ceil(taps * pitch / block) * block
                expected = F.pad(w, (0, depth // pitch - taps, 0, 0, 0, pitch - channels)).permute(0, 3, 1, 2)
                assert torch.equal(copy_filters(w, case[1], block), expected.reshape(5, depth, 2, 1))
