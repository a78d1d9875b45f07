"""Run a kernel and errors in Triton's interpreter, before and after trinn adds its caches."""

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from triton.language import core


@triton.jit
def scaled(x, factor):
    """A device function: the interpreter replaces Triton's functions in it again."""
    return x * factor + tl.sum(x, axis=0)[None, :]


@triton.jit
def kernel(x, y, n, TYPE: tl.constexpr):
    """All kinds of operands: tensors of one type and of two, of one shape and of two, scalars, Python numbers, both zeros."""
    rows, columns = tl.arange(0, 4), tl.arange(0, 8)
    offsets = rows[:, None] * 8 + columns[None, :]
    mask = (offsets < n) & (columns != 3)[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(TYPE)
    value = scaled(value, 2) + scaled(value, 2.5) - offsets * 1 - True
    value = tl.where(value > 0, value, -0.5 * value) / (offsets + 1) + tl.where(mask, value, -0.0) + n.to(tl.float64) * 0.0
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def no_power_of_2(x, TYPE: tl.constexpr):
    tl.store(x, tl.sum(tl.zeros((3,), TYPE), axis=0))


@triton.jit
def different_shapes(x, TYPE: tl.constexpr):
    tl.store(x, tl.sum(tl.zeros((4,), TYPE) + tl.zeros((8,), TYPE), axis=0))


@triton.jit
def pointers_added(x, TYPE: tl.constexpr):
    tl.store(x + x, 0.0)


def results() -> list[Any]:
    """Bits, and the texts of errors."""
    torch.manual_seed(0)
    x, found = torch.randn(32, dtype=torch.float64), list[Any]()
    for dtype in (tl.float32, tl.float64, tl.float16, tl.int32):
        y = torch.zeros(32, dtype=torch.float64)
        kernel[(1,)](x, y, 30, dtype)
        found.append(y.view(torch.int64).tolist())
        for failing in (no_power_of_2, different_shapes, pointers_added):
            try:
                failing[(1,)](x, dtype)
            except Exception as error:
                found.append(str(error.__cause__ or error))
    block = tl.block_type(tl.float32, [4, core.constexpr(8)])
    try:
        tl.block_type(tl.float32, [4.0, 8])
    except TypeError as error:
        found.append(str(error))
    found += [repr(block), block == tl.block_type(tl.float32, [4, 8]), block == tl.block_type(tl.int32, [4, 8])]
    return found


def calls() -> int:
    """Calls of Python functions in one launch."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    x = torch.zeros(32)
    sys.setprofile(counted)
    kernel[(1,)](x, x, 30, tl.float32)
    sys.setprofile(None)
    return count


def main() -> None:
    before, calls_before = results(), calls()
    assert core.is_builtin(tl.load) and core.is_builtin(core.tensor.__add__)
    import trinn.kernels  # noqa: F401

    after, calls_after = results(), calls()
    assert core.is_builtin(tl.load) and core.is_builtin(core.tensor.__add__), "the interpreter restores Triton's functions"
    assert after == before, [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    print(f"Triton {triton.__version__}: {calls_before} calls without the caches, {calls_after} with them")
    assert calls_after < 0.5 * calls_before


if __name__ == "__main__":
    main()
