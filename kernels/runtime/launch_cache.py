"""Launch cache: replays the allocations and launches of an earlier call, without the Python code of the launcher and of Triton.

In every call, the launcher and then Triton examine all arguments. This takes several times as long as a small kernel runs. But
their decisions depend only on the key of the call, so one recorded call serves all calls with the same key.

    Key         dtype, shape, strides, alignment (address modulo 16) and device of each tensor; all other arguments; torch's
                precision flags, if a tensor is float32; settings.tile_of and settings.wanted_programs
    Recorded    size, strides and dtype of each tensor that the launcher allocates; each launch with its compiled kernel, its
                number of programs and its arguments. A tensor argument is recorded as (number of the tensor, byte offset).
    Replay      allocate the tensors, replace the numbers by addresses, launch

The first call with a key runs the launcher. The second also runs it and records. All later ones are replays.

A tensor descriptor is a tensor argument too. At every launch Triton encodes it as a tensor map for TMA, which takes as long as
the rest of a replay. All of the map except the address follows from the key, and training reuses the same addresses in every
step. So each descriptor argument keeps its latest maps by address.

The cache is not used, and the launcher runs at each call,

    - in the interpreter, on AMD's GPUs, and with versions of Triton other than those in SUPPORTED;
    - while launches are intercepted, or a profiler has set a launch hook in triton.knobs;
    - if a tensor is not on the GPU;
    - if the launcher calls anything in torch besides allocations and views, such as a copy, or returns an argument.

A call with the same tensor in two arguments may be replayed but is not recorded, because its pointers would be ambiguous.
Replays ignore later changes of triton.knobs.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.tools.tensor_descriptor import TensorDescriptor

from . import hardware
from .interpreter import INTERPRETED
from .observe import Launch, recorded
from .settings import settings

# Replays depend on the internal launch code of these versions of Triton for NVIDIA's GPUs.
SUPPORTED = (
    not INTERPRETED and torch.version.hip is None and tuple(map(int, triton.__version__.split(".")[:2])) in ((3, 6), (3, 7))
)
MAX_ENTRIES = 4096  # keys per launcher; at this limit its cache is cleared, so that changing shapes do not fill the memory
MAX_TENSOR_MAPS = 128  # per descriptor argument; a model with more layers of one shape encodes maps again

_runtime = triton.knobs.runtime
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", int)  # Triton calls the same function
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
# A tensor of torch.func may outlive its transform, so `_transforms` alone does not detect it.
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
on_gpu: Callable[[Tensor], bool] = torch._C.TensorBase.is_cuda.__get__  # type: ignore[attr-defined]
_PLAIN = (Tensor, torch.nn.Parameter)
_aten = torch.ops.aten
_ALLOCATING = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default}


class Allocation(NamedTuple):
    """A tensor that a launcher allocates."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


Expand = Callable[[Any], list[Any]]  # descriptor -> [tensor map, sizes, strides]
Encode = Callable[[int], Any]  # address -> tensor map of a descriptor with this base address


class CachedLaunch(NamedTuple):
    """A recorded launch of a kernel."""

    run: Callable[..., None]  # Triton's launch function
    programs: int
    function: int  # handle of the kernel in the driver
    metadata: Any  # Triton's packed launch options
    args: tuple[Any, ...]  # for all parameters, with descriptors expanded
    pointers: tuple[tuple[int, int, int], ...]  # (index of the argument, number of the tensor, byte offset)
    maps: tuple[tuple[int, int, int, Encode], ...]  # the same for descriptors, with the encoder of the map


class CachedCall(NamedTuple):
    """A recorded call of a launcher. Tensors are numbered: first its arguments, then its allocations."""

    device: torch.device
    allocations: tuple[Allocation, ...]
    starts: tuple[CachedLaunch, ...]
    results: tuple[int, ...] | int | None  # numbers of the returned tensors


SEEN_ONCE, UNCACHEABLE = "seen once", "uncacheable"
Cache = dict[Any, CachedCall | str]
_caches: list[Cache] = []


def clear() -> None:
    """Clear all caches. Tests that patch launchers need this."""
    for cache in _caches:
        cache.clear()


