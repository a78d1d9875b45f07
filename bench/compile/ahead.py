"""Compile the kernels of the benchmark ahead of time, on all cores, into Triton's cache. Needs no GPU.

The modules run on meta tensors in both memory formats, forward and backward; the launches are intercepted and compiled. Where
libcuda can be linked, as on the measuring machine, Triton's C launchers are compiled too.
"""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import triton

from bench import registry
from bench.compile.code import Driver
from bench.compile.launches import Job, in_parallel, remembering
from bench.compile.report import compiled, fault_of
from bench.shapes import Launchers
from bench.time.case import LAYOUTS, Instance
from bench.time.networks import MODELS, PASSES, Run
from bench.time.protocol import Machine, using
from bench.tune.tiles import compile_launcher
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings

Arithmetics = Mapping[str, Sequence[str]]  # of a case or a network, by name


def jobs_of(cases: Arithmetics, networks: Arithmetics, architecture: str, gpu: str = "") -> list[Job]:
    """Return the launches of cases and networks with the tiles tuned for `gpu`."""
    triton.runtime.driver.set_active(Driver(architecture))
    jobs: dict[Any, Job] = {}
    items = [(name, arithmetic) for of in (cases, networks) for name, several in of.items() for arithmetic in several]
    with settings.changed(gpu=gpu), Launchers():
        for name, arithmetic in items:
            with using(arithmetic) as dtype:
                observe = remembering(jobs, architecture, f"{name}, {arithmetic}", dtype)
                with intercepted(observe, architecture):
                    (_run_case if name in cases else _run_network)(name, dtype)
    return list(jobs.values())


def _run_case(name: str, dtype: torch.dtype) -> None:
    case = registry.CASES[name]
    for layout in LAYOUTS if all(len(shape) == 4 for shape in case.inputs) else ("contiguous",):
        instance = Instance(case, "ours", dtype, layout, "meta")
        for what in case.works:
            instance.call(what)()


def _run_network(name: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        for what in PASSES:
            Run(MODELS[name], "ours", dtype, layout, "meta").step(what, "eager", Machine("meta"))()


def _fault(job: Job) -> str | None:
    try:
        found = compiled(job)
    except KeyError:  # no PTX: the kernel is from gpu-cache.tar.xz, and was checked when that file was made
        return None
    if not isinstance(found, str):
        compile_launcher(job.compiled())
    return fault_of(job, found)


def faults(jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
    """Compile the jobs. Yield (job, fault or None)."""
    return in_parallel(_fault, jobs)
