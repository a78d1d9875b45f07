"""Compile the kernels of the benchmark ahead of time, on all cores, into Triton's cache. Needs no GPU.

The modules run on meta tensors in both memory formats, forward and backward. Each operator calls its launcher; the launches are
intercepted and compiled. Where libcuda can be linked, as on the measuring machine, Triton's C launchers are compiled too.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.compile_report import Job, code_of, fault_of, remembering  # sets TRITON_INTERPRET, so it comes first  # isort: skip

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.machine_code import Code, Driver
from bench.time.case import LAYOUTS, Instance
from bench.time.networks import MODELS, PASSES, Model, Run
from bench.time.protocol import Machine, using
from bench.tune.tiles import compile_launcher
from trinn.kernels import launchers
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings

Launch = tuple[Any, int, tuple[Any, ...], dict[str, Any]]  # kernel, number of programs, arguments, constants


class _Launchers(TorchDispatchMode):
    """Call launchers in place of trinn's operators, on any device, including meta."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "trinn":
            return getattr(launchers, function._schema.name.removeprefix("trinn::"))(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def jobs_of(
    cases: Mapping[str, Sequence[str]], networks: Mapping[str, Sequence[str]], architecture: str, gpu: str = ""
) -> list[Job]:
    """Return the launches of cases and networks, given as name -> arithmetics, with the tiles tuned for `gpu`."""
    triton.runtime.driver.set_active(Driver(architecture))
    jobs: dict[Any, Job] = {}
    with settings.changed(gpu=gpu), _Launchers():
        for name, run, arithmetic in _runs(cases, networks):
            with using(arithmetic) as dtype:
                observe = remembering(jobs, architecture, f"{name}, {arithmetic}", dtype, held=False)
                with intercepted(observe, architecture):
                    run(dtype)
    return list(jobs.values())


def _runs(
    cases: Mapping[str, Sequence[str]], networks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Callable[[torch.dtype], None], str]]:
    def run_case(dtype: torch.dtype, case: registry.Case) -> None:
        for layout in LAYOUTS if all(len(shape) == 4 for shape in case.inputs) else ("contiguous",):
            instance = Instance(case, "ours", dtype, layout, "meta")
            for what in case.works:
                instance.call(what)()

    def run_network(dtype: torch.dtype, model: Model) -> None:
        for layout in LAYOUTS:
            for what in PASSES:
                Run(model, "ours", dtype, layout, "meta").step(what, "eager", Machine("meta"))()
                Run(model, "ours", dtype, layout, "meta").graph(what)()

    for name, arithmetics in cases.items():
        for arithmetic in arithmetics:
            yield name, lambda dtype, case=registry.CASES[name]: run_case(dtype, case), arithmetic  # type: ignore[misc]
    for name, arithmetics in networks.items():
        for arithmetic in arithmetics:
            yield name, lambda dtype, model=MODELS[name]: run_network(dtype, model), arithmetic  # type: ignore[misc]


def launches_of(name: str, arithmetic: str, layout: str, what: str, architecture: str = "sm_90") -> list[Launch]:
    """Return the launches of one pass of a case. For a backward pass, leave out the launches of its forward pass."""
    found: list[Launch] = []
    with using(arithmetic) as dtype, settings.changed(gpu=""), _Launchers():
        with intercepted(lambda *_: None, architecture):
            call = Instance(registry.CASES[name], "ours", dtype, layout, "meta").call(what)
        with intercepted(lambda *of: found.append(of), architecture):
            call()
    return found


_jobs: list[Job] = []  # shared with the forked compile processes


def _compiled(number: int) -> str | None:
    job = _jobs[number]
    try:
        code = code_of(job)
    except KeyError:  # no PTX: the kernel is from gpu-cache.tar.xz, and was checked when that file was made
        return None
    if isinstance(code, Code):
        compile_launcher(job.kernel.warmup(*job.args, grid=(1,), **job.constants))
    return fault_of(job, code)


def compiled(jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
    """Compile the jobs in parallel. Yield (job, fault or None)."""
    _jobs[:] = jobs
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        yield from zip(jobs, pool.imap(_compiled, range(len(jobs)), chunksize=2), strict=True)
