"""Operators on tensors past 2^31 elements, in memory mapped without reserve: only written pages take up memory.

A program for test_large_tensors.py: a wrong offset may crash the process, so the program prints each check before it runs.
Offsets are as wide as on a GPU: int32 for small tensors. The interpreter detects every overflow.
"""

import functools
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.every import EVERY, Every, results
from tests.support.tma import tma_everywhere
from trinn.kernels import ops
from trinn.kernels.runtime.settings import settings

import triton.runtime.interpreter as interpreter  # isort: skip  # trinn selects it, so trinn is imported before Triton

NO_RESERVE = 0x4000  # MAP_NORESERVE: untouched memory is not reserved. The mmap module has the name since Python 3.13.
PAST_INT32 = 2**31 + 2**20


def zeros(elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros without physical memory until they are written."""
    size = max(elements, 1) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=dtype, count=elements)


def spread(tensor: Tensor, axis: int) -> Tensor:
    """The same values with a stride along `axis` that puts the last element past int32."""
    strides = list(tensor.contiguous().stride())
    if tensor.shape[axis] > 1:
        strides[axis] = max(PAST_INT32 // (tensor.shape[axis] - 1), tensor.numel()) + 1
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    return zeros(reach + 1, tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor.detach())


def check_far_apart(name: str, case: Every) -> None:
    """Check outputs, gradients and second gradients with all tensors past int32, along their first or last axis.

    The oracle is the same call with small strides. test_each_tensor_alone_requires_int64 has one tensor at a time past int32.
    """
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    for axis in (0, -1):
        print(f"{name}: tensors by axis {axis}", flush=True)
        far = functools.partial(spread, axis=axis)
        same(results(case, [far(t) for t in tensors], tuple(far(t) for t in others), far), expected)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=f"{key} differs")


def check_many(name: str, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check the last image of more than 2^31 elements against this image alone. Only programs with the last image run."""
    print(f"{name}: many elements", flush=True)
    images = 2**32 // torch.Size(shape).numel()  # a power of two, so that the last image is in the last split of a sum
    x = zeros(images * torch.Size(shape).numel(), dtype).reshape(images, *shape)
    generator = torch.Generator().manual_seed(0)
    x[-1] = torch.randint(-9, 9, shape, generator=generator).to(dtype)
    expected = function(x[-1:].clone())
    interpreter.range = last_programs  # type: ignore[attr-defined]
    found = function(x)[-1:]
    del interpreter.range
    assert torch.equal(found, expected), f"{found}, not {expected}"
    assert bool(expected.any())


def last_programs(*bounds: int) -> object:
    """A `range` for the interpreter: of a large launch, only the last 16 programs of each quarter.

    The last image is in these programs, also if a launch has up to four phases of a gradient, or two groups, one after another.
    """
    if len(bounds) > 1 or bounds[0] < 4096:
        return range(*bounds)
    (programs,) = bounds
    return sorted({max(0, programs * i // 4 - j) for i in range(1, 5) for j in range(1, 17)})


def empty(*shape: object, dtype: torch.dtype = torch.float32, device: object = "cpu", **options: object) -> Tensor:
    """torch.empty, in memory reserved only when it is touched."""
    strides = _empty(*shape, device="meta", **options)  # type: ignore[call-overload]
    return zeros(strides.numel(), dtype).as_strided(strides.shape, strides.stride())


_empty = torch.empty
WINDOW = (3, 3), (2, 2), (1, 1)
MANY: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], torch.dtype]] = {
    "relu": (ops.relu_forward, (64,), torch.int8),
    "relu backward": (lambda x: ops.relu_backward(x, x), (64,), torch.float16),
    "max_pool2d": (lambda x: ops.max_pool2d_forward(x, (4, 4), *WINDOW, (1, 1))[0], (2, 8, 8), torch.int8),
    "avg_pool2d": (lambda x: ops.avg_pool2d_forward(x, (4, 4), *WINDOW, True, None), (2, 8, 8), torch.float16),
    "avg_pool2d backward": (
        lambda x: ops.avg_pool2d_backward(x, (15, 15), *WINDOW, True, None, False), (2, 8, 8), torch.float16
    ),
    "adaptive_avg_pool2d": (lambda x: ops.avg_pool2d_forward(x, (3, 5), (), (), (), True, None), (2, 8, 8), torch.float16),
    "adaptive_max_pool2d": (lambda x: ops.max_pool2d_forward(x, (3, 5), (), (), (), ())[0], (2, 8, 8), torch.float16),
    "bilinear": (lambda x: ops.bilinear2d_forward(x, (3, 12), (), False), (2, 8, 8), torch.float16),
    "nearest": (lambda x: ops.nearest2d_forward(x, (3, 12), (), False), (2, 8, 8), torch.int8),
    "antialias": (lambda x: ops.antialias2d_forward(x, (3, 5), (), False), (2, 8, 8), torch.float16),
    "pad2d": (lambda x: ops.pad2d_forward(x, (1, 2, 3, 1), "reflect"), (2, 8, 8), torch.int8),
    "pad2d backward": (lambda x: ops.pad2d_backward(x, (1, 2, 1, 1), "reflect"), (2, 8, 8), torch.float16),
    "conv2d": (lambda x: _conv(ops.conv2d_fprop, x, (3, 2, 3, 3), (4, 4)), (2, 8, 8), torch.float16),
    "conv2d backward": (lambda x: _conv(ops.conv2d_dgrad, x, (2, 3, 3, 3), (16, 16)), (2, 8, 8), torch.float16),
    "conv2d, depthwise": (lambda x: _conv(ops.conv2d_fprop, x, (2, 1, 3, 3), (4, 4), 2), (2, 8, 8), torch.float16),
    "conv2d, depthwise backward": (lambda x: _conv(ops.conv2d_dgrad, x, (2, 1, 3, 3), (15, 15), 2), (2, 8, 8), torch.float16),
    # A TMA box (the block of a tensor moved by one TMA copy) is 4 x 4 pixels of four images or, with a stride, a row of 4
    # pixels of 16 images. Channels are innermost.
    "conv2d, TMA": (lambda x: _conv_by_tma(ops.conv2d_fprop, x, (64, 16, 3, 3), 0), (16, 8, 8), torch.float16),
    "conv2d, TMA, stride": (
        lambda x: _conv_by_tma(ops.conv2d_fprop, x, (64, 16, 2, 2), 0, 2, (2, 4)), (16, 8, 8), torch.float16
    ),
    "conv2d, TMA, backward": (lambda x: _conv_by_tma(ops.conv2d_dgrad, x, (16, 64, 3, 3), 2), (16, 8, 8), torch.float16),
    "conv2d, TMA, 1x1": (
        lambda x: _conv_by_tma(ops.conv2d_fprop, x, (64, 16, 1, 1), 0, size=(8, 8)), (16, 8, 8), torch.float16
    ),
    "conv2d, TMA, weights": (
        lambda x: _by_tma(ops.conv2d_wgrad, _last(x), _last(x), (1, 1), (1, 1), (0, 0), (1, 1), 1)[None],
        (16, 8, 8),
        torch.float16,
    ),
    "linear": (lambda x: ops.linear_fprop(x, torch.ones(3, 64, dtype=x.dtype), None, False), (64,), torch.float16),
    "batch_norm": (
        lambda x: ops.batchnorm2d_forward(x, torch.ones(2), torch.ones(2), None, None, None, False, 1e-5),
        (2, 8, 8),
        torch.float16,
    ),
    # Sums over all images; only the last image is not zero.
    "channel_sum": (lambda x: ops.channel_sum(x)[None], (2, 8, 8), torch.float16),
    "conv2d weights": (lambda x: ops.conv2d_wgrad(x, x, (3, 3), (1, 1), (1, 1), (1, 1), 1)[None], (2, 8, 8), torch.float16),
    "conv2d, depthwise weights": (
        lambda x: ops.conv2d_wgrad(x, x, (3, 3), (1, 1), (1, 1), (1, 1), 2)[None], (2, 8, 8), torch.float16
    ),
    "linear weights": (lambda x: ops.linear_wgrad(x, x)[None], (64,), torch.float16),
    "batch_norm sums": (
        lambda x: ops.batchnorm2d_sums(x, x, torch.zeros(2), torch.ones(2), 0.0)[None], (2, 8, 8), torch.float16
    ),
}  # fmt: skip


def _conv(op: Callable[..., Tensor], x: Tensor, w: tuple[int, ...], size: tuple[int, int], groups: int = 1) -> Tensor:
    weight = (torch.arange(torch.Size(w).numel()) % 5 - 2).reshape(w).to(x.dtype)
    return op(x, weight, None, size, (2, 2), (1, 1), (1, 1), groups)


def _conv_by_tma(
    op: Callable[..., Tensor], x: Tensor, w: tuple[int, ...], padding: int, stride: int = 1, size: tuple[int, int] = (4, 4)
) -> Tensor:
    weight = (torch.arange(torch.Size(w).numel()) % 5 - 2).reshape(w).to(x.dtype)
    return _by_tma(op, _last(x), weight, None, size, (stride, stride), (padding, padding), (1, 1), 1)


def _last(x: Tensor) -> Tensor:
    """View contiguous memory as images of the same shape with channels innermost. The order of the values changes."""
    return x.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _by_tma(op: Callable[..., Tensor], *args: object) -> Tensor:
    with tma_everywhere() as started:
        result = op(*args)
    assert started, "the TMA kernels did not run"
    return result


def main() -> None:
    settings.int64_offsets = False
    settings.interpreted_block = 4096
    for name in sys.argv[1:] or [*EVERY, *(f"many: {name}" for name in MANY)]:
        if name in EVERY:
            check_far_apart(name, EVERY[name])
        else:
            torch.empty = empty  # type: ignore[assignment]
            settings.wanted_programs = 2**18  # many splits, so that the split with the last image is short
            check_many(name, *MANY[name.removeprefix("many: ")])
            torch.empty = _empty
    print("all results are right")


if __name__ == "__main__":
    main()
