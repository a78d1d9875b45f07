"""Measure rates of this GPU: `python -m bench.time.rates [--out FILE.json]`, half a minute.

Two small kernels measure rates that torch cannot measure:

    copy_boxes      bytes per second copied by TMA (Hopper's copy engine) from L2 to shared memory
    compare_select  comparisons and selections per second in registers, as in max pooling

A TMA box (CUDA's boxDim) is the block of a tensor that one TMA copy moves. The report also has the rates of a large memory copy
and of large matrix products, and the rates that the tile rules of kernels/runtime/tuning.py assume. `--compile-only` needs no
GPU: it compiles both kernels for an H100 or H200 and prints their registers and the instructions of their loops.
"""

import sys

if "--compile-only" in sys.argv:
    from bench import compiled_only  # noqa: F401  # before triton

import argparse
import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench import registry
from bench.machine_code import Driver, Instruction, read_cubin, read_loops, read_sass
from bench.time import runs
from bench.time.protocol import Call, Machine, interleaved
from trinn.kernels.conv2d.tma_box import tma_descriptor
from trinn.kernels.device.precision import beats
from trinn.kernels.runtime import launch, tuning
from trinn.kernels.runtime.observe import intercepted, recorded

SOURCE = (128, 24, 48, 64)  # images, rows, columns and channels, float16: 18 MiB fit into L2
BOXES = {
    "a matrix of filters": (128, 64),
    "8 x 16 pixels of an image": (1, 8, 16, 64),
    "a pixel of 128 images": (128, 1, 1, 64),
}  # 16 KiB each
COPIES = 1152  # boxes copied by each program: the number of boxes in SOURCE
COPY_PROGRAMS, STAGES = 2, 6  # programs per SM, boxes in flight per program: 192 KiB of an SM's 228 KiB of shared memory
COMPARE_PROGRAMS, LANES, STEPS = 8, 1024, 4096  # programs per SM, elements per program, values per element
ROWS = 64  # rows of the product that reads a box: the minimum of wgmma
COMPARES = ("FSETP", "ISETP", "FSEL", "SEL", "FMNMX", "IMNMX", "VIMNMX")  # machine instructions for compare and select


