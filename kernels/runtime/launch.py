"""Launches of kernels, in the interpreter or on the GPU of their tensors, from any thread."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from . import hardware
from .interpreter import INTERPRETED, NO_DEVICE, REASON, UNFIT_NUMPY
from .observe import record
from .settings import settings

# The interpreter patches triton.language and keeps the program index in a global, so only one thread at a time may interpret.
_interpreting = threading.Lock()
# While one thread loads a kernel, another thread may find it half-loaded in Triton's cache, so one thread at a time launches.
# Each GPU has its own lock, because loading may wait for work on that GPU. The lock is reentrant, because a launch hook may
# launch kernels.
_launching: defaultdict[int | None, threading.RLock] = defaultdict(threading.RLock)


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


def launch(
    kernel: Any, programs: int, *args: Any, device: torch.device, warps: int = 4, stages: int = 3, asserts: bool = False,
    **constants: Any,
) -> None:  # fmt: skip
    """Launch `programs` programs of a kernel on a device, in torch's current stream. Thread-safe.

    The grid has one axis, because its limit is 2^31 - 1 programs; the limit of the other two is 65,535. The option
    enable_fp_fusion is always explicit, because Triton's default is due to change. With `asserts`, the kernel checks its device
    assertions on a GPU.

    Raises:
        RuntimeError: the tensors are on the CPU but Triton compiles, or the interpreter does not work with this NumPy.
    """
    if programs == 0:
        return
    constants.update(num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    if asserts and not INTERPRETED:
        constants.update(debug=True, sanitize_overflow=False)
    if settings.intercept is not None:
        settings.intercept(kernel, programs, args, constants)
    elif UNFIT_NUMPY:
        raise RuntimeError(UNFIT_NUMPY)
    elif INTERPRETED:
        _interpret(kernel, programs, args, constants)
    elif device.type != hardware.GPU:
        raise RuntimeError(
            NO_DEVICE
            or f"trinn got a tensor on the {device.type} device, but compiles its kernels for the GPU, since {REASON}: move it "
            "there, or set TRITON_INTERPRET=1 before trinn is imported"
        )
    else:
        on_device = contextlib.nullcontext() if device.index == hardware.current_device() else torch.cuda.device(device)
        with on_device, _launching[device.index]:
            compiled = kernel[(programs,)](*args, **constants)
        record(kernel, compiled, programs, args, constants)
