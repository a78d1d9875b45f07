"""The plan of a call: everything a launcher decides, as one value.

    allocations    the tensors that the launcher allocated: results and scratch memory
    launches       the kernels to start, in order, with all arguments
    results        the returned tensors

A launcher starts nothing. It allocates with `empty` (allocate.py) and requests launches with `launch` (launch.py); both add to
the plan of the call. launch.py then starts the launches. On a GPU, launch_cache.py keeps the plan, and runs it again in later
calls with the same key.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_this_thread = threading.local()


class Launch(NamedTuple):
    """A kernel to start: `programs` programs on a device."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]  # compile-time constants and options of Triton
    device: torch.device


@dataclass
class Plan:
    """What a launcher decided."""

    allocations: list[Tensor] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    results: Any = None


def current_plan() -> Plan | None:
    """The plan that this thread is making; None outside of launchers."""
    return getattr(_this_thread, "plan", None)


def make_plan(launcher: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any] | None = None) -> Plan:
    """Call a launcher, and return its plan."""
    plan = _this_thread.plan = Plan()
    try:
        plan.results = launcher(*args, **(options or {}))
    finally:
        _this_thread.plan = None
    return plan
