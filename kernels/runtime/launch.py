"""Starting a kernel: in the interpreter, or on the GPU of its tensors, by any thread."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from . import hardware
from .interpreter import INTERPRETED, NOWHERE, REASON, UNFIT
from .observe import record
from .settings import settings

# Triton's interpreter patches Triton's language and counts programs in globals: one thread at a time.
_interpreting = threading.Lock()
# Of a kernel that one thread is loading, Triton hands another thread half. A lock for each GPU: loading may wait for what runs
# on it. A hook of a launch may launch.
_launching: defaultdict[int | None, threading.RLock] = defaultdict(threading.RLock)


def with_room(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called from a frame so large that all frames below lie in one piece of CPython's stack.

    From CPython 3.11 on the stack is made of pieces of 16 KiB. A call that crosses the end of one maps the next, and unmaps it
    on its return. Where the interpreter's many small calls lie on such an end, that takes more time than they do.
    """

    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    code = call.__code__
    call.__code__ = code.replace(co_stacksize=2**16 + code.co_stacksize)
    return call


@with_room
def _interpret(kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    with _interpreting:
        kernel[(programs,)](*args, **constants)


def launch(
    kernel: Any, programs: int, *args: Any, device: torch.device, warps: int = 4, stages: int = 3, asserts: bool = False,
    **constants: Any,
) -> None:  # fmt: skip
    """Start `programs` programs of a kernel on a device, in torch's current stream. Any thread may.

    The grid has one axis, which may be 2^31 - 1 long; the other two end at 65,535. Contraction to fused multiply-adds is
    always asked for in words, since Triton's default is due to change. A kernel that `asserts` does so on a GPU.

    Raises:
        RuntimeError: a CPU tensor, and Triton does not interpret; or its interpreter does not work with this NumPy.
    """
    if programs == 0:
        return
    constants.update(num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    if asserts and not INTERPRETED:
        constants.update(debug=True, sanitize_overflow=False)
    if settings.intercept is not None:
        settings.intercept(kernel, programs, args, constants)
    elif UNFIT:
        raise RuntimeError(UNFIT)
    elif INTERPRETED:
        _interpret(kernel, programs, args, constants)
        record(kernel, None, programs, args, constants)
    elif device.type != hardware.GPU:
        raise RuntimeError(
            NOWHERE
            or f"trinn got a tensor on the {device.type} device, but compiles its kernels for the GPU, since {REASON}: move it "
            "there, or set TRITON_INTERPRET=1 before trinn is imported"
        )
    else:
        on_device = contextlib.nullcontext() if device.index == hardware.current_device() else torch.cuda.device(device)
        with on_device, _launching[device.index]:
            compiled = kernel[(programs,)](*args, **constants)
        record(kernel, compiled, programs, args, constants)
