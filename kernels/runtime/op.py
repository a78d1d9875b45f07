"""Turns a launcher into an opaque torch operator with a fake twin.

Opaque operators are the form that survives torch.compile, export, meta and fake tensors also where the kernels are
interpreted. The fake twin allocates the outputs and does nothing else; a launcher calls it too, so that shapes, dtypes and
strides agree by construction.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from .launch_cache import cached, without_dispatcher

Launcher = TypeVar("Launcher", bound=Callable[..., Any])

library = torch.library.Library("trinn", "DEF")
launchers = SimpleNamespace()  # the plain functions
ops = SimpleNamespace()  # the operators as layers call them


def op(fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[Launcher], Launcher]:
    """Register a launcher as `torch.ops.trinn.<its name>`, with the schema of its annotations."""

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
    """The launcher, and then autograd is told which tensors were written over."""
    parameters = list(inspect.signature(launcher).parameters)
    places = [parameters.index(name) for name in mutates]

    def launch_and_tell(*args: Any) -> Any:
        result = launcher(*args)
        for place in places:
            if not args[place].is_inference():
                torch.autograd.graph.increment_version(args[place])
        return result

    return launch_and_tell
