"""Calls like an earlier one: what the launcher then allocated and started is done again, and neither it nor Triton is asked.

A launcher's own Python, and Triton's on the way to a kernel that it has compiled, look at every argument anew, for several
times as long as a small kernel runs. But what they decide follows from what makes a key here, and from nothing else: dtype,
sizes, strides, device of each tensor, and how it is aligned; all other arguments; what torch allows float32 to be computed
in. So of a key that comes back the launches are written down: which tensors were made, which kernels were started on which
places in them. From then on they are started from these notes.

A tensor descriptor is a place, too. Triton encodes it for the GPU at every launch, as a tensor map, which takes as long as the
rest of a start from notes. But all of the map except the address follows from the key, and training comes back to the same
addresses in every step: for each descriptor its last maps are kept, by address.

`REPLAYS` says where that is known to be right; elsewhere, and while someone listens to Triton's launches, launchers run. What
is set in `triton.knobs` after a call was noted does not reach it.
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

# Notes stand on how these versions of Triton start a kernel on NVIDIA's GPUs.
SUPPORTED = (
    not INTERPRETED and torch.version.hip is None and tuple(map(int, triton.__version__.split(".")[:2])) in ((3, 6), (3, 7))
)
MAX_ENTRIES = 4096  # keys; a program whose shapes never repeat starts over
MAX_TENSOR_MAPS = 128  # of a descriptor; where more layers are of one shape, maps are encoded anew

_runtime = triton.knobs.runtime
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", int)  # what Triton asks too
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor  # also after its transform has ended
on_gpu: Callable[[Tensor], bool] = torch._C.TensorBase.is_cuda.__get__  # type: ignore[attr-defined]
_PLAIN = (Tensor, torch.nn.Parameter)
_aten = torch.ops.aten
_MAKE = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default}


class Allocation(NamedTuple):
    """A tensor that a launcher makes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


Expand = Callable[[Any], list[Any]]  # a descriptor to its map, its sizes and its strides
Encode = Callable[[int], Any]  # an address to the map of a descriptor of what is there


class CachedLaunch(NamedTuple):
    """A kernel that a launcher starts."""

    run: Callable[..., None]
    programs: int
    function: int
    metadata: Any
    args: tuple[Any, ...]  # of all its parameters, descriptors expanded
    pointers: tuple[tuple[int, int, int], ...]  # (which argument, which tensor, how many bytes from its first element)
    maps: tuple[tuple[int, int, int, Encode], ...]  # (the same, and what is made of that address)


class CachedCall(NamedTuple):
    """What a launcher does. Tensors are numbered: those it is given, then those it makes."""

    device: torch.device
    made: tuple[Allocation, ...]
    starts: tuple[CachedLaunch, ...]
    results: tuple[int, ...] | int | None


SEEN_ONCE, UNCACHEABLE = "seen once", "does what notes cannot tell"
Cache = dict[Any, CachedCall | str]
_caches: list[Cache] = []


def clear() -> None:
    """Forget all notes: for who changes what a launcher does, as tests do."""
    for known in _caches:
        known.clear()


