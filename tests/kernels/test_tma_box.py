"""TMA descriptors end with their tensors and obey TMA's rules. TMA is Hopper's copy engine.

Other tests would miss a read outside of a tensor: TMA does not trap, and zeros in the filters hide most of the values. A TMA
box is the block of a tensor moved by one TMA copy.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.operators import test_conv2d_tma, test_few_channels
from tests.support.cases import Conv, named
from tests.support.check import DEVICE
from tests.support.tma import tma_everywhere
from trinn.kernels import launchers
from trinn.kernels.conv2d import tma
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings

CASES = test_conv2d_tma.CASES | test_few_channels.CASES
ARITHMETIC = test_conv2d_tma.ARITHMETIC
LAST = torch.channels_last
MAX_BOX = 256  # elements of a TMA box along an axis
# Memory layouts of images, in storage that ends with them.
LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "contiguous": lambda shape, dtype: new(shape, dtype),
    "channels_last": lambda shape, dtype: new(shape, dtype).contiguous(memory_format=LAST),
    "the last channels of a larger tensor": lambda shape, dtype: wider(shape, dtype, (0, 8, 0, 0), LAST),
    "the last columns of a larger tensor": lambda shape, dtype: wider(shape, dtype, (0, 0, 0, 2), LAST),
    "the last rows of a larger tensor": lambda shape, dtype: wider(shape, dtype, (0, 0, 3, 0), torch.contiguous_format),
    "every second image": lambda shape, dtype: wider(shape, dtype, (shape[0] - 1, 0, 0, 0), LAST, 2),
    "from an odd address": lambda shape, dtype: new((math.prod(shape) + 1,), dtype)[1:].view(shape),
    "channels from an odd address": lambda shape, dtype: more_channels(shape, dtype)[:, 1 : shape[1] + 1],
    "images innermost": lambda shape, dtype: new((*shape[1:], shape[0]), dtype).permute(3, 0, 1, 2),
    "one image for all": lambda shape, dtype: new((1, *shape[1:]), dtype).contiguous(memory_format=LAST).expand(shape),
}


def new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def wider(
    shape: tuple[int, ...], dtype: torch.dtype, more: tuple[int, ...], order: torch.memory_format, step: int = 1
) -> Tensor:
    """The last images, channels, rows and columns of a tensor larger by `more`; with `step`, every `step`-th image instead."""
    whole = new(tuple(n + m for n, m in zip(shape, more, strict=True)), dtype).contiguous(memory_format=order)
    images, *rest = (slice(-n, None) for n in shape)
    return whole[(slice(None, None, step) if step > 1 else images, *rest)]


def more_channels(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return new((shape[0], shape[1] + 8, *shape[2:]), dtype).contiguous(memory_format=LAST)


@pytest.fixture(autouse=True)
def tma_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TMA for every convolution, with as many splits as for a large GPU."""
    monkeypatch.setattr(settings, "wanted_programs", 264)
    with tma_everywhere():
        yield


