"""Errors of each operator's output and gradients, relative to torch's error: `python -m tests.precision`.

The oracle is torch in float64 on the CPU with the same rounded inputs, over four seeds. Each row has the largest and the mean
error of trinn, divided by torch's in the same dtype on the same device: 1.00 means as exact as torch, less is more exact.
float64 has no finer oracle: there, the row has the largest distance from torch, in units in the last place of the largest
value.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests import evidence
from tests.support.check import DEVICE, randn, run

SEEDS = range(4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Case(NamedTuple):
    """trinn's and torch's function, the names and shapes of the tensors, and the other arguments."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    tensors: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = {}


def batch_norm(library: Any, training: bool) -> Callable[..., Any]:
    def function(x: Any, weight: Any, bias: Any) -> Any:
        running = torch.linspace(-1, 1, 5), torch.linspace(0.5, 2, 5)
        mean, var = (v.to(x.device, weight.dtype) for v in running)
        return library.batch_norm(x, mean, var, weight, bias, training)

    return function


def max_unpool2d(library: Any) -> Callable[..., Any]:
    def function(x: Any) -> Any:
        indices = F.max_pool2d(randn(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), 2, return_indices=True)[1]
        return library.max_unpool2d(x, indices.to(x.device), 2)

    return function


IMAGE: dict[str, tuple[int, ...]] = {"x": (3, 5, 14, 13)}
DEEP: dict[str, tuple[int, ...]] = {"x": (4, 64, 9, 8)}
CASES = {
    "conv2d 3x3": Case(tnn.conv2d, F.conv2d, DEEP | {"weight": (48, 64, 3, 3), "bias": (48,)}, {"padding": 1}),
    "conv2d 7x7, stride 2": Case(
        tnn.conv2d, F.conv2d, {"x": (2, 3, 25, 24), "weight": (16, 3, 7, 7), "bias": (16,)}, {"stride": 2, "padding": 3}
    ),
    "conv2d, depthwise": Case(tnn.conv2d, F.conv2d, DEEP | {"weight": (64, 1, 3, 3), "bias": (64,)}, {"groups": 64}),
    "conv_transpose2d": Case(
        tnn.conv_transpose2d, F.conv_transpose2d, DEEP | {"weight": (64, 32, 4, 4), "bias": (32,)}, {"stride": 2, "padding": 1}
    ),
    "linear": Case(tnn.linear, F.linear, {"x": (33, 512), "weight": (70, 512), "bias": (70,)}),
    "relu": Case(tnn.relu, F.relu, IMAGE),
    "max_pool2d": Case(tnn.max_pool2d, F.max_pool2d, IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d": Case(tnn.avg_pool2d, F.avg_pool2d, IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "adaptive_avg_pool2d": Case(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, IMAGE, {"output_size": (5, 6)}),
    "adaptive_max_pool2d": Case(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, IMAGE, {"output_size": (5, 6)}),
    "batch_norm, training": Case(batch_norm(tnn, True), batch_norm(F, True), IMAGE | {"weight": (5,), "bias": (5,)}),
    "batch_norm, evaluation": Case(batch_norm(tnn, False), batch_norm(F, False), IMAGE | {"weight": (5,), "bias": (5,)}),
    "interpolate, bilinear": Case(tnn.interpolate, F.interpolate, IMAGE, {"size": (29, 20), "mode": "bilinear"}),
    "interpolate, corners": Case(
        tnn.interpolate, F.interpolate, IMAGE, {"size": (29, 20), "mode": "bilinear", "align_corners": True}
    ),
    "interpolate, antialias": Case(
        tnn.interpolate, F.interpolate, IMAGE, {"size": (5, 6), "mode": "bilinear", "antialias": True}
    ),
    "interpolate, nearest": Case(tnn.interpolate, F.interpolate, IMAGE, {"size": (29, 20), "mode": "nearest"}),
    "max_unpool2d": Case(max_unpool2d(tnn), max_unpool2d(F), IMAGE),
}


def measured(case: Case, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Map the output and each gradient to (largest error, mean error), each divided by torch's."""
    errors: dict[str, list[torch.Tensor]] = {}
    for seed in SEEDS:
        tensors = tuple(randn(*shape, dtype=dtype, seed=100 * seed + i) for i, shape in enumerate(case.tensors.values()))
        ours, theirs = (run(function, tensors, dict(case.options), dtype) for function in (case.ours, case.torchs))
        exact = run(case.torchs, tuple(t.cpu().double() for t in tensors), dict(case.options), dtype)
        for name in ours:
            pair = [(result[name].cpu().double() - exact[name]).abs().flatten() for result in (ours, theirs)]
            errors.setdefault(name, []).append(torch.stack([*pair, exact[name].abs().flatten()]))
    found = {}
    for name, parts in errors.items():
        mine, torchs, size = torch.cat(parts, dim=1)
        if dtype == torch.float64:
            found[name] = (float(mine.max() / (size.max() * torch.finfo(dtype).eps)), 0.0)
        else:
            found[name] = ratio(mine.max(), torchs.max()), ratio(mine.mean(), torchs.mean())
    names = ["output", *(f"d {tensor}" for tensor in case.tensors)]
    return dict(zip(names, found.values(), strict=True))


def ratio(mine: torch.Tensor, torchs: torch.Tensor) -> float:
    """trinn's error divided by torch's: 0 if trinn is exact, infinite if only torch is exact."""
    return 0.0 if mine == 0 else float(mine / torchs)


def rows_of(name: str, flags: str = "") -> list[list[Any]]:
    """Rows (operator, tensor, dtype, largest, mean) of one case."""
    rows = []
    for dtype in DTYPES:
        try:
            found = measured(CASES[name], dtype)
        except NotImplementedError:  # on a CPU, torch has no 16-bit antialiasing
            continue
        label = str(dtype).removeprefix("torch.") + flags
        rows += [[name, tensor, label, *(round(value, 3) for value in values)] for tensor, values in found.items()]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="store the result for docs/evidence.md")
    options = parser.parse_args()
    rows = []
    for name in CASES:
        for allowed in (False, True) if DEVICE == "cuda" and "weight" in CASES[name].tensors else (False,):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
            rows += rows_of(name, ", TF32" if allowed else "")
            print(*(f"{' '.join(map(str, row))}" for row in rows if row[0] == name), sep="\n", flush=True)
    if options.record:
        evidence.record("precision", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
