"""Measure rates of this GPU: `python -m bench.time.rates [--out FILE.json]`, half a minute.

A small kernel measures a rate that torch cannot measure: the bytes per second that TMA (Hopper's copy engine) copies from L2 to
shared memory, in boxes of 8 x 16 pixels (CUDA's boxDim: the block of a tensor that one TMA copy moves). The report also has the
rates of a large memory copy and of large matrix products, and the rates that the tile rules of kernels/runtime/tuning.py
assume. `--compile-only` needs no GPU: it compiles the kernel for an H100 or H200.
"""

import sys

if "--compile-only" in sys.argv:
    from bench.compile import without_gpu  # noqa: F401  # before triton

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench import registry
from bench.time import report, runs
from bench.time.protocol import Machine
from bench.tune.tiles import compiling
from trinn.kernels.conv2d.tma_box import tma_descriptor
from trinn.kernels.runtime import launch, tuning

SOURCE = (128, 24, 48, 64)  # images, rows, columns and channels, float16: 18 MiB fit into L2
BOX = (1, 8, 16, 64)  # 16 KiB
COPIES = 1152  # boxes copied by each program: the number of boxes in SOURCE
PROGRAMS, STAGES = 2, 6  # programs per SM, boxes in flight per program: 192 KiB of an SM's 228 KiB of shared memory
ROWS = 64  # rows of the product that reads a box: the minimum of wgmma


@triton.jit
def _copy_boxes_kernel(source, ones, sums, steps, BOX: tl.constexpr, COUNTS: tl.constexpr, ROWS: tl.constexpr):
    """Sum `steps` boxes over boxes and channels: one float32 per pixel of a box.

    Consecutive programs copy consecutive boxes, so that no two copy the same box at once. COUNTS is the number of boxes along
    each axis. As in a convolution, wgmma reads the box from shared memory: it multiplies ROWS rows of ones by the box. So the
    compiler cannot remove the copy, and no box passes through registers. At the assumed rates the product takes about half as
    long as the copy.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    PIXELS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    left = ones.load((0, 0))  # (ROWS, channels)
    acc = tl.zeros((ROWS, PIXELS), tl.float32)
    for step in range(steps):
        at = (step * programs + program) % (COUNTS[0] * COUNTS[1] * COUNTS[2])
        row, column = at // COUNTS[2] % COUNTS[1], at % COUNTS[2]
        box = source.load((at // (COUNTS[1] * COUNTS[2]) * BOX[0], row * BOX[1], column * BOX[2], 0))
        acc = tl.dot(left, tl.reshape(box, (PIXELS, BOX[3])).T, acc)
    tl.store(sums + program * PIXELS + tl.arange(0, PIXELS), tl.max(acc, axis=0))  # the rows are equal


def copy_boxes(source: Tensor, ones: Tensor, sums: Tensor, box: Sequence[int], steps: int) -> None:
    """Fill `sums` with one program per row. Each program copies and sums `steps` boxes.

    Args:
        source: (N, H, W, C), contiguous.
        ones: (ROWS, C), the dtype of `source`.
        sums: (programs, pixels of a box), float32.
        box: (images, rows, columns, C); must divide the sizes of the source.
    """
    counts = tuple(size // block for size, block in zip(source.shape, box, strict=True))
    boxes, left = (tma_descriptor(t, t.shape, t.stride(), block) for t, block in ((source, box), (ones, ones.shape)))
    constants: dict[str, Any] = {"BOX": tuple(box), "COUNTS": counts, "ROWS": ROWS}
    launch.launch(_copy_boxes_kernel, len(sums), boxes, left, sums, steps, **constants, stages=STAGES, device=source.device)


def tensors(device: str, multiprocessors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a source of small integers, so that every sum is exact, the ones, and the sums to fill."""
    source = torch.randint(0, 4, SOURCE, device=device).half()
    ones = torch.ones(ROWS, SOURCE[-1], dtype=torch.half, device=device)
    return source, ones, torch.empty(PROGRAMS * multiprocessors, math.prod(BOX[:-1]), device=device)


def box_rate(machine: Machine, multiprocessors: int) -> float:
    """Return the bytes copied per second from L2 to shared memory.

    Raises:
        RuntimeError: the result of the copies is wrong.
    """
    source, ones, sums = tensors(machine.device, multiprocessors)
    visits = len(sums) * COPIES * math.prod(BOX) // source.numel()  # per element
    copy = partial(copy_boxes, source, ones, sums, BOX, COPIES)
    copy()
    if sums.double().sum() != source.double().sum() * visits:
        raise RuntimeError("copies from L2 to shared memory: the result is wrong")
    return visits * source.nbytes / machine.time_of([copy])


def rates(machine: Machine) -> dict[str, Any]:
    """Measure the rates of a GPU.

    Returns:
        "multiprocessors": their number.
        "rates": a list of dicts. "value" is the median for the whole GPU, in "unit". "per_multiprocessor" is the value per
            multiprocessor and nanosecond. In the same unit, "assumed" is the rate assumed by the tile rules, or None.
    """
    on_gpu = machine.device == "cuda"
    multiprocessors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count if on_gpu else 1
    measured = {"memory copy": machine.copy_rate()}
    measured |= {f"{arithmetic} products": machine.product_rate(arithmetic) for arithmetic in registry.PRODUCTS}
    measured["L2 to shared memory"] = box_rate(machine, multiprocessors)
    assumed = assumed_rates()
    found = [
        {
            "name": name, "unit": "operations/s" if "products" in name else "bytes/s", "value": value,
            "per_multiprocessor": value / 1e9 / multiprocessors, "assumed": assumed.get(name),
        }
        for name, value in measured.items()
    ]  # fmt: skip
    return {"multiprocessors": multiprocessors, "rates": found}


def assumed_rates() -> dict[str, float]:
    """Return the assumptions of the tile rules, per multiprocessor and nanosecond: bytes from L2, and product operations.

    Derive them from `_wave_time` of tuning.py: its time for a small tile is limited by copies, for a large tile by products. No
    rule assumes a rate for memory, or for float32 products without TF32.
    """
    small, large = (64, 64), (4096, 4096)
    found = {"L2 to shared memory": sum(small) * 2 / tuning._wave_time(*small, small, itemsize=2)}
    for arithmetic, itemsize in {"bf16": 2, "fp16": 2, "tf32": 4}.items():
        found[f"{arithmetic} products"] = 2 * math.prod(large) / tuning._wave_time(*large, large, itemsize)
    return found


def lines_of(result: dict[str, Any]) -> Iterator[str]:
    """Return the lines of a table of the rates."""
    rows = [("", "per second", "per ns, multiprocessor", "assumed")]
    for of in result["rates"]:
        whole = f"{of['value'] / 1e12:.2f} T {of['unit'].removesuffix('/s')}"
        rows.append((of["name"], whole, f"{of['per_multiprocessor']:.1f}", f"{of['assumed']:.1f}" if of["assumed"] else "-"))
    return report.table(rows, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.time.rates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the rates to this file")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; time nothing")
    args = parser.parse_args(arguments)
    if args.compile_only:
        with compiling("sm_90") as faults:
            copy_boxes(*tensors("meta", 1), BOX, COPIES)
        print(*faults or ["compiled"], sep="\n")
        return 1 if faults else 0
    if not torch.cuda.is_available():
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    result = {"environment": runs.environment(), **rates(Machine.gpu())}
    print(*lines_of(result), sep="\n")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