def cached(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Add a cache to a launcher: calls are replayed from the third with the same key on."""
    if not SUPPORTED:
        return launcher
    cache: Cache = {}
    _caches.append(cache)

    @functools.wraps(launcher)
    def call(*args: Any) -> Any:
        if settings.intercept is not None or _is_hooked():
            return launcher(*args)
        tensors, key = _key(args)
        entry = cache.get(key)
        if isinstance(entry, CachedCall):
            if entry.device.index == hardware.current_device():
                return _replay(entry, tensors)
            with torch.cuda.device(entry.device):
                return _replay(entry, tensors)
        if entry == UNCACHEABLE:
            return launcher(*args)
        if entry == SEEN_ONCE:
            result, cache[key] = record_call(launcher, args, tensors)
            return result
        if len(cache) >= MAX_ENTRIES:
            cache.clear()
        cache[key] = SEEN_ONCE
        return launcher(*args)

    return call


def _is_hooked() -> bool:
    """Whether a launch hook is set in triton.knobs."""
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def without_dispatcher(launcher: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    """Skip torch's dispatcher in calls in which it would only call the launcher.

    A TorchFunctionMode is independent of this: it intercepts calls earlier, at the functions of torch.nn.
    """
    if not SUPPORTED:
        return operator

    @functools.wraps(launcher)
    def call(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or options or not _are_plain(args):
            return operator(*args, **options)
        return launcher(*args)

    return call


def _are_plain(args: tuple[Any, ...]) -> bool:
    """Whether a call needs no dispatcher: plain tensors on a GPU, and no mode, transform or profiler is active."""
    if _modes() or _transforms() or torch.autograd._profiler_enabled():
        return False
    for arg in args:
        if type(arg) in _PLAIN:
            if not on_gpu(arg) or arg.is_neg() or arg._is_zerotensor() or _is_wrapped(arg):
                return False
        elif isinstance(arg, Tensor):
            return False
    return True


def _key(args: tuple[Any, ...]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors among the arguments, and the key of the call."""
    tensors: list[Tensor] = []
    key: list[Any] = [settings.tile_of, settings.wanted_programs]
    float32 = False
    for arg in args:
        if arg is None or arg is True or arg is False:  # faster than isinstance
            key.append(arg)
        elif isinstance(arg, Tensor):
            tensors.append(arg)
            dtype = arg.dtype
            float32 = float32 or dtype is torch.float32
            key += dtype, arg.shape, arg.stride(), arg.data_ptr() % 16, arg.get_device()
        elif isinstance(arg, list):
            key.append(tuple(arg))
        elif isinstance(arg, float):
            key.append(arg.hex())  # 0.0 is not -0.0, and a NaN is itself
        else:
            key.append(arg)
    if float32:
        key += torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return tensors, tuple(key)


class _AllocationMode(TorchDispatchMode):
    """Collects the tensors that torch allocates. `is_cacheable` is False after any call besides allocations and views."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.is_cacheable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATING:
            self.tensors.append(result)
        elif not func.is_view:
            self.is_cacheable = False
        else:  # in inference mode `contiguous` counts as a view, but may copy
            views = result if isinstance(result, (tuple, list)) else (result,)
            self.is_cacheable &= {_storage(args[0])}.issuperset(map(_storage, views))
        return result


def record_call(launcher: Callable[..., Any], args: tuple[Any, ...], given: list[Tensor]) -> tuple[Any, CachedCall | str]:
    """Call a launcher and record the call: (its result, the recorded call).

    In place of the recorded call: UNCACHEABLE if no call with this key can be replayed; SEEN_ONCE if a pointer of this call is
    ambiguous, so that the next call with this key is recorded.
    """
    if not all(map(on_gpu, given)):  # the launcher raises, or launches nothing
        return launcher(*args), UNCACHEABLE
    if len(set(map(id, given))) < len(given):  # the tensor number of a pointer would be ambiguous
        return launcher(*args), SEEN_ONCE
    with _AllocationMode() as allocated, recorded() as launches:
        result = launcher(*args)
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    tensors = [*given, *allocated.tensors]
    storages = [_storage(t) for t in tensors]
    numbers = {storage: number for number, storage in enumerate(storages)}
    numbered = [numbers.get(_storage(t), -1) for t in results]
    if not allocated.is_cacheable or any(
        n < len(given) or _allocation(t) != _allocation(tensors[n]) for n, t in zip(numbered, results, strict=True)
    ):
        return result, UNCACHEABLE

    def locate(tensor: Tensor) -> tuple[int, int] | None:
        """(number of the tensor or of its base, byte offset). None if it is a view and its storage has several numbers."""
        storage = _storage(tensor)
        number = next((n for n, t in enumerate(given) if t is tensor), numbers[storage])
        if tensor is not tensors[number] and storages.count(storage) > 1:
            return None
        return number, tensor.data_ptr() - tensors[number].data_ptr()

    starts = []
    for launch in launches:
        cached_launch = _cached_launch(launch, locate)
        if cached_launch is None:
            return result, SEEN_ONCE
        starts.append(cached_launch)
    returned = tuple(numbered) if isinstance(result, tuple) else numbered[0] if numbered else None
    return result, CachedCall(given[0].device, tuple(map(_allocation, allocated.tensors)), tuple(starts), returned)


def _cached_launch(launch: Launch, locate: Callable[[Tensor], tuple[int, int] | None]) -> CachedLaunch | None:
    """A launch in recorded form; None if `locate` returns None for one of its tensors."""
    kernel, compiled, programs, positional, constants = launch
    values = [*positional, *(constants[name] for name in kernel.arg_names[len(positional) :])]
    run: Any = compiled.run
    expansions: Iterator[Expand] = iter(())
    if any(isinstance(value, TensorDescriptor) for value in values):
        run, expansions = _unwrapped(run)
    args: list[Any] = []
    pointers: list[tuple[int, int, int]] = []
    maps: list[tuple[int, int, int, Encode]] = []
    for value in values:
        tensor = value.base if isinstance(value, TensorDescriptor) else value
        if not isinstance(tensor, Tensor):
            args.append(value)
            continue
        found = locate(tensor)
        if found is None:
            return None
        if tensor is value:
            pointers.append((len(args), *found))
            args.append(0)
        else:
            expand = next(expansions)
            maps.append((len(args), *found, _encoder(value, expand)))
            args += 0, *expand(value)[1:]
    return CachedLaunch(run, programs, compiled.function, compiled.packed_metadata, tuple(args), tuple(pointers), tuple(maps))


def _unwrapped(run: Any) -> tuple[Any, Iterator[Expand]]:
    """Split Triton's launch function for descriptors: (a launch of expanded descriptors, the expansion of each descriptor)."""
    wrapper = inspect.getclosurevars(run.launch)
    unwrapped = copy.copy(run)
    unwrapped.launch = wrapper.nonlocals["launcher"]
    expand: Callable[..., list[Any]] = wrapper.globals["make_tensordesc_arg"]
    return unwrapped, (functools.partial(expand, metadata=metadata) for metadata in wrapper.nonlocals["tensordesc_meta"])


class _At(NamedTuple):
    """A stand-in for the tensor at an address: the expansion of a descriptor reads nothing else."""

    address: int

    def data_ptr(self) -> int:
        return self.address


def _encoder(descriptor: TensorDescriptor, expand: Expand) -> Encode:
    """The encoder of a descriptor's tensor map. It keeps the latest MAX_TENSOR_MAPS maps by address."""
    form = {name: value for name, value in vars(descriptor).items() if name != "base"}

    @functools.lru_cache(MAX_TENSOR_MAPS)
    def encode(address: int) -> Any:
        return expand(SimpleNamespace(base=_At(address), **form))[0]

    return encode


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def _allocation(tensor: Tensor) -> Allocation:
    return Allocation(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _replay(entry: CachedCall, tensors: list[Tensor]) -> Any:
    device, allocations, starts, results = entry
    for size, stride, dtype in allocations:
        tensors.append(torch.empty_strided(size, stride, dtype=dtype, device=device))
    start(starts, [t.data_ptr() for t in tensors], _current_stream(device.index))
    if isinstance(results, int):
        return tensors[results]
    return tuple([tensors[i] for i in results]) if results is not None else None


def start(starts: Iterable[CachedLaunch], addresses: list[int], stream: int) -> None:
    """Launch recorded kernels. Tensor i of the recorded call is now at addresses[i]."""
    for run, programs, function, metadata, args, pointers, maps in starts:
        values = list(args)
        for index, tensor, offset in pointers:
            values[index] = addresses[tensor] + offset
        for index, tensor, offset, encode in maps:
            values[index] = encode(addresses[tensor] + offset)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *values)
