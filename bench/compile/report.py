"""Compile every kernel ahead of time, without a GPU, and print its resource usage: `make compile-report`.

The report compiles the launches of the rows of bench/shapes.py on each architecture, and prints a line per compilation.
It fails on spilled registers, on too much shared memory, and on a kernel or a tile that no row launches. It also fails when
Hopper's matrix units would wait for anything other than TMA (Hopper's copy engine); code.py has the criteria.

On sm_90 the report compares the launches of typical networks with their recorded figures (records.py). It fails when a number
gets worse; `--record` rewrites the figures after an intended change. limits.py has limits for memory-bound operators.
"""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton

from bench.compile import limits
from bench.compile.code import PUT_ASIDE, SHARED_MEMORY, Code, read_amdgcn, read_cubin, read_sass, waits
from bench.compile.launches import (
    Job,
    in_parallel,
    jobs_of,
    launched,
    line_printer,
    tma_tile,
    uses_tma,
)  # sets TRITON_INTERPRET, so it comes first  # isort: skip
from bench.compile.ptx import accesses, executed
from bench.compile.records import Row, compared, named
from bench.compile.tiles import wgrad
from bench.shapes import ARITHMETIC
from trinn.kernels.runtime import tuning

SIZES = [2**i for i in range(13)]


class Compiled(NamedTuple):
    """A compiled launch."""

    code: Code
    waits: tuple[str, ...] = ()  # faults: why Hopper's matrix units would wait
    row: Row | None = None


def compiled(job: Job) -> Compiled | str:
    """Compile a launch. Return its properties, or the reason why there are none."""
    try:
        binary = job.compiled()
    except Exception as error:  # a compiler may raise anything
        return f"does not compile: {type(error).__name__}: {error}"
    if "amdgcn" in binary.asm:
        return Compiled(read_amdgcn(binary.asm["amdgcn"], binary.metadata.shared))
    code = read_cubin(binary.asm["cubin"], binary.asm["ptx"], binary.metadata.shared)
    if not (job.held or job.uses_tma):
        return Compiled(code)
    faults: tuple[str, ...] = ()
    if job.uses_tma:
        instructions = read_sass(binary.asm["cubin"])
        faults, count = waits(binary.asm["ttgir"], job.constants["num_stages"], instructions), float(len(instructions))
    else:
        try:
            count = executed(binary, job.programs, job.args).instructions
        except ValueError as error:
            return f"the executed instructions are unknown: {error}"
    widths = accesses(binary.asm["ptx"])
    loads, stores = (sum(n for (kind, size), n in widths.items() if kind == what and size < 16) for what in ("ld", "st"))
    return Compiled(code, faults, Row(*code[:3], loads, stores, round(count / job.elements, 1)))


