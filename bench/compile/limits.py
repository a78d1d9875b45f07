"""Limits for memory-bound operators: maximum instructions per element, and minimum width of loads and stores.

    python -m bench.compile.report --limits      check the launches of the benchmark's cases, compiled for Hopper

An element is an output of a forward pass or of the statistics, or an input pixel of a backward pass.
"""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from bench import registry
from bench.compile.code import PUT_ASIDE, Code, Driver, read_cubin, read_sass
from bench.compile.executed import Executed, executed
from bench.compile.launches import Job, in_parallel, line_printer
from bench.shapes import Launchers
from bench.time.case import LAYOUTS, Instance
from bench.time.protocol import using
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings

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
    """A launch and its limits. The label of `job` has the case, the arithmetic, the memory format and the pass."""

    job: Job
    elements: int
    most: float  # maximum instructions per element
    read: int  # minimum bytes per load
    written: int  # minimum bytes per store


class Found(NamedTuple):
    """Measurements of a compiled launch."""

    code: Code
    executed: Executed
    instructions: float  # per element


def launches_of(name: str, arithmetic: str, layout: str, what: str) -> list[Job]:
    """Return the launches of one pass of a case on Hopper. For a backward pass, leave out the launches of its forward pass."""
    found: list[Job] = []
    with using(arithmetic) as dtype, settings.changed(gpu=""), Launchers():
        with intercepted(lambda *_: None, "sm_90"):
            call = Instance(registry.CASES[name], "ours", dtype, layout, "meta").call(what)
        with intercepted(lambda *of: found.append(Job("sm_90", "", dtype, *of)), "sm_90"):
            call()
    return found


def held_launches(pattern: str) -> Iterator[Held]:
    """Yield the launches of the cases. Skip launches without a tensor as large as the case's largest tensor."""
    names = [name for name in registry.CASES if re.search(CASES, name) and re.search(pattern, name)]
    for name, layout, what in itertools.product(names, LAYOUTS, ("forward", "backward")):
        case = registry.CASES[name]
        with torch.device("meta"):
            image = torch.empty(case.inputs[0])
            elements = case.make(torch.nn)(image).numel() if what == "forward" else image.numel()
        for arithmetic in case.arithmetics:
            for job in launches_of(name, arithmetic, layout, what):
                largest = [arg for arg in job.args if isinstance(arg, Tensor) and arg.numel() == case.largest]
                if not largest:
                    continue
                launch, size = what, largest[0].dtype.itemsize
                # A launch that only reads tensors of this size computes sums.
                if case.op == "batch_norm" and len(largest) == {"forward": 1, "backward": 2}[what]:
                    launch = {"forward": "statistics", "backward": "sums"}[what]
                limits = (x for x in LIMITS if (x.op, x.launch) == (case.op, launch) and re.search(x.pattern, name))
                if (limit := next(limits, None)) is None:
                    continue
                read, written = (min(16, size * at_once) for at_once in (limit.read, limit.written))
                if layout == "channels_last":
                    read = 16 if image.shape[1] * size % 16 == 0 else 1
                    written = 1 if launch in ("statistics", "sums") else read
                label = f"{name}, {arithmetic}, {layout}, {launch}"
                yield Held(job._replace(case=label), elements, getattr(limit, layout)[size == 4], read, written)


def found_of(held: Held) -> Found | str:
    """Compile a launch and count its instructions. Return the measurements, or an error message."""
    try:
        binary = held.job.compiled()
        code = read_cubin(binary.asm["cubin"], binary.asm["ptx"])
        done = executed(binary, held.job.programs, held.job.args, read_sass(binary.asm["cubin"]))
    except Exception as error:  # a compiler may raise anything
        return f"{type(error).__name__}: {error}"
    return Found(code, done, done.instructions * held.job.programs * 32 * held.job.constants["num_warps"] / held.elements)


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


def check(pattern: str = "") -> tuple[int, list[str]]:
    """Print a line per launch. Return the number of launches, and the faults not covered by EXCUSED."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    launches = list(held_launches(pattern))
    print_line = line_printer([held.job.case.split(", ") for held in launches])
    print_line(("instructions per element", "", "", ""), ("executed", "at most", ""))
    faults, needed = list[str](), set[str]()
    for held, found in in_parallel(found_of, launches):
        missed = list(faults_of(held, found))
        reasons = {pattern for pattern in EXCUSED if missed and re.search(pattern, held.job.case)}
        needed |= reasons
        if missed and not reasons:
            faults.append(f"{held.job.case}: {'; '.join(missed)}")
        count = "-" if isinstance(found, str) else f"{found.instructions:.1f}"
        print_line(held.job.case.split(", "), (count, f"{held.most:g}", "excused" if reasons else "MISSED" if missed else ""))
    faults += [f"no launch needs the excuse {excuse!r}" for excuse in EXCUSED if not pattern and excuse not in needed]
    return len(launches), faults