@triton.jit
def _copy_boxes_kernel(source, ones, sums, steps, BOX: tl.constexpr, COUNTS: tl.constexpr, ROWS: tl.constexpr):
    """Sum `steps` boxes over boxes and channels: one float32 per pixel of a box.

    Consecutive programs copy consecutive boxes, so that no two copy the same box at once. COUNTS is the number of boxes along
    each axis. As in a convolution, wgmma reads the box from shared memory: it multiplies ROWS rows of ones by the box. So the
    compiler cannot remove the copy, and no box passes through registers. At the assumed rates the product takes about half as
    long as the copy.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    DEPTH: tl.constexpr = BOX[len(BOX) - 1]
    PIXELS: tl.constexpr = BOX[0] if len(BOX) == 2 else BOX[0] * BOX[1] * BOX[2]
    left = ones.load((0, 0))  # (ROWS, DEPTH)
    acc = tl.zeros((ROWS, PIXELS), tl.float32)
    for step in range(steps):
        if len(BOX) == 2:
            box = source.load(((step * programs + program) % COUNTS[0] * BOX[0], 0))
        else:
            at = (step * programs + program) % (COUNTS[0] * COUNTS[1] * COUNTS[2])
            row, column = at // COUNTS[2] % COUNTS[1], at % COUNTS[2]
            box = source.load((at // (COUNTS[1] * COUNTS[2]) * BOX[0], row * BOX[1], column * BOX[2], 0))
        acc = tl.dot(left, tl.reshape(box, (PIXELS, DEPTH)).T, acc)
    tl.store(sums + program * PIXELS + tl.arange(0, PIXELS), tl.max(acc, axis=0))  # the rows are equal


@triton.jit
def _compare_select_kernel(start, slope, best_values, best_steps, steps, LANES: tl.constexpr):
    """Compute the maximum and its step for LANES sequences of `steps` values, with the tie and NaN rules of max pooling.

    A sequence starts at `start` and grows by `slope`, in registers. Each step takes one addition for the next value, two
    comparisons and two selections.
    """
    at = tl.program_id(0) * LANES + tl.arange(0, LANES)
    value, growth = tl.load(start + at), tl.load(slope + at)
    best, code = value, tl.full((LANES,), 0, tl.int32)
    for step in range(1, steps):
        value += growth
        wins = beats(value, best)
        best = tl.where(wins, value, best)
        code = tl.where(wins, step, code)
    tl.store(best_values + at, best)
    tl.store(best_steps + at, code)


def copy_boxes(source: Tensor, ones: Tensor, sums: Tensor, box: Sequence[int], steps: int) -> None:
    """Fill `sums` with one program per row. Each program copies and sums `steps` boxes.

    Args:
        source: (N, H, W, C), contiguous; viewed as a matrix (N * H * W, C) if the box has two axes.
        ones: (ROWS, C), the dtype of `source`.
        sums: (programs, pixels of a box), float32.
        box: (images, rows, columns, C) or (pixels, C); must divide the sizes of the source.
    """
    source = source.flatten(0, 2) if len(box) == 2 else source
    counts = tuple(size // block for size, block in zip(source.shape, box, strict=True))
    boxes, left = (
        tma_descriptor(source, source.shape, source.stride(), box),
        tma_descriptor(ones, ones.shape, ones.stride(), ones.shape),
    )
    constants: dict[str, Any] = {"BOX": tuple(box), "COUNTS": counts, "ROWS": ROWS}
    launch.launch(_copy_boxes_kernel, len(sums), boxes, left, sums, steps, **constants, stages=STAGES, device=source.device)


def compare_select(start: Tensor, slope: Tensor, values: Tensor, codes: Tensor, steps: int) -> None:
    """Fill `values` (float32) with the maxima of start + slope * step for step < steps, and `codes` (int32) with their steps.

    All four tensors have the same number of elements, a multiple of LANES.
    """
    programs, tensors = start.numel() // LANES, (start, slope, values, codes)
    launch.launch(_compare_select_kernel, programs, *tensors, steps, LANES=LANES, device=start.device)


class Work(NamedTuple):
    """A launch to time. The elements of `result` must sum to `wanted`.

    `amount` is in bytes for the unit "bytes/s", and elements times steps for "instructions/s".
    """

    call: Call
    amount: float
    unit: str
    result: Tensor
    wanted: Tensor


def works(device: str, multiprocessors: int) -> Iterator[tuple[str, Work]]:
    """Yield the launches by name. All values are small integers, so that every sum is exact."""
    source = torch.randint(0, 4, SOURCE, device=device).half()
    ones = torch.ones(ROWS, SOURCE[-1], dtype=torch.half, device=device)
    for name, box in BOXES.items():
        sums = torch.empty(COPY_PROGRAMS * multiprocessors, math.prod(box[:-1]), device=device)
        visits = len(sums) * COPIES * math.prod(box) // source.numel()  # per element
        call = functools.partial(copy_boxes, source, ones, sums, box, COPIES)
        yield (
            f"L2 to shared memory, {name}",
            Work(call, visits * source.nbytes, "bytes/s", sums, source.double().sum() * visits),
        )

    start, slope = torch.randint(-3, 4, (2, COMPARE_PROGRAMS * multiprocessors * LANES), device=device).float()
    values, codes = torch.empty_like(start), torch.empty_like(start, dtype=torch.int32)
    wanted = torch.maximum(start, start + slope * (STEPS - 1)).double().sum()
    call = functools.partial(compare_select, start, slope, values, codes, STEPS)
    yield "compare and select", Work(call, start.numel() * (STEPS - 1), "instructions/s", values, wanted)


def rates(machine: Machine) -> dict[str, Any]:
    """Measure the rates of a GPU. Check the results of both kernels before timing them.

    Returns:
        "multiprocessors": their number.
        "compares": comparisons and selections of compare_select per element and step, counted in its machine code; in the
            interpreter 4, as in the source.
        "rates": a list of dicts. "value" is the median for the whole GPU, in "unit"; "low" and "high" are the quartiles, None
            for memory and products. "per_multiprocessor" is the value per multiprocessor and nanosecond. In the same unit,
            "assumed" is the rate assumed by the tile rules. "at_most", for L2 only, is the copy rate at which the products in
            copy_boxes become the bottleneck. Both may be None. A warp instruction counts as 32.

    Raises:
        RuntimeError: a kernel's result is wrong.
    """
    on_gpu = machine.device == "cuda"
    multiprocessors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count if on_gpu else 1
    products = {arithmetic: machine.product_rate(arithmetic) for arithmetic in registry.PRODUCTS}
    measured = {"memory copy": ("bytes/s", [machine.copy_rate()])}
    measured |= {f"{arithmetic} products": ("operations/s", [rate]) for arithmetic, rate in products.items()}

    compares = 4.0
    timed = dict(works(machine.device, multiprocessors))
    for name, work in timed.items():
        with recorded() as launched:
            work.call()
        if work.result.double().sum() != work.wanted:
            raise RuntimeError(f"{name}: the result is wrong")
        if launched and work.unit == "instructions/s":
            compares = compares_of(launched[0].compiled)
    for name, spread in interleaved({name: [work.call] for name, work in timed.items()}, machine.clock).items():
        amount = timed[name].amount * (compares if timed[name].unit == "instructions/s" else 1)
        measured[name] = timed[name].unit, [amount / seconds for seconds in (spread.median, spread.high, spread.low)]

    found, assumed, each = [], assumed_rates(), 1e9 * multiprocessors
    for name, (unit, (value, *quartiles)) in measured.items():
        low, high = quartiles or (None, None)
        is_l2 = name.startswith("L2")
        found.append({
            "name": name, "unit": unit, "value": value, "low": low, "high": high, "per_multiprocessor": value / each,
            "assumed": assumed["L2"] if is_l2 else assumed.get(name),
            # Each element of a box has 2 bytes and takes 2 * ROWS operations.
            "at_most": products["fp16"] / ROWS / each if is_l2 else None,
        })  # fmt: skip
    return {"multiprocessors": multiprocessors, "compares": compares, "rates": found}


def assumed_rates() -> dict[str, float]:
    """Return the assumptions of the tile rules, per multiprocessor and nanosecond: bytes from L2, and product operations.

    Derive them from `_wave_time` of tuning.py: its time for a small tile is limited by copies, for a large tile by products. No
    rule assumes a rate for memory, for float32 products without TF32, or for comparisons.
    """
    small, large = (64, 64), (4096, 4096)
    found = {"L2": sum(small) * 2 / tuning._wave_time(*small, small, itemsize=2)}
    for arithmetic, itemsize in {"bf16": 2, "fp16": 2, "tf32": 4}.items():
        found[f"{arithmetic} products"] = 2 * math.prod(large) / tuning._wave_time(*large, large, itemsize)
    return found


def loop_of(instructions: Sequence[Instruction], name: str) -> Counter[str]:
    """Return the instructions of the innermost loop that contains an instruction `name`."""
    branches = [(int(i.operands.split()[-1], 16), i.address) for i in instructions if i.name == "BRA"]
    wanted = [i.address for i in instructions if i.name.split(".")[0] == name]
    _, first, last = min((last - first, first, last) for first, last in branches for at in wanted if first <= at < last)
    return Counter(i.name for i in instructions if first <= i.address <= last)


def compares_of(binary: Any) -> float:
    """Return the comparisons and selections of compare_select per element and step, that is, per addition."""
    loop = loop_of(read_sass(binary.asm["cubin"]), "FADD")
    return sum(count for name, count in loop.items() if name.split(".")[0] in COMPARES) / loop["FADD"]


def compiled(architecture: str = "sm_90") -> dict[str, dict[str, Any]]:
    """Compile the launches without a GPU.

    Returns:
        By name: "registers" and "spilled" bytes per thread, "shared" bytes per program, "loop", the machine instructions of one
        iteration, and "products", the TTGIR loops with a product, as read by machine_code.py.
    """
    triton.runtime.driver.set_active(Driver(architecture))
    binaries: list[Any] = []
    with intercepted(lambda k, _, args, named: binaries.append(k.warmup(*args, grid=(1,), **named)), architecture):
        names = [(name, work.call())[0] for name, work in works("meta", 1)]
    found: dict[str, dict[str, Any]] = {}
    for name, binary in zip(names, binaries, strict=True):
        code, products = read_cubin(binary.asm["cubin"], binary.asm["ptx"]), read_loops(binary.asm["ttgir"])
        found[name] = {
            "registers": code.registers, "spilled": code.spilled, "shared": binary.metadata.shared,
            "loop": loop_of(read_sass(binary.asm["cubin"]), "UTMALDG" if products else "FADD"),
            "products": [loop._asdict() for loop in products],
        }  # fmt: skip
    return found


def lines_of(result: dict[str, Any]) -> Iterator[str]:
    """Yield a table of the rates, or of the compiled kernels."""
    if "rates" in result:
        yield f"{'':46}{'per second':>24}{'per ns, multiprocessor':>25}{'assumed':>9}{'at most':>9}"
        for of in result["rates"]:
            whole = f"{of['value'] / 1e12:.2f} T {of['unit'].removesuffix('/s')}"
            assumed, at_most = (f"{of[key]:.1f}" if of[key] else "-" for key in ("assumed", "at_most"))
            yield f"{of['name']:46}{whole:>24}{of['per_multiprocessor']:25.1f}{assumed:>9}{at_most:>9}"
    else:
        for name, of in result.items():
            yield f"{name}: {of['registers']} registers, {of['spilled']} bytes spilled, {of['shared']} bytes of shared memory"
            yield "    loop: " + ", ".join(f"{count} {instruction}" for instruction, count in of["loop"].most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.time.rates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the rates to this file")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; time nothing")
    args = parser.parse_args(arguments)
    if not (args.compile_only or torch.cuda.is_available()):
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    result = compiled() if args.compile_only else {"environment": runs.environment(), **rates(Machine.gpu())}
    print(*lines_of(result), sep="\n")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
