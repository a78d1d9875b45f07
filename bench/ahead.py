"""Compiles what the yardstick launches, ahead of time and side by side, into Triton's cache; no GPU is needed.

The modules of both memory formats run on meta tensors, forward and backward, each operator of ours by its launcher: what that
would launch is compiled. On the machine that measures, the launchers' own stubs are compiled as well.
"""

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compile_report import Job, code_of, fault_of, remembering  # sets TRITON_INTERPRET, so it comes first  # isort: skip

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.cache import get_cache_manager

from bench import models, registry
from bench.executed import executed
from bench.gpu_cache import sources
from bench.machine_code import Code, Driver
from bench.rows import LAYOUTS, Instance
from bench.timing import Machine, using
from bench.tune import compile_launcher
from trinn.kernels import launchers
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings

Launch = tuple[Any, int, tuple[Any, ...], dict[str, Any]]  # the kernel, how many programs, arguments and constants


class _Launchers(TorchDispatchMode):
    """Within, an operator of ours is its launcher on any device, the meta device too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "trinn":
            return getattr(launchers, function._schema.name.removeprefix("trinn::"))(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def jobs_of(
    cases: Mapping[str, Sequence[str]], networks: Mapping[str, Sequence[str]], architecture: str, gpu: str = ""
) -> list[Job]:
    """The launches of cases and of networks, by name, in their arithmetics; tiles are those for the GPU of that name."""
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

    def run_network(dtype: torch.dtype, model: models.Model) -> None:
        for layout in LAYOUTS:
            for what in models.PASSES:
                models.Run(model, "ours", dtype, layout, "meta").step(what, "eager", Machine("meta"))()
                models.Run(model, "ours", dtype, layout, "meta").graph(what)()

    for name, arithmetics in cases.items():
        for arithmetic in arithmetics:
            yield name, lambda dtype, case=registry.CASES[name]: run_case(dtype, case), arithmetic  # type: ignore[misc]
    for name, arithmetics in networks.items():
        for arithmetic in arithmetics:
            yield name, lambda dtype, model=models.MODELS[name]: run_network(dtype, model), arithmetic  # type: ignore[misc]


def launches_of(name: str, arithmetic: str, layout: str, what: str, architecture: str = "sm_90") -> list[Launch]:
    """What a pass of a case launches, without what it has to have launched before."""
    found: list[Launch] = []
    with using(arithmetic) as dtype, settings.changed(gpu=""), _Launchers():
        with intercepted(lambda *_: None, architecture):
            call = Instance(registry.CASES[name], "ours", dtype, layout, "meta").call(what)
        with intercepted(lambda *of: found.append(of), architecture):
            call()
    return found


def instructions_of(name: str, arithmetic: str, layout: str, what: str) -> float:
    """How many instructions the threads of a pass execute. Triton's cache keeps that number, as it does kernels.

    Raises:
        ValueError, KeyError, OSError: that cannot be told.
    """
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        raise ValueError("the machine code is not NVIDIA's")
    words = f"{sources()} {triton.__version__} {target} {name} {arithmetic} {layout} {what}"
    cache = get_cache_manager(hashlib.sha256(words.encode()).hexdigest())
    if known := cache.get_file("instructions.json"):
        return json.loads(Path(known).read_text())
    found = 0.0
    for kernel, programs, args, constants in launches_of(name, arithmetic, layout, what, f"sm_{target.arch}"):
        done = executed(kernel.warmup(*args, grid=(1,), **constants), programs, args)
        found += 32 * constants["num_warps"] * programs * done.instructions
    cache.put(json.dumps(found), "instructions.json", binary=False)
    return found


def counted(cases: Mapping[str, Sequence[str]]) -> int:
    """Have the instructions of cases without products counted, and kept; of how many passes."""
    passes = []
    for name, arithmetics in cases.items():
        works = [what for what, work in registry.CASES[name].works.items() if not work.flops]
        passes += [(name, *of) for of in itertools.product(arithmetics, LAYOUTS, works)]
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.imap_unordered(_is_counted, passes, chunksize=4))


def _is_counted(of: tuple[str, str, str, str]) -> bool:
    with contextlib.suppress(ValueError, KeyError, OSError):
        return instructions_of(*of) > 0
    return False


_jobs: list[Job] = []  # what the processes that compile have in common


def _compiled(number: int) -> str | None:
    job = _jobs[number]
    try:
        code = code_of(job)
    except KeyError:  # there is no PTX of it: it is from gpu_cache.py's file, and was judged when that was made
        return None
    if isinstance(code, Code):
        compile_launcher(job.kernel.warmup(*job.args, grid=(1,), **job.constants))
    return fault_of(job, code)


def compiled(jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
    """Each job, and what is wrong with it, if something is."""
    _jobs[:] = jobs
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        yield from zip(jobs, pool.imap(_compiled, range(len(jobs)), chunksize=2), strict=True)
