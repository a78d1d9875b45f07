"""The most instructions that memory-bound operators may execute for an element, and how wide they read and write.

    python -m bench.compile_report --limits      holds the launches of the registry's cases to them, compiled for Hopper

An element is an output of a forward pass and of statistics, and a pixel of the input of a backward pass. Times are those of an
H200: of the launch's instructions, at the rate at which it issues them at full issue and at 65 % of that, which is realistic,
over that of its tensors' bytes, each read or written once. Above 1 instructions limit the launch, and not memory.
"""

import itertools
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.ahead import launches_of  # sets TRITON_INTERPRET, so it comes first  # isort: skip

import torch
import triton
from torch import Tensor

from bench import registry
from bench.compile_report import PUT_ASIDE, line_printer
from bench.executed import Executed, executed
from bench.machine_code import Code, Driver, read_cubin, read_sass
from bench.rows import LAYOUTS
from bench.timing import H200_CLOCK

BYTES_A_SECOND = 4.3e12
INSTRUCTIONS_A_SECOND = 132 * 4 * 32 * H200_CLOCK  # of threads: multiprocessors, warp instructions a clock, threads of a warp
REALISTIC = 0.65
DOUBT = 0.1


class Limit(NamedTuple):
    """For the first cases of an operator that its pattern fits; each pair is for 16 bits and float32.

    In contiguous tensors most bytes are read and written by so many elements at once, or by 16 bytes; in channels_last by 16
    bytes wherever channels are multiples of that.
    """

    op: str
    launch: str
    pattern: str
    channels_last: tuple[float, float]
    contiguous: tuple[float, float]
    read: int = 1
    written: int = 1


LIMITS = (
    Limit("max_pool2d", "forward", "LeNet", (53, 50), (49, 45)),
    Limit("max_pool2d", "forward", "pool5", (46, 44), (67, 70)),
    Limit("max_pool2d", "forward", "", (46, 44), (60, 60)),
    Limit("max_pool2d", "backward", "LeNet", (16.5, 16.5), (24, 22)),
    Limit("max_pool2d", "backward", "AlexNet", (13.5, 17), (20, 21)),  # planes of odd width
    Limit("max_pool2d", "backward", "", (13.5, 17), (17, 18), written=2),
    Limit("bilinear", "forward", "", (9.5, 8.7), (15, 14), written=8),
    Limit("bilinear", "backward", "", (47, 53), (80, 72), written=4),
    Limit("nearest", "forward", "", (2.2, 3.2), (8.5, 8.2), written=8),
    Limit("batch_norm", "statistics", "x7", (7, 7), (21, 21)),
    Limit("batch_norm", "statistics", "x14", (7, 7), (17, 17)),
    Limit("batch_norm", "statistics", "", (7, 7), (7, 7), read=8),
    Limit("batch_norm", "forward", "x7", (6, 6), (14, 14), read=8, written=8),
    Limit("batch_norm", "forward", "x14", (6, 6), (10, 10), read=8, written=8),
    Limit("batch_norm", "forward", "", (6, 6), (6, 6), read=8, written=8),
    Limit("batch_norm", "sums", "x7", (8, 8), (27, 27)),
    Limit("batch_norm", "sums", "x14", (8, 8), (25, 25)),
    Limit("batch_norm", "sums", "", (8, 8), (10, 10), read=8),
    Limit("batch_norm", "backward", "x7", (10, 10), (19, 19), read=8, written=8),
    Limit("batch_norm", "backward", "x14", (10, 10), (15, 15), read=8, written=8),
    Limit("batch_norm", "backward", "", (10, 10), (10, 10), read=8, written=8),
)
CASES = r"^(LeNet pool1 b1024|AlexNet pool. b128|ResNet stem pool|bilinear .*|nearest .*|ResNet batch norm \d+x\d+)$"

# Which launches may miss theirs, by a pattern for their words, and why. One that none of these needs is a fault too.
EXCUSED = {
    r"^ResNet batch norm (64x56|128x28|256x14|1024x14|512x7|2048x7), ": "few steps, and much before and after them",
    "^AlexNet pool5 .*16, contiguous, backward": "of the cells that cover a plane of 13 x 13, 14 % of the pixels do not exist",
}


class Held(NamedTuple):
    """A launch, and what it is held to."""

    words: str  # the case, the arithmetic, the memory format and what it computes
    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    elements: int
    most: float  # instructions for an element
    read: int  # bytes at once, at least
    written: int


class Found(NamedTuple):
    """What came of it."""

    code: Code
    executed: Executed
    instructions: float  # for an element
    over_floor: float  # the time of instructions at full issue over that of bytes
    wide: float  # the share of bytes that instructions of 16 bytes move


