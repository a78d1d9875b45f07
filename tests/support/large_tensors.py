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

from tests.support.operator_cases import CASES, results
from tests.support.record import ManyElements, OperatorCase, table
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


def check_far_apart(name: str, case: OperatorCase) -> None:
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
MANY: dict[str, ManyElements] = table("many_elements")


def main() -> None:
    settings.int64_offsets = False
    settings.interpreted_block = 4096
    for name in sys.argv[1:] or [*CASES, *(f"many: {name}" for name in MANY)]:
        if name in CASES:
            check_far_apart(name, CASES[name])
        else:
            torch.empty = empty  # type: ignore[assignment]
            settings.wanted_programs = 2**18  # many splits, so that the split with the last image is short
            check_many(name, *MANY[name.removeprefix("many: ")])
            torch.empty = _empty
    print("all results are right")


if __name__ == "__main__":
    main()
