"""Errors of each operator's output and gradients, relative to torch's error: `python -m tests.precision`.

The oracle is torch in float64 on the CPU with the same rounded inputs, over four seeds. Each row has the largest and the mean
error of trinn, divided by torch's in the same dtype on the same device: 1.00 means as exact as torch, less is more exact.
float64 has no finer oracle: there, the row has the largest distance from torch, in units in the last place of the largest
value.
"""

import argparse
import sys
from typing import Any

import torch

import trinn.layers as tnn
from tests import evidence
from tests.support.check import DEVICE, randn, run
from tests.support.operator_cases import Torchs
from tests.support.record import OperatorCase, table

SEEDS = range(4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

NAMES = ("x", "weight", "bias")
CASES: dict[str, OperatorCase] = table("precision", tnn)
TORCH_CASES: dict[str, OperatorCase] = table("precision", Torchs())


def measured(name: str, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Of one case, map the output and each gradient to (largest error, mean error), each divided by torch's."""
    shapes, torchs = CASES[name].shapes, TORCH_CASES[name].function
    errors: dict[str, list[torch.Tensor]] = {}
    for seed in SEEDS:
        tensors = tuple(randn(*shape, dtype=dtype, seed=100 * seed + i) for i, shape in enumerate(shapes))
        ours, theirs = (run(function, tensors, {}, dtype) for function in (CASES[name].function, torchs))
        exact = run(torchs, tuple(t.cpu().double() for t in tensors), {}, dtype)
        for key in ours:
            pair = [(result[key].cpu().double() - exact[key]).abs().flatten() for result in (ours, theirs)]
            errors.setdefault(key, []).append(torch.stack([*pair, exact[key].abs().flatten()]))
    found = {}
    for key, parts in errors.items():
        mine, other, size = torch.cat(parts, dim=1)
        if dtype == torch.float64:
            found[key] = (float(mine.max() / (size.max() * torch.finfo(dtype).eps)), 0.0)
        else:
            found[key] = ratio(mine.max(), other.max()), ratio(mine.mean(), other.mean())
    names = ["output", *(f"d {tensor}" for tensor in NAMES[: len(shapes)])]
    return dict(zip(names, found.values(), strict=True))


def ratio(mine: torch.Tensor, torchs: torch.Tensor) -> float:
    """trinn's error divided by torch's: 0 if trinn is exact, infinite if only torch is exact."""
    return 0.0 if mine == 0 else float(mine / torchs)


def rows_of(name: str, flags: str = "") -> list[list[Any]]:
    """Rows (operator, tensor, dtype, largest, mean) of one case."""
    rows = []
    for dtype in DTYPES:
        found = measured(name, dtype)
        label = str(dtype).removeprefix("torch.") + flags
        rows += [[name, tensor, label, *(round(value, 3) for value in values)] for tensor, values in found.items()]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="store the result for docs/evidence.md")
    options = parser.parse_args()
    rows = []
    for name in CASES:
        for allowed in (False, True) if DEVICE == "cuda" and len(CASES[name].shapes) > 1 else (False,):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
            rows += rows_of(name, ", TF32" if allowed else "")
            print(*(f"{' '.join(map(str, row))}" for row in rows if row[0] == name), sep="\n", flush=True)
    if options.record:
        evidence.record("precision", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
