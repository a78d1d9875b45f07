"""Launches of kernels, in the interpreter or on the GPU of their tensors, from any thread."""

import contextlib
import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import hardware
from .interpreter import INTERPRETED, NO_DEVICE, REASON, UNFIT_NUMPY
from .plan import Launch, Plan, current_plan, make_plan
from .settings import settings

# The interpreter patches triton.language and keeps the program index in a global, so only one thread at a time may interpret.
_interpreting = threading.Lock()
# While one thread loads a kernel, another thread may find it half-loaded in Triton's cache, so one thread at a time launches.
# Each GPU has its own lock, because loading may wait for work on that GPU. The lock is reentrant, because a launch hook may
# launch kernels.
_launching: defaultdict[int | None, threading.RLock] = defaultdict(threading.RLock)


def launch(
    kernel: Any, programs: int, *args: Any, device: torch.device, warps: int = 4, stages: int = 3, asserts: bool = False,
    **constants: Any,
) -> Any:  # fmt: skip
    """Add a launch of `programs` programs of a kernel to the plan. Outside launchers, start it and return the kernel.

    The grid has one axis, because its limit is 2^31 - 1 programs; the limit of the other two is 65,535. The option
    enable_fp_fusion is always explicit, because Triton's default is due to change. With `asserts`, the kernel checks its device
    assertions on a GPU.
    """
    if programs == 0:
        return None
    constants.update(num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    if asserts and not INTERPRETED:
        constants.update(debug=True, sanitize_overflow=False)
    wanted, plan = Launch(kernel, programs, args, constants, device), current_plan()
    if plan is None:
        return _start(wanted)
    plan.launches.append(wanted)
    return None


def planned(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher as a function that computes: it makes the plan, and starts it. In another launcher it adds to that plan."""

    @functools.wraps(launcher)
    def call(*args: Any, **options: Any) -> Any:
        if current_plan() is not None:
            return launcher(*args, **options)
        plan = make_plan(launcher, args, options)
        start_plan(plan)
        return plan.results

    return call


def start_plan(plan: Plan) -> list[Any]:
    """Start the launches of a plan in torch's current stream, and return the compiled kernels. Thread-safe.

    Raises:
        RuntimeError: the tensors are on the CPU but Triton compiles, or the interpreter does not work with this NumPy.
    """
    return [_start(wanted) for wanted in plan.launches]


def _start(wanted: Launch) -> Any:
    kernel, programs, args, constants, device = wanted
    if settings.intercept is not None:
        return settings.intercept(kernel, programs, args, constants)
    if UNFIT_NUMPY:
        raise RuntimeError(UNFIT_NUMPY)
    if INTERPRETED:
        return _interpret(kernel, programs, args, constants)
    if device.type != hardware.GPU:
        raise RuntimeError(
            NO_DEVICE
            or f"trinn got a tensor on the {device.type} device, but compiles its kernels for the GPU, since {REASON}: move it "
            "there, or set TRITON_INTERPRET=1 before trinn is imported"
        )
    on_device = contextlib.nullcontext() if device.index == hardware.current_device() else torch.cuda.device(device)
    with on_device, _launching[device.index]:
        return kernel[(programs,)](*args, **constants)


@contextlib.contextmanager
def intercepted(handle: Callable[..., None], architecture: str) -> Iterator[None]:
    """Call `handle(kernel, programs, args, constants)` instead of each launch, in any thread.

    Args:
        architecture: the GPU architecture for the choice of tiles, such as "sm_90".
    """
    with settings.changed(intercept=handle, architecture=architecture):
        yield


def with_large_frame(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with enough room on CPython's stack for all of its own calls.

    From CPython 3.11 on the stack consists of chunks of 16 KiB. A call across the end of a chunk maps the next chunk, and its
    return unmaps it. If the interpreter makes its many small calls at the end of a chunk, the mapping takes longer than the
    calls. So the wrapper has a frame too large for such a chunk: it gets a chunk of its own, and all deeper frames fit in it.
    """

    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    code = call.__code__
    call.__code__ = code.replace(co_stacksize=2**16 + code.co_stacksize)
    return call


@with_large_frame
def _interpret(kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    with _interpreting:
        kernel[(programs,)](*args, **constants)
