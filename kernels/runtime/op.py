"""Registers a launcher as an opaque torch operator with a fake twin.

The operator makes the plan of a call (plan.py) and starts it, and so does the decorated launcher.

torch.compile and export treat an opaque operator as one node and never trace its kernels. So it works with them, and with meta
and fake tensors, even if the kernels are interpreted. The *fake twin* of a launcher only allocates the outputs. Most launchers
allocate their own outputs through it, so both agree on shapes, dtypes and strides.
"""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .flops import Count, register_flops
from .launch import planned
from .launch_cache import cached, without_dispatcher
from .vmap import Vmap, register_vmap

__all__ = ["launchers", "ops"]

library = torch.library.Library("trinn", "DEF")
launchers = SimpleNamespace()  # plain functions
ops = SimpleNamespace()  # operators, for layers to call


def op(
    fake: Callable[..., Any], vmap: Vmap, mutates: tuple[str, ...] = (), flops: Count | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a launcher as `torch.ops.trinn.<its name>`, with a schema from its annotations.

    Args:
        fake: the fake twin.
        vmap: the rule for torch.vmap, see vmap.py.
        mutates: the arguments that the launcher overwrites.
        flops: the number of FLOPs for torch's FlopCounterMode, if torch counts those of its own operator: a function of the
            arguments by name, with shapes in place of tensors.
    """

    def register(launcher: Callable[..., Any]) -> Callable[..., Any]:
        name = launcher.__name__
        library.define(name + torch.library.infer_schema(launcher, mutates_args=mutates), tags=(torch.Tag.pt2_compliant_tag,))
        called = cached(launcher)
        called = _with_version_bump(called, launcher, mutates) if mutates else called
        for key in ("CPU", "CUDA"):
            library.impl(name, called, key)
        torch.library.register_fake(f"trinn::{name}", fake, lib=library)
        operator = getattr(torch.ops.trinn, name)
        register_vmap(library, operator, vmap)
        if flops is not None:
            register_flops(operator, flops)
        launcher = planned(launcher)
        setattr(launchers, name, launcher)
        setattr(ops, name, without_dispatcher(called, operator))
        return launcher

    return register


def _with_version_bump(
    called: Callable[..., Any], launcher: Callable[..., Any], mutates: tuple[str, ...]
) -> Callable[..., Any]:
    """A call of the launcher, then a version bump of the tensors in `mutates`, so that autograd notices the write."""
    parameters = list(inspect.signature(launcher).parameters)
    mutated = [parameters.index(name) for name in mutates]

    @functools.wraps(launcher)
    def call_and_bump(*args: Any) -> Any:
        result = called(*args)
        for place in mutated:
            if not args[place].is_inference():
                torch.autograd.graph.increment_version(args[place])
        return result

    return call_and_bump
