"""Compile every kernel ahead of time, without a GPU, and print its resource usage: `make compile-report`.

The real launchers run on meta tensors of the shapes in shapes.py. The report compiles each launched kernel with its tile on
each architecture, and prints one row per distinct compilation. It fails on spilled registers, on too much shared memory, and on
a kernel or a tile that no shape launches. It also fails when Hopper's matrix units would wait for anything other than TMA
(Hopper's copy engine); machine_code.py has the criteria.

On sm_90 the report compares the launches of typical networks with their rows in bench/compiled/. A row has registers, spills,
shared memory, the number of global loads and stores, the number of 16-byte ones among them, and the number of instructions:
executed per element of the largest tensor, or, in TMA kernels, present per element of the tile. The report fails when a number
gets worse; `--record` rewrites the rows after an intended change. bench/limits.py adds limits for memory-bound operators.
"""

from bench import compiled_only  # noqa: F401  # before triton  # isort: skip

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.executed import executed
from bench.machine_code import SHARED_MEMORY, Code, Driver, Program, Row, count, held, read_amdgcn, read_cubin, read_sass, waits
from bench.shapes import ARITHMETIC, HELD, Case, Passes, cases, convolutions, tma_shapes, wgrad
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings

# Tolerated spill. ptxas may spill one or two values although registers are left, to fit one more program on a multiprocessor.
# If the registers are used up, or the spill is larger, the tile is too large.
PUT_ASIDE = 32  # bytes per thread

SIZES = [2**i for i in range(13)]


class Job(NamedTuple):
    """A launch to compile."""

    architecture: str
    case: str  # label, with arithmetic and memory format
    dtype: torch.dtype
    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]  # keyword arguments: tl.constexpr values, num_warps and num_stages
    held: bool  # whether it has a row in bench/compiled/

    @property
    def elements(self) -> float:
        """Elements per thread: of the largest tensor or, in TMA kernels, of the tile."""
        warps = self.constants["num_warps"]
        if not self.uses_tma:
            return max(arg.numel() for arg in self.args if isinstance(arg, Tensor)) / (32 * warps * self.programs)
        blocks = [v for n, v in self.constants.items() if n.startswith("BLOCK") and n != "BLOCK_K"]
        return self.constants.get("TAPS", 1) * math.prod([*blocks, *self.constants.get("BOX", ())]) / (32 * warps)

    @property
    def uses_tma(self) -> bool:
        """Whether TMA loads the operands of its products."""
        return bool(tma_traits(self.args, self.constants))

    @property
    def words(self) -> tuple[str, str, str]:
        """The label of the launch: kernel, case, and blocks, warps and stages."""
        blocks = [value for name, value in self.constants.items() if name.startswith("BLOCK")]
        blocks += [size for size in self.constants.get("TILE", ()) if type(size) is int]
        warps, stages = self.constants["num_warps"], self.constants["num_stages"]
        box = f" box {'x'.join(map(str, self.constants['BOX']))}" if "BOX" in self.constants else ""
        taps = f" taps {self.constants['TAPS']}" if self.uses_tma and "TAPS" in self.constants else ""
        return self.kernel.__name__, self.case, f"{'x'.join(map(str, blocks))} w{warps} s{stages}{box}{taps}"