def cached(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher, replayed from the third call with a key."""
    if not SUPPORTED:
        return launcher
    known: Cache = {}
    _caches.append(known)

    @functools.wraps(launcher)
    def call(*args: Any) -> Any:
        if settings.intercept is not None or _is_hooked():
            return launcher(*args)
        tensors, key = _key(args)
        entry = known.get(key)
        if isinstance(entry, CachedCall):
            if entry.device.index == hardware.current_device():
                return _replay(entry, tensors)
            with torch.cuda.device(entry.device):
                return _replay(entry, tensors)
        if entry == UNCACHEABLE:
            return launcher(*args)
        if entry == SEEN_ONCE:
            result, known[key] = record_call(launcher, args, tensors)
            return result
        if len(known) >= MAX_ENTRIES:
            known.clear()
        known[key] = SEEN_ONCE
        return launcher(*args)

    return call


def _is_hooked() -> bool:
    """Whether someone listens to Triton's launches."""
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def without_dispatcher(launcher: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator; a call that torch's dispatcher would only hand on to the launcher does not go through it.

    A TorchFunctionMode, which sees calls before the dispatcher does, sees those of the functions in torch.nn alone.
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
    """Whether nothing but a launcher has to know of a call with these arguments: tensors of a GPU, and nobody listens."""
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
    """The tensors among a launcher's arguments, and all that what it does depends on."""
    tensors: list[Tensor] = []
    key: list[Any] = [settings.tile_of, settings.wanted_programs]
    float32 = False
    for arg in args:
        if arg is None or arg is True or arg is False:  # faster to tell than a type
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
    """The tensors made within, and whether torch did anything else than make tensors and look at them in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.only = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _MAKE:
            self.tensors.append(result)
        elif not func.is_view:
            self.only = False
        else:  # which in inference mode also `contiguous` is called
            views = result if isinstance(result, (tuple, list)) else (result,)
            self.only &= {_memory(args[0])}.issuperset(map(_memory, views))
        return result


def record_call(launcher: Callable[..., Any], args: tuple[Any, ...], given: list[Tensor]) -> tuple[Any, CachedCall | str]:
    """What a launcher returns, and notes of what it did; SEEN where another call with the same key may be told better."""
    if not all(map(on_gpu, given)):  # a launcher refuses them, or finds nothing to do
        return launcher(*args), UNCACHEABLE
    if len(set(map(id, given))) < len(given):  # on which of the two was a kernel started?
        return launcher(*args), SEEN_ONCE
    with _AllocationMode() as makes, recorded() as launches:
        result = launcher(*args)
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    tensors = [*given, *makes.tensors]
    storages = [_memory(t) for t in tensors]
    numbers = {storage: number for number, storage in enumerate(storages)}
    numbered = [numbers.get(_memory(t), -1) for t in results]
    if not makes.only or any(
        n < len(given) or _allocation(t) != _allocation(tensors[n]) for n, t in zip(numbered, results, strict=True)
    ):
        return result, UNCACHEABLE

    def place(tensor: Tensor) -> tuple[int, int] | None:
        """Which tensor it is or views, and how many bytes from its first element; None for a view of one of several."""
        storage = _memory(tensor)
        number = next((n for n, t in enumerate(given) if t is tensor), numbers[storage])
        if tensor is not tensors[number] and storages.count(storage) > 1:
            return None
        return number, tensor.data_ptr() - tensors[number].data_ptr()

    starts = []
    for one in launches:
        noted = _cached_launch(one, place)
        if noted is None:
            return result, SEEN_ONCE
        starts.append(noted)
    returned = tuple(numbered) if isinstance(result, tuple) else numbered[0] if numbered else None
    return result, CachedCall(given[0].device, tuple(map(_allocation, makes.tensors)), tuple(starts), returned)


def _cached_launch(one: Launch, place: Callable[[Tensor], tuple[int, int] | None]) -> CachedLaunch | None:
    """How the kernel is started again; None where a tensor has no one place."""
    kernel, compiled, programs, positional, constants = one
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
        found = place(tensor)
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
    """Triton's start of a kernel that has descriptors, taken apart: a start that takes them expanded, and what expands each."""
    wrapper = inspect.getclosurevars(run.launch)
    unwrapped = copy.copy(run)
    unwrapped.launch = wrapper.nonlocals["launcher"]
    expand: Callable[..., list[Any]] = wrapper.globals["make_tensordesc_arg"]
    return unwrapped, (functools.partial(expand, metadata=metadata) for metadata in wrapper.nonlocals["tensordesc_meta"])


class _At(NamedTuple):
    """The tensor at an address, as far as the expansion of a descriptor asks."""

    address: int

    def data_ptr(self) -> int:
        return self.address


def _encoder(descriptor: TensorDescriptor, expand: Expand) -> Encode:
    form = {name: value for name, value in vars(descriptor).items() if name != "base"}

    @functools.lru_cache(MAX_TENSOR_MAPS)
    def encode(address: int) -> Any:
        return expand(SimpleNamespace(base=_At(address), **form))[0]

    return encode


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _allocation(tensor: Tensor) -> Allocation:
    return Allocation(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _replay(entry: CachedCall, tensors: list[Tensor]) -> Any:
    device, made, starts, results = entry
    for size, stride, dtype in made:
        tensors.append(torch.empty_strided(size, stride, dtype=dtype, device=device))
    start(starts, [t.data_ptr() for t in tensors], _current_stream(device.index))
    if isinstance(results, int):
        return tensors[results]
    return tuple([tensors[i] for i in results]) if results is not None else None


def start(starts: Iterable[CachedLaunch], addresses: list[int], stream: int) -> None:
    """Start kernels on tensors at these addresses."""
    for run, programs, function, metadata, args, pointers, maps in starts:
        placed = list(args)
        for place, tensor, offset in pointers:
            placed[place] = addresses[tensor] + offset
        for place, tensor, offset, encode in maps:
            placed[place] = encode(addresses[tensor] + offset)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *placed)
