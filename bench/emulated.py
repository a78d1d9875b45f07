"""Errors of float32 products on Hopper's matrix units, emulated on a CPU: `python -m bench.emulated`, a few minutes.

Writes docs/convolution/emulated.json. The model of an instruction is a published one, found on an H100 and compared with it
bit by bit (F. A. Khattak and M. Mikaitis, Accurate Models of NVIDIA Tensor Cores, arXiv:2512.07004, and its
H100TC.m): the exact products of 16 bfloat16, or of 8 TF32, and the accumulator are aligned to the largest of them, with two
bits more than float32 has; what lies lower is cut off, and so is what the sum has beyond float32. Beside it stands an
instruction that rounds its exact sum to the nearest.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trinn.kernels.device.precision import CROSS_PAIRS, term_pair

STORED = Path(__file__).resolve().parent.parent / "docs" / "convolution" / "emulated.json"

Array = NDArray[Any]  # float32, or float64 for what is summed

DEPTHS = (64, 256, 1024, 4096, 16384)
APART = (64, 128, 256, 1024)
DRAWS, SUMS = 4, 512  # of each: so many sets of numbers, and sums of each of them
OUTPUTS = DRAWS * SUMS
BITS, MORE = 24, 2  # of float32, and of the sum within an instruction
AT_ONCE = {"bf16": 16, "tf32": 8}  # products in one instruction


def drawn(name: str, depth: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Operands of OUTPUTS sums, in float32."""
    shape = OUTPUTS, depth
    if name == "uniform, from 0 to 1":
        x, w = random.random(shape), random.random(shape)
    else:
        x, w = random.standard_normal(shape), random.standard_normal(shape)
        if name == "after a ReLU":
            x = np.maximum(x, 0)
        elif name == "of all sizes":
            x *= 10 ** random.standard_normal(shape)
    return x.astype(np.float32), w.astype(np.float32)


DISTRIBUTIONS = ("normal", "after a ReLU", "uniform, from 0 to 1", "of all sizes")


def nearest(x: Array, bits: int) -> Array:
    """float32 without its last bits, rounded to the nearest, on its bits."""
    raw = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    raw += (1 << bits - 1) - 1 + (raw >> np.uint64(bits) & np.uint64(1))
    return (raw >> np.uint64(bits) << np.uint64(bits)).astype(np.uint32).view(np.float32)


def bfloat16(x: Array) -> Array:
    return nearest(x, 16)


def tf32(x: Array) -> Array:
    return nearest(x, 13)


def float32(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float64)


def cut(x: Array, unit: Array) -> Array:
    """Towards zero, to a multiple of these powers of two."""
    return np.ldexp(np.trunc(np.ldexp(x, -unit)), unit)


def multiplied(acc: Array, a: Array, b: Array, kind: str, truncates: bool) -> Array:
    """acc and the sum of a * b along their depth, by instructions one after the other."""
    for k in range(0, a.shape[1], AT_ONCE[kind]):
        products = a[:, k : k + AT_ONCE[kind]].astype(np.float64) * b[:, k : k + AT_ONCE[kind]]
        terms = np.concatenate([acc[:, None], products], axis=1)
        if truncates:
            unit = np.frexp(np.abs(terms).max(axis=1))[1] - BITS - MORE
            acc = cut(terms, unit[:, None]).sum(axis=1)
            acc = cut(acc, np.frexp(acc)[1] - BITS)
        else:
            acc = float32(terms.sum(axis=1))
    return acc


class Parts(NamedTuple):
    """Addends of an operand, the largest first, and what multiplies them."""

    parts: tuple[Array, ...]
    kind: str


def in_parts(x: Array, rounded: Callable[[Array], Array], count: int, kind: str) -> Parts:
    parts = []
    for _ in range(count):
        parts.append(rounded(x))
        x = x - parts[-1]
    return Parts(tuple(parts), kind)


Operands = tuple[Parts, Parts]


