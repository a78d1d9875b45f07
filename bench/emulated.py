"""Errors of float32 products on Hopper's matrix units, emulated on a CPU: `python -m bench.emulated`, a few minutes.

Writes docs/convolution/emulated.json. The model of an instruction was published with bit-by-bit comparisons on an H100
(F. A. Khattak and M. Mikaitis, Accurate Models of NVIDIA Tensor Cores, arXiv:2512.07004, and its H100TC.m). An instruction
aligns the exact products of 16 bfloat16 or 8 TF32 numbers, and the accumulator, to the largest of them. It keeps two bits more
than float32 has, truncates lower bits, and truncates the sum to float32. For comparison, another model rounds the exact sum to
the nearest float32.
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

Array = NDArray[Any]  # float32 for operands, float64 for sums

DEPTHS = (64, 256, 1024, 4096, 16384)
APART = (64, 128, 256, 1024)  # numbers in a separate sum of the largest products: see `summed`
DRAWS, SUMS = 4, 512  # draws of each distribution, and sums of each draw
OUTPUTS = DRAWS * SUMS
BITS, MORE = 24, 2  # bits of float32, and extra bits within an instruction
AT_ONCE = {"bf16": 16, "tf32": 8}  # products in one instruction


def drawn(name: str, depth: int, random: np.random.Generator) -> tuple[Array, Array]:
    """The operands of OUTPUTS sums, in float32."""
    shape = OUTPUTS, depth
    if name == "uniform, from 0 to 1":
        x, w = random.random(shape), random.random(shape)
    else:
        x, w = random.standard_normal(shape), random.standard_normal(shape)
        if name == "after a ReLU":
            x = np.maximum(x, 0)
        elif name == "mixed magnitudes":
            x *= 10 ** random.standard_normal(shape)
    return x.astype(np.float32), w.astype(np.float32)


DISTRIBUTIONS = ("normal", "after a ReLU", "uniform, from 0 to 1", "mixed magnitudes")


def nearest(x: Array, bits: int) -> Array:
    """float32 rounded to the nearest with the last `bits` bits zero; ties go to even."""
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
    """x truncated towards zero to a multiple of 2 ** unit."""
    return np.ldexp(np.trunc(np.ldexp(x, -unit)), unit)


def multiplied(acc: Array, a: Array, b: Array, kind: str, truncates: bool) -> Array:
    """acc plus the sum of a * b along axis 1, by a sequence of instructions."""
    for k in range(0, a.shape[1], AT_ONCE[kind]):
        products = a[:, k : k + AT_ONCE[kind]].astype(np.float64) * b[:, k : k + AT_ONCE[kind]]
        addends = np.concatenate([acc[:, None], products], axis=1)
        if truncates:
            unit = np.frexp(np.abs(addends).max(axis=1))[1] - BITS - MORE
            acc = cut(addends, unit[:, None]).sum(axis=1)
            acc = cut(acc, np.frexp(acc)[1] - BITS)
        else:
            acc = float32(addends.sum(axis=1))
    return acc


class Terms(NamedTuple):
    """An operand as a sum of terms, the largest first, and their dtype: a key of AT_ONCE."""

    terms: tuple[Array, ...]
    kind: str


def in_terms(x: Array, rounded: Callable[[Array], Array], count: int, kind: str) -> Terms:
    terms = []
    for _ in range(count):
        terms.append(rounded(x))
        x = x - terms[-1]
    return Terms(tuple(terms), kind)


Operands = tuple[Terms, Terms]


def summed(operands: Operands, pairs: Sequence[tuple[int, int]], truncates: bool, apart: int = 0) -> Array:
    """The sum of the products of these pairs of terms, in one accumulator, one pair of terms after the other.

    With `apart`, the products of the last pair, the largest, are summed `apart` numbers at a time in a separate accumulator.
    float32 additions, with rounding, add these sums.
    """
    x, w = operands
    acc: Array = np.zeros(OUTPUTS)
    for i, j in pairs[:-1] if apart else pairs:
        acc = multiplied(acc, x.terms[i], w.terms[j], x.kind, truncates)
    if apart:
        i, j = pairs[-1]
        for k in range(0, x.terms[i].shape[1], apart):
            a, b = x.terms[i][:, k : k + apart], w.terms[j][:, k : k + apart]
            acc = float32(acc + multiplied(np.zeros(OUTPUTS), a, b, x.kind, truncates))
    return acc


def summed_in_blocks(operands: Operands, pairs: Sequence[tuple[int, int]], truncates: bool, block: int) -> Array:
    """The products of all pairs, block by block; float32 additions, with rounding, add the blocks, as in Triton's tf32x3."""
    acc: Array = np.zeros(OUTPUTS)
    for k in range(0, operands[0].terms[0].shape[1], block):
        x, w = (Terms(tuple(term[:, k : k + block] for term in of.terms), of.kind) for of in operands)
        acc = float32(acc + summed((x, w), pairs, truncates))
    return acc


def in_float32(x: Array, w: Array) -> Array:
    """Sequential fused multiply-adds in float32: the unit of all errors."""
    acc: Array = np.zeros(OUTPUTS)
    for k in range(x.shape[1]):
        acc = float32(acc + x[:, k].astype(np.float64) * w[:, k])
    return acc


def ways(x: Array, w: Array) -> Iterator[tuple[str, str, Array]]:
    """(name, rounding of the instructions, sums) for each way to multiply float32."""
    yield "float32, as torch sums on this CPU", "rounds", torch.linalg.vecdot(torch.tensor(x), torch.tensor(w)).double().numpy()
    bf16_terms = in_terms(x, bfloat16, 3, "bf16"), in_terms(w, bfloat16, 3, "bf16")
    tf32_terms = in_terms(x, tf32, 2, "tf32"), in_terms(w, tf32, 2, "tf32")
    six = [*(term_pair(number, CROSS_PAIRS) for number in range(CROSS_PAIRS)), (0, 0)]
    for rounding in ("rounds", "truncates"):
        truncates = rounding == "truncates"
        yield "6 products of bfloat16", rounding, summed(bf16_terms, six, truncates)
        for apart in APART if truncates else ():
            yield f"6 products of bfloat16, largest in sums of {apart}", rounding, summed(bf16_terms, six, truncates, apart)
        yield "3 products of bfloat16", rounding, summed(bf16_terms, [(0, 1), (1, 0), (0, 0)], truncates)
        yield "1 product of TF32", rounding, summed(tf32_terms, [(0, 0)], truncates)
        three = summed_in_blocks(tf32_terms, [(1, 0), (0, 1), (0, 0)], truncates, block=32)
        yield "3 products of TF32, in sums of 32", rounding, three


def rows() -> Iterator[dict[str, object]]:
    """Errors relative to those of `in_float32`, for the worst draw."""
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
