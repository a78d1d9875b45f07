"""Limits for memory-bound operators: maximum instructions per element, and minimum width of loads and stores.

    python -m bench.compile.report --limits      check the launches of the benchmark's cases, compiled for Hopper

An element is an output of a forward pass or of the statistics, or an input pixel of a backward pass. The instructions are those
of the PTX that a launch executes; ptx.py says which count.
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
from bench.compile.code import PUT_ASIDE, Code, Driver, read_cubin
from bench.compile.launches import Job, in_parallel, line_printer
from bench.compile.ptx import Executed, executed
from bench.shapes import Launchers
from bench.time.case import LAYOUTS, Instance
from bench.time.protocol import using
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings


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


# About 5 % above the largest count of the launches with this limit, over the versions of Triton in recorded/.
LIMITS = (
    Limit("max_pool2d", "forward", "LeNet", (60, 45), (56, 42)),
    Limit("max_pool2d", "forward", "pool5", (52, 50), (81, 66)),
    Limit("max_pool2d", "forward", "", (52, 50), (75, 61)),
    Limit("max_pool2d", "backward", "LeNet", (14.7, 13.9), (15.2, 14.4)),
    Limit("max_pool2d", "backward", "pool5", (12.9, 13.6), (25, 22)),  # 2 x 2 cells cover 14 x 14 pixels of 13 x 13
    Limit("max_pool2d", "backward", "AlexNet", (13, 13.6), (22, 19.8)),  # images of odd width
    Limit("max_pool2d", "backward", "", (11.1, 11.4), (16.7, 14.8), written=2),
    Limit("bilinear", "forward", "", (8.2, 7.3), (14.7, 12.7), written=8),
    Limit("bilinear", "backward", "", (36, 31), (83, 66), written=4),
    # exp takes 9 instructions, expm1 25. Activations with tanh, erf or log1p have no limit: these branch on their argument.
    Limit("activation", "forward", "SiLU|Sigmoid", (17, 15), (17, 15), read=8, written=8),
    Limit("activation", "forward", "Mish", (21, 20), (21, 20), read=8, written=8),
    Limit("activation", "forward", r"^S?C?ELU", (37, 36), (37, 36), read=8, written=8),
    Limit("activation", "forward", "ReLU|Hard", (12, 12), (12, 12), read=8, written=8),
    Limit("activation", "backward", "SiLU", (21, 20), (21, 20), read=8, written=8),
    Limit("activation", "backward", "Mish", (29, 27), (29, 27), read=8, written=8),
    Limit("activation", "backward", "PReLU", (11, 9), (14, 12), read=8, written=8),
    Limit("activation", "backward", "ReLU|^S?C?ELU|Hard|Sigmoid|Tanh", (12, 12), (12, 12), read=8, written=8),
    Limit("add", "forward", "", (5.4, 3.8), (5.4, 3.8), read=8, written=8),
    # Of the lanes of a tile, small contiguous planes use three quarters.
    Limit("channel_scale", "forward", "x7", (9.3, 9), (17.1, 14.2), read=8, written=8),
    Limit("channel_scale", "forward", "x14", (5.7, 5.4), (12.9, 11.3), read=8, written=8),
    Limit("channel_scale", "forward", "", (4.2, 3.4), (8.3, 7.5), read=8, written=8),
    Limit("channel_scale", "backward", "x7", (18.1, 15.4), (26, 22.1), read=8, written=8),
    Limit("channel_scale", "backward", "x14", (10, 8.6), (22.5, 19.9), read=8, written=8),
    Limit("channel_scale", "backward", "", (7, 5.5), (13.9, 12), read=8, written=8),
    Limit("layer_scale", "forward", "", (5.8, 4.5), (10.2, 8.3), read=8, written=8),
    Limit("layer_scale", "backward", "", (7.2, 5.7), (13.9, 12), read=8, written=8),
    Limit("scale_add_relu", "forward", "", (7.7, 6.2), (13, 11.1), read=8, written=8),
    Limit("scale_add_relu", "backward", "", (15.9, 13.7), (25.9, 22.1), read=8, written=8),
    Limit("nearest", "forward", "", (1.7, 2.4), (5.4, 6.3), written=8),
    # Small batch norms have few loop iterations. The smallest load mainly the parameters of their channels, 4 bytes at a time.
    Limit("batch_norm", "statistics", "256x14|512x7", (31, 25), (19.1, 18.2)),
    Limit("batch_norm", "statistics", "x7|x14", (10.2, 8.3), (11, 10.1)),
    Limit("batch_norm", "statistics", "64x56|128x28", (11.4, 9.2), (11.3, 10.4), read=8),
    Limit("batch_norm", "statistics", "", (6.4, 5.2), (7, 6), read=8),
    Limit("batch_norm", "forward", "256x14|512x7", (8.1, 6.8), (18.8, 18.2), written=8),
    Limit("batch_norm", "forward", "x7|x14|64x56|128x28", (5.5, 4.5), (10, 9.1), read=8, written=8),
    Limit("batch_norm", "forward", "", (4.9, 3.8), (6, 5), read=8, written=8),
    Limit("batch_norm", "sums", "256x14|512x7", (17.2, 12.9), (25, 24)),
    Limit("batch_norm", "sums", "x7|x14", (8.5, 6.4), (14.6, 12.7)),
    Limit("batch_norm", "sums", "64x56|128x28", (9, 6.7), (14.8, 12.9), read=8),
    Limit("batch_norm", "sums", "", (6.9, 5.2), (9.3, 7.2), read=8),
    Limit("batch_norm", "backward", "256x14|512x7", (13.7, 11.7), (24, 23), written=8),
    Limit("batch_norm", "backward", "x7|x14|64x56|128x28", (9.6, 7.9), (14.4, 12.7), read=8, written=8),
    Limit("batch_norm", "backward", "", (8.6, 6.7), (9.8, 8), read=8, written=8),
)
CASES = (
    r"^(LeNet pool1 b1024|AlexNet pool. b128|ResNet stem pool|bilinear .*|nearest .*|ResNet batch norm \d+x\d+"
    r"|ResNet ReLU 64x112|[A-Z]\w+ 128x56|(Scale|Layer scale)\b.*)$"
)


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
            image, *others = map(torch.empty, case.inputs)
            elements = case.make(registry.SIDES["torch"])(image, *others).numel() if what == "forward" else image.numel()
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
        done = executed(binary, held.job.programs, held.job.args)
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
    for moved, verb, least in ((found.executed.loaded, "read", held.read), (found.executed.stored, "written", held.written)):
        narrow = sum(count for size, count in moved.items() if size < least)
        if 2 * narrow > moved.total():
            yield f"{narrow / moved.total():.0%} of the bytes are {verb} in accesses of less than {least} bytes"
    if found.executed.of_data:
        yield "the number of executed instructions is uncertain"


def check(pattern: str = "") -> tuple[int, list[str]]:
    """Print a line per launch. Return the number of launches, and the faults."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    launches = list(held_launches(pattern))
    print_line = line_printer([held.job.case.rsplit(", ", 3) for held in launches])
    print_line(("instructions per element", "", "", ""), ("executed", "at most", ""))
    faults: list[str] = []
    for held, found in in_parallel(found_of, launches):
        missed = list(faults_of(held, found))
        if missed:
            faults.append(f"{held.job.case}: {'; '.join(missed)}")
        count = "-" if isinstance(found, str) else f"{found.instructions:.1f}"
        print_line(held.job.case.rsplit(", ", 3), (count, f"{held.most:g}", "MISSED" if missed else ""))
    return len(launches), faults