def held_launches(pattern: str) -> Iterator[Held]:
    """The launches of the cases, those without a tensor of the case's size left out."""
    names = [name for name in registry.CASES if re.search(CASES, name) and re.search(pattern, name)]
    for name, layout, what in itertools.product(names, LAYOUTS, ("forward", "backward")):
        case = registry.CASES[name]
        with torch.device("meta"):
            image = torch.empty(case.inputs[0])
            elements = case.make(torch.nn)(image).numel() if what == "forward" else image.numel()
        for arithmetic in case.arithmetics:
            for kernel, programs, args, constants in launches_of(name, arithmetic, layout, what):
                largest = [arg for arg in args if isinstance(arg, Tensor) and arg.numel() == case.largest]
                if not largest:
                    continue
                launch, size = what, largest[0].dtype.itemsize
                if case.op == "batch_norm" and len(largest) == {"forward": 1, "backward": 2}[what]:  # and writes none
                    launch = {"forward": "statistics", "backward": "sums"}[what]
                limits = (x for x in LIMITS if (x.op, x.launch) == (case.op, launch) and re.search(x.pattern, name))
                if (limit := next(limits, None)) is None:
                    continue
                read, written = (min(16, size * at_once) for at_once in (limit.read, limit.written))
                if layout == "channels_last":
                    read = 16 if image.shape[1] * size % 16 == 0 else 1
                    written = 1 if launch in ("statistics", "sums") else read
                most = getattr(limit, layout)[size == 4]
                words = f"{name}, {arithmetic}, {layout}, {launch}"
                yield Held(words, kernel, programs, args, constants, elements, most, read, written)


def found_of(held: Held) -> Found | str:
    """What a launch compiles to and executes, or why that cannot be told."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    held.kernel.device_caches.clear()
    try:
        binary = held.kernel.warmup(*held.args, grid=(1,), **held.constants)
        code = read_cubin(binary.asm["cubin"], binary.asm["ptx"])
        done = executed(binary, held.programs, held.args, read_sass(binary.asm["cubin"]))
    except Exception as error:  # whatever a compiler may raise
        return str(error)
    instructions = done.instructions * held.programs * 32 * held.constants["num_warps"]
    seconds = instructions / INSTRUCTIONS_A_SECOND
    floor = sum(arg.numel() * arg.dtype.itemsize for arg in held.args if isinstance(arg, Tensor)) / BYTES_A_SECOND
    moved = done.bytes("LDG") + done.bytes("STG")
    return Found(code, done, instructions / held.elements, seconds / floor, moved[16] / moved.total())


def faults_of(held: Held, found: Found | str) -> Iterator[str]:
    """What misses its limits."""
    if isinstance(found, str):
        yield found
        return
    if found.instructions > held.most:
        yield f"{found.instructions:.1f} instructions for an element, of {held.most:g}"
    if found.code.spilled > PUT_ASIDE:
        yield f"spills {found.code.spilled} bytes a thread"
    for kind, verb, least in (("LDG", "read", held.read), ("STG", "written", held.written)):
        moved = found.executed.bytes(kind)
        narrow = sum(count for size, count in moved.items() if size < least)
        if 2 * narrow > moved.total():
            yield f"{narrow / moved.total():.0%} of the bytes {verb} by less than {least} at once"
    if found.executed.doubt > DOUBT or found.executed.of_data:
        yield "what it executes is not known well"


_launches: list[Held] = []  # what the processes that compile have in common


def _found_of_number(number: int) -> Found | str:
    return found_of(_launches[number])


def check(pattern: str = "") -> tuple[int, list[str]]:
    """Print what the launches of the cases execute; how many they are, and the faults that nothing excuses."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    _launches[:] = held_launches(pattern)
    print_line = line_printer([held.words.split(", ") for held in _launches])
    titles = ("executed", "at most", "x floor", "at 65 %", "registers", "spilled B", "wide %", "")
    print_line(("instructions for an element", "", "", ""), titles)
    faults, needed = list[str](), set[str]()
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for held, found in zip(_launches, pool.imap(_found_of_number, range(len(_launches)), chunksize=4), strict=True):
            missed = list(faults_of(held, found))
            reasons = {pattern for pattern in EXCUSED if missed and re.search(pattern, held.words)}
            needed |= reasons
            if missed and not reasons:
                faults.append(f"{held.words}: {'; '.join(missed)}")
            cells: Sequence[object] = ()
            if isinstance(found, Found):
                times = (f"{found.over_floor:.2f}", f"{found.over_floor / REALISTIC:.2f}")
                counts = (f"{found.instructions:.1f}", f"{held.most:g}", *times)
                cells = (*counts, found.code.registers, found.code.spilled, f"{found.wide:.0%}")
            print_line(held.words.split(", "), (*cells, "excused" if reasons else "MISSED" if missed else ""))
    faults += [f"no launch needs the excuse {excuse!r}" for excuse in EXCUSED if not pattern and excuse not in needed]
    return len(_launches), faults