def jobs_of(architecture: str, pattern: str) -> list[Job]:
    """The launches of all cases with a label that matches the pattern, without repeated compilations.

    On sm_90, add convolutions of `shapes.convolutions` that have a TMA trait (see tma_traits) of no earlier case.
    """
    triton.runtime.driver.set_active(Driver(architecture))
    jobs: dict[Any, Job] = {}
    is_hopper, seen = architecture == "sm_90", set[str]()

    def add(case: Case, tile: tuning.GemmTile | None = None, only_new_traits: bool = False) -> None:
        name, arithmetic, channels_last, passes = case
        label = f"{name}, {arithmetic}{', channels_last' if channels_last else ''}"
        if not re.search(pattern, label):
            return
        is_held = is_hopper and arithmetic in ("fp16", "tf32") and name in HELD
        remember = remembering(jobs, architecture, label, ARITHMETIC[arithmetic][0], is_held)

        def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
            traits = {f"{arithmetic} {trait}" for trait in tma_traits(args, constants)}
            if not only_new_traits or traits - seen:
                remember(kernel, programs, args, constants)
            seen.update(traits)

        launched(passes, arithmetic, channels_last, architecture, observe, tile)

    for case in cases(architecture):
        add(case)
    for case, tile in measured_cases() if is_hopper else ():
        add(case, tile)
    for case in convolutions() if is_hopper else ():
        add(case, only_new_traits=True)
    return list(jobs.values())


def tma_traits(args: Sequence[Any], constants: dict[str, Any]) -> list[str]:
    """Labels of the tile and of the operand loads of a TMA convolution, which determine its code. Empty for other kernels."""
    if not any(isinstance(arg, TensorDescriptor) for arg in args):
        return []
    if "BOX" in constants:
        result, means = args[4:6]
        planar, relu = (" " + name if constants[name.upper()] else "" for name in ("planar", "relu"))
        stored = f"{' channels first' if result.stride(1) != 1 else ''}{' with statistics' if means is not None else ''}"
        long = " ".join(axis for axis, size in constants["BOX"]._asdict().items() if size > 1)
        name = "dgrad" if constants["ADJOINT"] else "fprop"
        return [_box_tile(constants) + planar + stored, f"{name}{planar}{relu} of {long}, every {constants['SPAN']}"]
    runs = "images innermost" if constants["IMAGES_LAST"] else "images" if constants["ALONG_IMAGES"] else "columns"
    channels = "few" if constants["PITCH"] else "all"
    return [_box_tile(constants), f"wgrad of {constants['BLOCK_K']} {runs}, every {constants['SPAN']}, {channels} channels"]


def _box_tile(constants: dict[str, Any]) -> str:
    """The tile of a TMA convolution, as text: it determines registers and shared memory."""
    m, warps, stages = constants["BLOCK_M"], constants["num_warps"], constants["num_stages"]
    if "BOX" in constants:
        name, sizes = "dgrad" if constants["ADJOINT"] else "fprop", f"{m}x{math.prod(constants['BOX'])}x{constants['BLOCK_K']}"
    else:
        name, sizes = "wgrad", f"{m}x{constants['BLOCK_N']}, {constants['TAPS']} taps,"
    return f"{name} by {sizes} w{warps} s{stages}"


def launched(
    passes: Passes, arithmetic: str, channels_last: bool, architecture: str, observe: Callable[[Any, int, Any, Any], None],
    tile: tuning.GemmTile | None = None,
) -> None:  # fmt: skip
    """Call `observe` with each launch of `passes`, with `tile` or the tiles of tuning.py."""
    dtype, precision = ARITHMETIC[arithmetic]
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision

    def new(*shape: int, dtype: torch.dtype = dtype, channels_last: bool = channels_last) -> Tensor:
        order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)

    with settings.changed(tile_of=tile and (lambda *_: tile)), intercepted(observe, architecture):
        passes(new)


def measured_cases() -> list[tuple[Case, tuning.GemmTile]]:
    """TMA convolutions with the tiles measured on GPUs."""
    arithmetics = {"bfloat16 ieee": "bf16", "float16 ieee": "fp16", "float32 tf32": "tf32", "float32 bf16x6": "fp32"}
    found: list[tuple[Case, tuning.GemmTile]] = []
    for path in sorted(tuning.TILES.glob("*.json")):
        gpu = json.loads(path.read_text())["gpu"]
        for kind, tile in sorted({(like.rsplit(" ", 3)[0], tile) for like, tile in tuning.measured_tiles(gpu).items()}):
            if kind.startswith("tma "):
                _, kernel, arithmetic = kind.split(" ", 2)
                of_kind = tma_shapes(kernel, tile.m, tile.n).items()
                found += [((f"{gpu}, {name}", arithmetics[arithmetic], True, passes), tile) for name, passes in of_kind]
    return found