def summed(operands: Operands, pairs: Sequence[tuple[int, int]], truncates: bool, apart: int = 0) -> Array:
    """The products of these pairs, each along the whole depth, in one accumulator.

    Those of the last pair, the largest, may be summed for `apart` numbers at a time; float32 adds these sums, rounding.
    """
    x, w = operands
    acc: Array = np.zeros(OUTPUTS)
    for i, j in pairs[:-1] if apart else pairs:
        acc = multiplied(acc, x.parts[i], w.parts[j], x.kind, truncates)
    if apart:
        i, j = pairs[-1]
        for k in range(0, x.parts[i].shape[1], apart):
            a, b = x.parts[i][:, k : k + apart], w.parts[j][:, k : k + apart]
            acc = float32(acc + multiplied(np.zeros(OUTPUTS), a, b, x.kind, truncates))
    return acc


def summed_in_blocks(operands: Operands, pairs: Sequence[tuple[int, int]], truncates: bool, block: int) -> Array:
    """All pairs of a block of the depth, whose sum float32 takes up, rounded: as Triton does for tf32x3."""
    acc: Array = np.zeros(OUTPUTS)
    for k in range(0, operands[0].parts[0].shape[1], block):
        x, w = (Parts(tuple(part[:, k : k + block] for part in of.parts), of.kind) for of in operands)
        acc = float32(acc + summed((x, w), pairs, truncates))
    return acc


def in_float32(x: Array, w: Array) -> Array:
    """One multiplication and addition after the other, each pair rounded once: the yardstick."""
    acc: Array = np.zeros(OUTPUTS)
    for k in range(x.shape[1]):
        acc = float32(acc + x[:, k].astype(np.float64) * w[:, k])
    return acc


def ways(x: Array, w: Array) -> Iterator[tuple[str, str, Array]]:
    """(the way, how its instructions round, the sums)."""
    yield "float32, as torch sums on this CPU", "rounds", torch.linalg.vecdot(torch.tensor(x), torch.tensor(w)).double().numpy()
    planes = in_parts(x, bfloat16, 3, "bf16"), in_parts(w, bfloat16, 3, "bf16")
    large = in_parts(x, tf32, 2, "tf32"), in_parts(w, tf32, 2, "tf32")
    six = [*(term_pair(number, CROSS_PAIRS) for number in range(CROSS_PAIRS)), (0, 0)]
    for rounding in ("rounds", "truncates"):
        truncates = rounding == "truncates"
        yield "6 products of bfloat16", rounding, summed(planes, six, truncates)
        for apart in APART if truncates else ():
            yield f"6 products of bfloat16, the largest apart for {apart}", rounding, summed(planes, six, truncates, apart)
        yield "3 products of bfloat16", rounding, summed(planes, [(0, 1), (1, 0), (0, 0)], truncates)
        yield "1 product of TF32", rounding, summed(large, [(0, 0)], truncates)
        three = summed_in_blocks(large, [(1, 0), (0, 1), (0, 0)], truncates, block=32)
        yield "3 products of TF32, apart for 32", rounding, three


def rows() -> Iterator[dict[str, object]]:
    """Errors in units of float32's own, of the draw where they are the worst."""
    for kind, distribution in enumerate(DISTRIBUTIONS):
        for depth in DEPTHS:
            x, w = drawn(distribution, depth, np.random.default_rng([kind, depth]))
            exact = (x.astype(np.longdouble) * w).sum(axis=1).reshape(DRAWS, SUMS)
            own = np.abs(in_float32(x, w).reshape(DRAWS, SUMS) - exact)
            ulp = np.finfo(np.float32).eps * np.abs(exact).max(axis=1)
            for way, rounding, sums in ways(x, w):
                error = np.abs(sums.reshape(DRAWS, SUMS) - exact)
                yield {
                    "numbers": distribution, "depth": depth, "way": way, "instruction": rounding,
                    "largest": round(float((error.max(axis=1) / own.max(axis=1)).max()), 3),
                    "mean": round(float((error.mean(axis=1) / own.mean(axis=1)).max()), 3),
                    "right": bool((error.max(axis=1) <= 2 * own.max(axis=1) + ulp).all()),
                }  # fmt: skip


def main() -> None:
    lines = []
    for row in rows():
        print(*row.values(), flush=True)
        lines.append(f"  {json.dumps(row)}")
    STORED.parent.mkdir(parents=True, exist_ok=True)
    STORED.write_text(f'{{\n "draws": {DRAWS},\n "sums": {SUMS},\n "rows": [\n' + ",\n".join(lines) + "\n ]\n}\n")
    print(f"wrote {STORED}")


if __name__ == "__main__":
    main()
