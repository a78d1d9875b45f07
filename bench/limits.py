"""Limits for memory-bound operators: maximum instructions per element, and minimum width of loads and stores.

    python -m bench.compile_report --limits      check the launches of the registry's cases, compiled for Hopper

An element is an output of a forward pass or of the statistics, or an input pixel of a backward pass. The printed
ratios are for an H200: the time to issue the launch's instructions, divided by the time to read or write each byte of its
tensors once. One ratio assumes the full issue rate, the other a realistic 65 % of it. Above 1, instructions limit the launch
instead of memory.
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
from bench.time.case import LAYOUTS

BYTES_A_SECOND = 4.3e12  # of a large copy on an H200: bytes read plus bytes written
H200_CLOCK = 1.755e9  # Hz
INSTRUCTIONS_A_SECOND = 132 * 4 * 32 * H200_CLOCK  # thread instructions: SMs * warp instructions per cycle * threads per warp
REALISTIC = 0.65  # share of the full issue rate
DOUBT = 0.1  # maximum of Executed.doubt


class Limit(NamedTuple):
    """The limits of a launch, by memory format. The first limit with a matching pattern applies.

    With contiguous tensors, at least half of the read bytes must come in loads of `read` elements or more, and half of the
    written bytes in stores of `written` elements or more. An access of 16 bytes is always wide enough. With channels_last
    tensors, accesses must have 16 bytes if the channels of a pixel are a multiple of 16 bytes.
    """

    op: str  # as in the registry
    launch: str  # "forward" or "backward"; of a batch norm also "statistics" (before "forward") and "sums" (before "backward")
    pattern: str  # regular expression for the name of a case
    channels_last: tuple[float, float]  # maximum instructions per element, for 16-bit dtypes and for float32
    contiguous: tuple[float, float]
    read: int = 1  # elements per load
    written: int = 1  # elements per store


LIMITS = (
    Limit("max_pool2d", "forward", "LeNet", (53, 50), (49, 45)),
    Limit("max_pool2d", "forward", "pool5", (46, 44), (67, 70)),
    Limit("max_pool2d", "forward", "", (46, 44), (60, 60)),
    Limit("max_pool2d", "backward", "LeNet", (16.5, 16.5), (24, 22)),
    Limit("max_pool2d", "backward", "AlexNet", (13.5, 17), (20, 21)),  # images of odd width
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

# Pattern of launches that may miss their limit, and the reason. An unused entry is a fault too.
EXCUSED = {
    r"^ResNet batch norm (64x56|128x28|256x14|1024x14|512x7|2048x7), ": "few loop iterations, so setup and epilogue dominate",
    "^AlexNet pool5 .*16, contiguous, backward": "2 x 2 cells cover 14 x 14 pixels; 14 % are outside the 13 x 13 image",
}


class Held(NamedTuple):
    """A launch and its limits."""

    words: str  # case, arithmetic, memory format and pass
    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    elements: int
    most: float  # maximum instructions per element
    read: int  # minimum bytes per load
    written: int  # minimum bytes per store


class Found(NamedTuple):
    """Measurements of a compiled launch."""

    code: Code
    executed: Executed
    instructions: float  # per element
    over_floor: float  # time of the instructions at the full issue rate / time of the bytes
    wide: float  # share of bytes moved by 16-byte accesses


def held_launches(pattern: str) -> Iterator[Held]:
    """Yield the launches of the cases. Skip launches without a tensor as large as the case's largest tensor."""
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
                if (
                    case.op == "batch_norm" and len(largest) == {"forward": 1, "backward": 2}[what]
                ):  # inputs only: no output is that large
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
    """Compile a launch and count its instructions. Return the measurements, or an error message."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    held.kernel.device_caches.clear()
    try:
        binary = held.kernel.warmup(*held.args, grid=(1,), **held.constants)
        code = read_cubin(binary.asm["cubin"], binary.asm["ptx"])
        done = executed(binary, held.programs, held.args, read_sass(binary.asm["cubin"]))
    except Exception as error:  # a compiler may raise anything
        return str(error)
    instructions = done.instructions * held.programs * 32 * held.constants["num_warps"]
    seconds = instructions / INSTRUCTIONS_A_SECOND
    floor = sum(arg.numel() * arg.dtype.itemsize for arg in held.args if isinstance(arg, Tensor)) / BYTES_A_SECOND
    moved = done.bytes("LDG") + done.bytes("STG")
    return Found(code, done, instructions / held.elements, seconds / floor, moved[16] / moved.total())


def faults_of(held: Held, found: Found | str) -> Iterator[str]:
    """Yield the violated limits."""
    if isinstance(found, str):
        yield found
        return
    if found.instructions > held.most:
        yield f"{found.instructions:.1f} instructions per element, at most {held.most:g} allowed"
    if found.code.spilled > PUT_ASIDE:
        yield f"spills {found.code.spilled} bytes per thread"
    for kind, verb, least in (("LDG", "read", held.read), ("STG", "written", held.written)):
        moved = found.executed.bytes(kind)
        narrow = sum(count for size, count in moved.items() if size < least)
        if 2 * narrow > moved.total():
            yield f"{narrow / moved.total():.0%} of the bytes are {verb} in accesses of less than {least} bytes"
    if found.executed.doubt > DOUBT or found.executed.of_data:
        yield "the number of executed instructions is uncertain"


_launches: list[Held] = []  # shared with the forked compile processes


def _found_of_number(number: int) -> Found | str:
    return found_of(_launches[number])


def check(pattern: str = "") -> tuple[int, list[str]]:
    """Print a line per launch. Return the number of launches, and the faults not covered by EXCUSED."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    _launches[:] = held_launches(pattern)
    print_line = line_printer([held.words.split(", ") for held in _launches])
    titles = ("executed", "at most", "x floor", "at 65 %", "registers", "spilled B", "wide %", "")
    print_line(("instructions per element", "", "", ""), titles)
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
