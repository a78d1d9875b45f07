"""How a kernel is started: the device it runs on, the options that are always said, and the width of its offsets."""

import contextlib
import functools
import importlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import INTERPRETED, NOWHERE, REASON

Ints = Sequence[int]  # sizes, strides and the like, of height and width where two are asked for


def unfit_interpreter(triton_version: str, numpy_version: str) -> str:
    """The reason that this version of Triton cannot interpret with this NumPy, and the remedy; empty if it can."""
    triton_minor, numpy_minor = (tuple(map(int, version.split(".")[:2])) for version in (triton_version, numpy_version))
    if triton_minor >= (3, 7) or numpy_minor < (2, 4):
        return ""
    return (
        f"the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}: "
        "install numpy<2.4, or Triton 3.7 or newer"
    )


# Not looked for where kernels are compiled: they need no NumPy.
_UNFIT = unfit_interpreter(triton.__version__, importlib.import_module("numpy").__version__) if INTERPRETED else ""

# What a kernel calls. The interpreter would prepare each call anew, for some milliseconds, where a plain call does the same.
device_function: Callable[..., Any] = (lambda function: function) if INTERPRETED else triton.jit


class Named(str):
    """A device function as a constant of a kernel: a text, since Triton 3.6 writes constants down for its hooks."""

    function: Any


@functools.cache
def named(function: Callable[..., Any]) -> Named:
    """A device function by its name and, where it is compiled, its key: a kernel's key follows from that."""
    name = Named(f"{function.__module__}.{function.__name__} {getattr(function, 'cache_key', '')}")
    name.function = function
    return name


@triton.constexpr_function
def function_of(name: Named) -> Any:
    """The function."""
    return name.function


def hash_device_functions(modules: Iterable[Any]) -> None:
    """Hash what kernels call before any kernel: Triton's key of a kernel depends on whether that was hashed before."""
    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, triton.JITFunction) and not value.__name__.endswith("_kernel"):
                value.cache_key  # noqa: B018


# The interpreter checks each int32 step for overflow: right for the small tensors of a test, too slow for others.
always_int64 = INTERPRETED

# Where compiled kernels run, and which of these devices is the current one of this thread.
GPU = "cuda"
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)

_notes = threading.local()
# Triton's interpreter patches Triton's language and counts programs in globals: one thread at a time.
_interpreting = threading.Lock()
# Of a kernel that one thread is loading, Triton hands another thread half. A lock for each GPU: loading may wait for what runs
# on it. A hook of a launch may launch.
_launching: defaultdict[int | None, threading.RLock] = defaultdict(threading.RLock)

# Set while kernels are compiled and not run: what gets each launch, and the architecture it is for.
observer: Callable[..., None] | None = None
_observed_architecture = ""


class Launch(NamedTuple):
    """A kernel that was started, what it was compiled to, and what for."""

    kernel: Any
    compiled: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]


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
    if observer is not None:
        observer(kernel, programs, args, constants)
    elif _UNFIT:
        raise RuntimeError(_UNFIT)
    elif INTERPRETED:
        _interpret(kernel, programs, args, constants)
    elif device.type != GPU:
        raise RuntimeError(
            NOWHERE
            or f"trinn got a tensor on the {device.type} device, but compiles its kernels for the GPU, since {REASON}: move it "
            "there, or set TRITON_INTERPRET=1 before trinn is imported"
        )
    else:
        on_device = contextlib.nullcontext() if device.index == current_device() else torch.cuda.device(device)
        with on_device, _launching[device.index]:
            compiled = kernel[(programs,)](*args, **constants)
        if (launches := getattr(_notes, "launches", None)) is not None:
            launches.append(Launch(kernel, compiled, programs, args, constants))


@contextlib.contextmanager
def observed(observe: Callable[..., None], architecture: str) -> Iterator[None]:
    """Within, each launch of any thread is a call `observe(kernel, programs, args, constants)`, tiled as on that architecture
    ("sm_90").
    """
    global observer, _observed_architecture
    observer, _observed_architecture = observe, architecture
    try:
        yield
    finally:
        observer = None


