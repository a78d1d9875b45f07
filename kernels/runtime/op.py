"""Registers a launcher as an opaque torch operator with a fake twin.

torch.compile and export treat an opaque operator as one node and never trace its kernels. So it works with them, and with meta
and fake tensors, even if the kernels are interpreted. The *fake twin* of a launcher only allocates the outputs. Most launchers
allocate their own outputs through it, so both agree on shapes, dtypes and strides.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from .launch_cache import cached, without_dispatcher

__all__ = ["launchers", "ops"]

Launcher = TypeVar("Launcher", bound=Callable[..., Any])

library = torch.library.Library("trinn", "DEF")
launchers = SimpleNamespace()  # plain functions
ops = SimpleNamespace()  # operators, for layers to call


def op(fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[Launcher], Launcher]:
    """Register a launcher as `torch.ops.trinn.<its name>`, with a schema from its annotations."""

    def register(launcher: Launcher) -> Launcher:
        name = launcher.__name__
        library.define(name + torch.library.infer_schema(launcher, mutates_args=mutates), tags=(torch.Tag.pt2_compliant_tag,))
        called = cached(launcher)
        called = _with_version_bump(called, mutates) if mutates else called
        for key in ("CPU", "CUDA"):
            library.impl(name, called, key)
        torch.library.register_fake(f"trinn::{name}", fake, lib=library)
        setattr(launchers, name, launcher)
        setattr(ops, name, without_dispatcher(called, getattr(torch.ops.trinn, name)))
        return launcher

    return register


def _with_version_bump(launcher: Launcher, mutates: tuple[str, ...]) -> Callable[..., Any]:
    """The launcher, followed by a version bump of the tensors in `mutates`, so that autograd notices the write."""
    parameters = list(inspect.signature(launcher).parameters)
    mutated = [parameters.index(name) for name in mutates]

    def launch_and_bump(*args: Any) -> Any:
        result = launcher(*args)
        for place in mutated:
            if not args[place].is_inference():
                torch.autograd.graph.increment_version(args[place])
        return result

    return launch_and_bump