def fault_of(job: Job, found: Compiled | str) -> str | None:
    """The first fault of a compiled launch, if any."""
    if isinstance(found, str):
        return found
    code, most_registers = found.code, min(255, 65536 // (32 * job.constants["num_warps"]))
    if code.spilled > PUT_ASIDE or (code.spilled and (job.uses_tma or code.registers >= most_registers)):
        return f"spills {code.spilled} bytes per thread"
    if code.shared > SHARED_MEMORY[job.architecture]:
        return f"needs {code.shared} bytes of shared memory, of {SHARED_MEMORY[job.architecture]}"
    return "; ".join(found.waits) or None


def unreached(jobs: Sequence[Job]) -> Iterator[str]:
    """Faults for kernels, and for tiles of tuning.py, without a job."""
    architectures = list(dict.fromkeys(job.architecture for job in jobs))
    for architecture in architectures:
        ours = [job for job in jobs if job.architecture == architecture]
        for dtype in (torch.float16, torch.float32, torch.float64):  # bfloat16 has the tiles of float16
            names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
            reached = {tuple(job.constants.get(name) for name in names) for job in ours if job.dtype == dtype}
            for m, n, k in itertools.product(SIZES, repeat=3):
                for name, scattered in (("linear", False), ("conv2d", False), ("wgrad", True)):
                    tile = tuning.default_tile(tuning.Gemm(name, m, n, k, dtype, "ieee", scattered), architecture)
                    if tile not in reached:
                        reached.add(tile)
                        yield f"{tile} of {dtype} on {architecture} is launched by no row"
        for block in {tuning.elementwise_block(size) for size in SIZES} - {job.constants.get("BLOCK") for job in ours}:
            yield f"an elementwise block of {block} on {architecture} is launched by no row"
    if "sm_90" in architectures:  # sm_90 uses every kernel
        modules = [module for name, module in sys.modules.items() if name.startswith("trinn.kernels.")]
        there = {id(value): value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
        for kernel in set(there) - {id(job.kernel) for job in jobs}:
            yield f"{there[kernel].__module__}.{there[kernel].__name__} is launched by no row"
        ours = [job for job in jobs if job.architecture == "sm_90" and job.uses_tma]
        for arithmetic in ("fp16", "tf32", "fp32"):
            unused = tma_tiles_unreached(ours, arithmetic)
            yield from (f"{tile} of {arithmetic} through TMA is launched by no row" for tile in unused)


def tma_tiles_unreached(jobs: Sequence[Job], arithmetic: str) -> Iterator[str]:
    """Tiles of TMA convolutions without a job: the tiles of tuning.py, and the tiles derived from them in wgrad."""
    # float32 without TF32 is split into bfloat16 terms.
    (dtype, precision), in_terms = ARITHMETIC[arithmetic], arithmetic == "fp32"
    ours = [job.constants for job in jobs if job.dtype == dtype and bool(job.constants["CROSS"]) == in_terms]
    wanted: set[str] = set()
    for m, n, k in itertools.product(SIZES, repeat=3):
        product = tuning.Gemm("tma conv2d", m, n, k, dtype, "bf16x6" if in_terms else precision)
        tile = tuning.default_tile(product, "sm_90")
        sizes = {"BLOCK_M": tile.m, "BOX": (tile.n,), "BLOCK_K": tile.k, "num_warps": tile.warps, "num_stages": tile.stages}
        wanted |= {tma_tile(sizes | {"ADJOINT": adjoint}) for adjoint in (False, True)}

    def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        if "BLOCK_N" in constants and uses_tma(args):
            wanted.add(tma_tile(constants))

    # Together these channels and taps, of one row, make wgrad derive every tile. Short sums have fewer stages.
    sums = (24, 8) if arithmetic == "fp16" else (24,)
    for pixels, m, c, taps in itertools.product(sums, (64, 128), range(32, 648, 8), range(1, 12)):
        launched(wgrad((64, c, 1, pixels + taps - 1), (m, c, 1, taps)), arithmetic, True, "sm_90", observe)
    yield from sorted(wanted - set(map(tma_tile, ours)))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", choices=SHARED_MEMORY, default=list(SHARED_MEMORY), metavar="NAME",
                        help=f"{', '.join(SHARED_MEMORY)}; default: all")  # fmt: skip
    parser.add_argument("--cases", default="", metavar="REGEX", help="compile these rows only; do not require all kernels")
    parser.add_argument("--kernels", action="store_true", help="compile only one launch of each kernel")
    parser.add_argument("--record", action="store_true", help="rewrite the recorded rows")
    parser.add_argument("--limits", action="store_true", help="compile only the launches with limits")
    args = parser.parse_args()

    start = time.monotonic()
    faults: list[str] = []
    jobs = [] if args.limits else [job for architecture in args.architectures for job in jobs_of(architecture, args.cases)]
    if not (args.limits or jobs):
        parser.error("no row matches")
    whole = not (args.cases or args.kernels)
    if args.kernels:
        jobs = list({(job.architecture, job.kernel): job for job in reversed(jobs)}.values())[::-1]
    rows: list[tuple[str, Row]] = []
    print_line = line_printer([job.words for job in jobs])
    for number, (job, found) in enumerate(in_parallel(compiled, jobs)):
        if number == 0 or job.architecture != jobs[number - 1].architecture:
            print_line((job.architecture, "", ""), ("registers", "spilled B", "shared B", "tensor", "load bits"))
        print_line(job.words, "-" * 5 if isinstance(found, str) else found.code)
        if job.held and not isinstance(found, str) and found.row:
            rows.append((", ".join(job.words[:2]), found.row))
        if fault := fault_of(job, found):
            faults.append(f"{job.architecture}  {'  '.join(job.words)}  {fault}")
    if jobs and whole:
        faults += unreached(jobs)
        faults += compared(named(rows), args.record) if rows else []
    count = len(jobs)
    if args.limits or "sm_90" in args.architectures and whole:
        more, missed = limits.check(args.cases)
        count, faults = count + more, faults + missed
    print(f"{count} compiled with Triton {triton.__version__} in {time.monotonic() - start:.0f} s, {len(faults)} faults")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