@contextlib.contextmanager
def noted() -> Iterator[list[Launch]]:
    """The launches within, by this thread."""
    before = getattr(_notes, "launches", None)
    launches: list[Launch] = []
    _notes.launches = launches
    try:
        yield launches
    finally:
        _notes.launches = before


def architecture(device: torch.device) -> str:
    """ "sm_90" for a Hopper GPU, "gfx942" for an MI300, "interpreter" where kernels are interpreted."""
    if observer is not None:
        return _observed_architecture
    if INTERPRETED or device.type != GPU:
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def gpu(device: torch.device) -> str:
    """The name of a GPU, "NVIDIA H200"; empty where kernels are interpreted, or compiled and not run."""
    if observer is not None or INTERPRETED or device.type != GPU:
        return ""
    return torch.cuda.get_device_name(device)


def index_type(*tensors: Tensor) -> tl.dtype:
    """The type of a kernel's offsets: int32, or int64 where it must be and in the interpreter."""
    return tl.int64 if always_int64 or exceeds_int32(*tensors) else tl.int32


def exceeds_int32(*tensors: Tensor) -> bool:
    """Whether one of these tensors has an element further away, or more of them, than int32 counts."""
    # A block of lanes may run past the last element by its own length before its mask stops it.
    return max(map(_reach, tensors)) >= 2**31 - 2**20


def _reach(tensor: Tensor) -> int:
    """How far its last element lies from its first, or would if none shared memory: kernels count elements too."""
    offset = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return max(offset, tensor.numel())


def is_channels_last(*tensors: Tensor) -> bool:
    """Whether torch would make a result channels_last: one of these 4-d tensors has the order of strides, dense or not."""
    return any(_has_channels_last_strides(t) for t in tensors)


def _has_channels_last_strides(tensor: Tensor) -> bool:
    """Strides grow from channels over columns and rows to images, and not just because an axis has one element."""
    if tensor.stride(1) == 0 or 0 in tensor.shape:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if tensor.stride(axis) < least or (axis == 0 and least == tensor.stride(1)):
            return False
        least = tensor.stride(axis) * tensor.shape[axis]
    return True


def is_either(shape: Ints) -> bool:
    """Whether contiguous and channels_last are one order for images (N, C, H, W): of one channel, or of one pixel."""
    return shape[1] == 1 or (shape[2] == 1 and shape[3] == 1)


def empty(like: Tensor, shape: Ints, channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of that shape, in channels_last or contiguous order."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def resized(image: Tensor, size: Ints, *_: Any) -> Tensor:
    """An uninitialised image of that height and width, channels_last if `image` (N, C, H, W) is: the fake of what resizes."""
    return empty(image, (*image.shape[:2], *size), is_channels_last(image))


def memory_order(*tensors: Tensor, axes: Ints | None = None) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The axes of tensors of one shape as an elementwise kernel walks them, innermost first: (sizes, strides of each).

    Innermost is the smallest stride of the first tensor, if `axes` does not say it. Axes that lie end to end in all of them
    become one.
    """
    first = tensors[0]
    axes = sorted(range(first.dim()), key=first.stride) if axes is None else axes
    merged: list[tuple[int, list[int]]] = []
    for axis in (a for a in axes if first.shape[a] != 1):
        strides = [t.stride(axis) for t in tensors]
        if merged and strides == [merged[-1][0] * stride for stride in merged[-1][1]]:
            merged[-1] = (merged[-1][0] * first.shape[axis], merged[-1][1])
        else:
            merged.append((first.shape[axis], strides))
    merged = merged or [(1, [0] * len(tensors))]
    return tuple(size for size, _ in merged), [tuple(s[i] for _, s in merged) for i in range(len(tensors))]