def described(case: Conv, dtype: torch.dtype, layout: str) -> list[TensorDescriptor]:
    """The descriptors of all three passes on a Hopper GPU; no kernel runs."""
    found: list[TensorDescriptor] = []

    def observe(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        found.extend(arg for arg in args if isinstance(arg, TensorDescriptor))

    w = new(case.w, dtype)
    x = LAYOUTS[layout](case.x if len(case.x) == 4 else (1, *case.x), dtype)
    groups = case.options.get("groups", 1)
    stride, dilation = (pair(case.options.get(name, 1)) for name in ("stride", "dilation"))
    padding = case.options.get("padding", 0)
    reach = [d * (taps - 1) for d, taps in zip(dilation, w.shape[2:], strict=True)]
    near, far = ([n // 2 for n in reach], [n - n // 2 for n in reach]) if padding == "same" else (pair(padding), pair(padding))
    size = [(n + a + b - r - 1) // s + 1 for n, a, b, r, s in zip(x.shape[2:], near, far, reach, stride, strict=True)]
    dy = LAYOUTS[layout]((x.shape[0], w.shape[0], *size), dtype)
    with intercepted(observe, "sm_90"):
        launchers.conv2d_fprop(x, w, None, size, stride, near, dilation, groups)
        launchers.conv2d_dgrad(dy, w, None, x.shape[2:], stride, near, dilation, groups)
        launchers.conv2d_wgrad(x, dy, w.shape[2:], stride, near, dilation, groups)
    return found


def pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def reach_of(shape: Any, strides: Any) -> int:
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def check_descriptor(descriptor: TensorDescriptor) -> None:
    """Assert that a descriptor ends with its tensor, inside the storage, and is valid for cuTensorMapEncodeTiled."""
    base, shape, strides, block = descriptor.base, descriptor.shape, descriptor.strides, descriptor.block_shape
    size = base.element_size()
    assert reach_of(shape, strides) == reach_of(base.shape, base.stride()), "the descriptor and its tensor have different ends"
    assert (base.storage_offset() + reach_of(shape, strides) + 1) * size <= base.untyped_storage().nbytes()
    assert 1 <= len(shape) == len(strides) == len(block) <= 5
    assert base.data_ptr() % 16 == 0 and strides[-1] == 1
    assert all(0 < stride * size < 2**40 and stride * size % 16 == 0 for stride in strides[:-1])
    assert all(0 < n < 2**31 for n in shape) and all(0 < n <= MAX_BOX for n in block)
    assert block[-1] * size % 16 == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", named(CASES))
def test_descriptors_end_with_their_tensors(case: Conv, layout: str) -> None:
    for dtype, torch.backends.cudnn.conv.fp32_precision in ARITHMETIC.values():
        found = described(case, dtype, layout)
        assert found or dtype == torch.float32, "no TMA kernel is launched"
        for descriptor in found:
            check_descriptor(descriptor)


def drawn(draw: random.Random) -> Conv:
    """Any geometry, with typical numbers of channels."""
    groups = draw.choice((1, 1, 1, 2, 3, 32))
    channels, filters = (draw.choice((4, 8, 16)) if groups == 32 else draw.choice((3, 16, 24, 40, 64, 128)) for _ in range(2))
    height, width, padding = draw.randint(1, 12), draw.randint(1, 70), (draw.randint(0, 4), draw.randint(0, 4))
    stride, dilation = ((draw.randint(1, 4), draw.randint(1, 4)) for _ in range(2))
    room = height + 2 * padding[0], width + 2 * padding[1]
    taps = [min(draw.randint(1, 7), (n - 1) // d + 1) for n, d in zip(room, dilation, strict=True)]
    x = draw.choice((1, 2, 17, 64)), groups * channels, height, width
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Conv(x, (groups * filters, channels, taps[0], taps[1]), options)


@pytest.mark.parametrize("start", range(8))
def test_of_any_geometry(start: int) -> None:
    """The descriptors of random convolutions."""
    draw = random.Random(start)
    count = 0
    for _ in range(25):
        case, layout, arithmetic = drawn(draw), draw.choice(list(LAYOUTS)), draw.choice(list(ARITHMETIC))
        dtype, torch.backends.cudnn.conv.fp32_precision = ARITHMETIC[arithmetic]
        for descriptor in (found := described(case, dtype, layout)):
            try:
                check_descriptor(descriptor)
            except AssertionError as error:
                raise AssertionError(f"{case}, {layout}, {arithmetic}: {descriptor}") from error
        count += bool(found)
    assert count > 10


def plan(x: Tensor, stride: int, size: tuple[int, int], taps: int = 1) -> tma.TmaGather:
    """The plan of a convolution without padding on a Hopper GPU."""
    weight, shape = x.new_empty(64, 64, taps, taps), (x.shape[0], 64, *size)
    with intercepted(lambda *_: None, "sm_90"):
        found = tma.plan_tma_gather(x, weight, shape, True, (stride, stride), (0, 0), (1, 1), 1, False)
    assert found
    return found


def test_coordinates_are_int32() -> None:
    """All pixels form one row only if their number, plus a TMA box, fits in int32."""
    for images, in_a_row in ((2**17 - 2**7, True), (2**17 - 1, False), (2**19, False)):
        x = torch.empty(images, 64, 128, 128, dtype=torch.float16, device="meta").to(memory_format=LAST)
        of = plan(x, 1, (128, 128))
        assert (of.size[2] == images * 2**14) == in_a_row
        assert max(of.size) + MAX_BOX < 2**31


def test_columns_with_a_large_stride() -> None:
    """A merged pair of columns would not fit in int32, so the image is copied."""
    found: list[TensorDescriptor] = []
    x = torch.empty_strided((32, 64, 2, 4), (2**34, 1, 2**33, 2**31), dtype=torch.float16, device="meta")

    def observe(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        found.extend(arg for arg in args if isinstance(arg, TensorDescriptor))

    with intercepted(observe, "sm_90"):
        launchers.conv2d_fprop(x, x.new_empty(64, 64, 2, 2), None, (1, 2), (2, 2), (0, 0), (1, 1), 1)
    assert found
    for descriptor in found:
        assert all(0 < n < 2**31 for n in descriptor.shape)
