"""Compiles every kernel ahead of time, without a GPU, and prints what came of it: `make compile-report`.

The real launchers run on meta tensors of the shapes below, and what they launch is compiled with the tile it has on each
architecture; a row is a launch that compiles like no other. Fails on spilled registers, on more shared memory than there
is, and on a kernel or a tile that no shape reaches.

On sm_90 the launches of what networks compute are held to the row that bench/compiled/ has of them: registers, spills, shared
memory, how many of the instructions that read and write global memory move 16 bytes, and how many instructions the program has
for each element that a thread computes. Fails when one gets worse; `--record` writes the rows anew, for a change that is meant.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported

import argparse
import itertools
import math
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench.machine_code import SHARED_MEMORY, Code, Driver, Program, Row, held, read_amdgcn, read_cubin, read_sass
from bench.shapes import ARITHMETIC, HELD, cases
from trinn.kernels import launch, tuning

# To run one more program side by side, ptxas leaves registers unused and puts one or two values aside. That is its choice.
# Where it had no register left, or puts more aside, the tile is too large.
PUT_ASIDE = 32  # bytes a thread


class Job(NamedTuple):
    """A launch to compile."""

    architecture: str
    case: str
    dtype: torch.dtype
    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    held: bool

    @property
    def elements(self) -> float:
        """How many elements of its tile a thread computes."""
        blocks = {n: v for n, v in self.constants.items() if n.startswith("BLOCK") and n != "BLOCK_K"}
        return math.prod([*blocks.values(), *self.constants.get("TILE", ())]) / (32 * self.constants["num_warps"])

    @property
    def words(self) -> tuple[str, str, str]:
        """The kernel, the case, and blocks, warps and stages."""
        kernel = f"{self.kernel.__module__.removeprefix('trinn.kernels.')}.{self.kernel.__name__}"
        blocks = [value for name, value in self.constants.items() if name.startswith("BLOCK")]
        blocks += self.constants.get("TILE", ())
        warps, stages = self.constants["num_warps"], self.constants["num_stages"]
        return kernel, self.case, f"{'x'.join(map(str, blocks))} w{warps} s{stages}"


def jobs_of(architecture: str, pattern: str) -> list[Job]:
    """The launches of the cases whose label the pattern fits; of those that compile to the same, the first."""
    triton.runtime.driver.set_active(Driver(architecture))
    jobs: dict[Any, Job] = {}
    for name, arithmetic, channels_last, passes in cases():
        label = f"{name}, {arithmetic}{', channels_last' if channels_last else ''}"
        if not re.search(pattern, label):
            continue
        dtype, precision = ARITHMETIC[arithmetic]
        held = architecture == "sm_90" and arithmetic in ("fp16", "tf32") and name in HELD
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision

        def new(*shape: int, dtype: torch.dtype = dtype, channels_last: bool = channels_last) -> Tensor:
            order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
            return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)

        with launch.observed(remembering(jobs, architecture, label, dtype, held), architecture):
            passes(new)
    return list(jobs.values())


def remembering(
    jobs: dict[Any, Job], architecture: str, case: str, dtype: torch.dtype, held: bool
) -> Callable[[Any, Any, Any], None]:
    """Takes note of a launch that compiles like none before it: what `launch.observed` is to call."""

    def observe(kernel: Any, args: Any, constants: Any) -> None:
        def remember(*, key: str, **_: Any) -> bool:
            jobs.setdefault((kernel, key), Job(architecture, case, dtype, kernel, args, constants, held))
            return True  # which keeps Triton from compiling now

        triton.knobs.runtime.jit_cache_hook = remember
        kernel.device_caches.clear()
        kernel.warmup(*args, grid=(1,), **constants)
        triton.knobs.runtime.jit_cache_hook = None

    return observe


def code_of(job: Job) -> Code | str:
    """What came of a launch, or why nothing did."""
    triton.runtime.driver.set_active(Driver(job.architecture))
    job.kernel.device_caches.clear()
    try:
        binary = job.kernel.warmup(*job.args, grid=(1,), **job.constants)
    except Exception as error:  # whatever a compiler may raise
        return f"does not compile: {error}"
    read = read_amdgcn(binary.asm["amdgcn"]) if "amdgcn" in binary.asm else read_cubin(binary.asm["cubin"], binary.asm["ptx"])
    program = read_sass(binary.asm["cubin"]) if job.held else None
    return read._replace(shared=binary.metadata.shared, program=program)


def fault_of(job: Job, code: Code | str) -> str | None:
    """What must not be."""
    if isinstance(code, str):
        return code
    most_registers = min(255, 65536 // (32 * job.constants["num_warps"]))
    if code.spilled > PUT_ASIDE or (code.spilled and code.registers >= most_registers):
        return f"spills {code.spilled} bytes a thread"
    if code.shared > SHARED_MEMORY[job.architecture]:
        return f"needs {code.shared} bytes of shared memory, of {SHARED_MEMORY[job.architecture]}"
    return None


def row_of(job: Job, code: Code) -> Row:
    """What is held of a launch."""
    program = code.program or Program(0, 0, 0, 0, 0)
    loads, stores = (program.wide_loads, program.loads), (program.wide_stores, program.stores)
    return Row(code.registers, code.spilled, code.shared, *loads, *stores, round(program.instructions / job.elements, 1))


def named(rows: Iterator[tuple[Job, Row]]) -> dict[str, Row]:
    """Rows by kernel and case; where one launches a kernel in several ways, these are numbered."""
    found: dict[str, Row] = {}
    for job, row in rows:
        kernel, case, _ = job.words
        ways = (f"{kernel}, {case}{f' ({i})' if i else ''}" for i in itertools.count())
        found[next(way for way in ways if way not in found)] = row
    return found


def unreached(jobs: Sequence[Job]) -> Iterator[str]:
    """Kernels that no job launches, and tiles of tuning.py that none has."""
    modules = [module for name, module in sys.modules.items() if name.startswith("trinn.kernels.")]
    there = {id(value): value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
    for kernel in set(there) - {id(job.kernel) for job in jobs}:
        yield f"{there[kernel].__module__}.{there[kernel].__name__} is launched by no case"
    sizes = [2**i for i in range(13)]
    for architecture in dict.fromkeys(job.architecture for job in jobs):
        ours = [job for job in jobs if job.architecture == architecture]
        for dtype in (torch.float16, torch.float32, torch.float64):  # bfloat16 has float16's
            names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
            reached = {tuple(job.constants.get(name) for name in names) for job in ours if job.dtype == dtype}
            for m, n, k in itertools.product(sizes, repeat=3):
                for name, scattered in (("linear", False), ("conv2d", False), ("wgrad", True)):
                    tile = tuning.guessed_tile(tuning.Product(name, m, n, k, dtype, "ieee", scattered), architecture)
                    if tile not in reached:
                        reached.add(tile)
                        yield f"{tile} of {dtype} on {architecture} is launched by no case"
        for block in {tuning.elementwise_block(size) for size in sizes} - {job.constants.get("BLOCK") for job in ours}:
            yield f"an elementwise block of {block} on {architecture} is launched by no case"


_jobs: list[Job] = []  # what the processes that compile have in common


def _code_of_number(number: int) -> Code | str:
    return code_of(_jobs[number])


def line_printer(words: Sequence[Sequence[str]]) -> Callable[[Sequence[str], Sequence[object]], None]:
    """Prints a line of a table that has such words on the left and numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]

    def print_line(left: Sequence[str], right: Sequence[object]) -> None:
        padded = [word.ljust(width) for word, width in zip(left, widths, strict=True)]
        print("  ".join([*padded, *(f"{number:>9}" for number in right)]), flush=True)

    return print_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=SHARED_MEMORY, default=list(SHARED_MEMORY), metavar="NAME")
    parser.add_argument("--cases", default="", metavar="REGEX", help="these alone; kernels and tiles may then be missing")
    parser.add_argument("--record", action="store_true", help="hold the launches of all cases to these rows from now on")
    parser.add_argument("--registers", type=int, metavar="N", help="all a thread may have, on NVIDIA: what would spill?")
    args = parser.parse_args()

    start = time.monotonic()
    for architecture in args.architectures:
        _jobs.extend(jobs_of(architecture, args.cases))
    for job in _jobs:
        if args.registers and job.architecture.startswith("sm_"):
            job.constants["maxnreg"] = args.registers
    if not _jobs:
        parser.error("no case fits")
    faults = [] if args.cases else list(unreached(_jobs))

    rows: list[tuple[Job, Row]] = []
    print_line = line_printer([job.words for job in _jobs])
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        codes = pool.imap(_code_of_number, range(len(_jobs)), chunksize=4)
        for architecture, jobs in itertools.groupby(_jobs, lambda job: job.architecture):
            print_line((architecture, "", ""), ("registers", "spilled B", "shared B", "tensor", "load bits"))
            for job in jobs:
                code = next(codes)
                print_line(job.words, code[:5] if isinstance(code, Code) else "-" * 5)
                if job.held and isinstance(code, Code):
                    rows.append((job, row_of(job, code)))
                if fault := fault_of(job, code):
                    faults.append(f"{architecture}  {'  '.join(job.words)}  {fault}")
            print()

    if rows and not (args.cases or args.registers):  # cases left out may change which is the first to compile like that
        faults += held(named(iter(rows)), args.record)
    print(f"{len(_jobs)} compiled with Triton {triton.__version__} in {time.monotonic() - start:.0f} s, {len(faults)} faults")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