def remembering(
    jobs: dict[Any, Job], architecture: str, case: str, dtype: torch.dtype, held: bool
) -> Callable[[Any, int, Any, Any], None]:
    """The callback for `intercepted`: adds a Job for each launch with a new compilation key."""

    def observe(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        def remember(*, key: str, **_: Any) -> bool:
            jobs.setdefault((kernel, key), Job(architecture, case, dtype, kernel, programs, args, constants, held))
            return True  # stops Triton from compiling now

        triton.knobs.runtime.jit_cache_hook = remember
        kernel.device_caches.clear()
        kernel.warmup(*args, grid=(1,), **constants)
        triton.knobs.runtime.jit_cache_hook = None

    return observe


def code_of(job: Job) -> Code | str:
    """The compiled code of a launch, or the reason why there is none."""
    triton.runtime.driver.set_active(Driver(job.architecture))
    job.kernel.device_caches.clear()
    try:
        binary = job.kernel.warmup(*job.args, grid=(1,), **job.constants)
    except Exception as error:  # a compiler may raise anything
        return f"does not compile: {error}"
    read = read_amdgcn(binary.asm["amdgcn"]) if "amdgcn" in binary.asm else read_cubin(binary.asm["cubin"], binary.asm["ptx"])
    read = read._replace(shared=binary.metadata.shared)
    if job.held or job.uses_tma:
        instructions = read_sass(binary.asm["cubin"])
        program = count(instructions)
        if not job.uses_tma:
            try:
                done = executed(binary, job.programs, job.args, instructions)
            except ValueError as error:
                return f"the executed instructions are unknown: {error}"
            program = program._replace(instructions=done.instructions)
        read = read._replace(program=program)
    if job.uses_tma:
        read = read._replace(waits=waits(binary.asm["ttgir"], job.constants["num_stages"], instructions))
    return read


def fault_of(job: Job, code: Code | str) -> str | None:
    """The first fault of a compiled launch, if any."""
    if isinstance(code, str):
        return code
    most_registers = min(255, 65536 // (32 * job.constants["num_warps"]))
    if code.spilled > PUT_ASIDE or (code.spilled and (job.uses_tma or code.registers >= most_registers)):
        return f"spills {code.spilled} bytes per thread"
    if code.shared > SHARED_MEMORY[job.architecture]:
        return f"needs {code.shared} bytes of shared memory, of {SHARED_MEMORY[job.architecture]}"
    return "; ".join(code.waits) or None


def row_of(job: Job, code: Code) -> Row:
    """The row of a launch in bench/compiled/."""
    program = code.program or Program(0, 0, 0, 0, 0)
    loads, stores = (program.wide_loads, program.loads), (program.wide_stores, program.stores)
    return Row(code.registers, code.spilled, code.shared, *loads, *stores, round(program.instructions / job.elements, 1))


def named(rows: Iterator[tuple[Job, Row]]) -> dict[str, Row]:
    """Rows by kernel and case, numbered if a case launches a kernel in several ways."""
    found: dict[str, Row] = {}
    for job, row in rows:
        kernel, case, _ = job.words
        ways = (f"{kernel}, {case}{f' ({i})' if i else ''}" for i in itertools.count())
        found[next(way for way in ways if way not in found)] = row
    return found


def unreached(jobs: Sequence[Job]) -> Iterator[str]:
    """Faults for kernels, and for tiles of tuning.py, without a job."""
    architectures = list(dict.fromkeys(job.architecture for job in jobs))
    if "sm_90" in architectures:  # sm_90 uses every kernel
        modules = [module for name, module in sys.modules.items() if name.startswith("trinn.kernels.")]
        there = {id(value): value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
        for kernel in set(there) - {id(job.kernel) for job in jobs}:
            yield f"{there[kernel].__module__}.{there[kernel].__name__} is launched by no case"
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
                        yield f"{tile} of {dtype} on {architecture} is launched by no case"
        for block in {tuning.elementwise_block(size) for size in SIZES} - {job.constants.get("BLOCK") for job in ours}:
            yield f"an elementwise block of {block} on {architecture} is launched by no case"
    if "sm_90" in architectures:
        ours = [job for job in jobs if job.architecture == "sm_90" and job.uses_tma]
        for arithmetic in ("fp16", "tf32", "fp32"):
            unused = tma_tiles_unreached(ours, arithmetic)
            yield from (f"{tile} of {arithmetic} through TMA is launched by no case" for tile in unused)


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
        wanted |= {_box_tile(sizes | {"ADJOINT": adjoint}) for adjoint in (False, True)}

    def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        if "BLOCK_N" in constants and tma_traits(args, constants):
            wanted.add(_box_tile(constants))

    # Together these channels and taps, of one row, make wgrad derive every tile. Short sums have fewer stages.
    sums = (24, 8) if arithmetic == "fp16" else (24,)
    for pixels, m, c, taps in itertools.product(sums, (64, 128), range(32, 648, 8), range(1, 12)):
        launched(wgrad((64, c, 1, pixels + taps - 1), (m, c, 1, taps)), arithmetic, True, "sm_90", observe)
    yield from sorted(wanted - set(map(_box_tile, ours)))


_jobs: list[Job] = []  # forked worker processes inherit it


def _code_of_number(number: int) -> Code | str:
    return code_of(_jobs[number])


def line_printer(words: Sequence[Sequence[str]]) -> Callable[[Sequence[str], Sequence[object]], None]:
    """A function that prints a table row: words on the left, padded to the widest of `words`, and numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]

    def print_line(left: Sequence[str], right: Sequence[object]) -> None:
        padded = [word.ljust(width) for word, width in zip(left, widths, strict=True)]
        print("  ".join([*padded, *(f"{number:>9}" for number in right)]), flush=True)

    return print_line


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", choices=SHARED_MEMORY, default=list(SHARED_MEMORY), metavar="NAME",
                        help=f"{', '.join(SHARED_MEMORY)}; default: all")  # fmt: skip
    parser.add_argument("--cases", default="", metavar="REGEX", help="compile these cases only; do not require all kernels")
    parser.add_argument("--record", action="store_true", help="rewrite the rows in bench/compiled/")
    parser.add_argument("--limits", action="store_true", help="compile only the launches in bench/limits.py")
    parser.add_argument("--registers", type=int, metavar="N", help="limit registers per thread on NVIDIA GPUs, to find spills")
    args = parser.parse_args()

    start = time.monotonic()
    if args.limits:
        return _ended(*_limits(args.cases), start)
    for architecture in args.architectures:
        _jobs.extend(jobs_of(architecture, args.cases))
    for job in _jobs:
        if args.registers and job.architecture.startswith("sm_"):
            job.constants["maxnreg"] = args.registers
    if not _jobs:
        parser.error("no case matches")
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

    if rows and not (args.cases or args.registers):  # rows are complete only with all cases
        faults += held(named(iter(rows)), args.record)
    count = len(_jobs)
    if "sm_90" in args.architectures and not (args.cases or args.registers):
        more, missed = _limits()
        count, faults = count + more, [*faults, *missed]
    return _ended(count, faults, start)


def _limits(pattern: str = "") -> tuple[int, list[str]]:
    from bench import limits  # limits imports this module

    return limits.check(pattern)


def _ended(count: int, faults: Sequence[str], start: float) -> int:
    print(f"{count} compiled with Triton {triton.__version__} in {time.monotonic() - start:.0f} s, {len(faults)} faults")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
