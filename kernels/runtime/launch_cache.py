"""Launch cache: runs the plan of an earlier call again, without the Python code of the launcher and of Triton.

In every call, the launcher and then Triton examine all arguments. This takes several times as long as a small kernel runs. But
their decisions depend only on the key of the call, so the plan of one call serves all calls with the same key.

    Key       dtype, shape, strides, alignment (address modulo 16) and device of each tensor; all other arguments; torch's
              precision flags, if a tensor is float32; settings.tile_of and settings.wanted_programs
    Cached    the plan (plan.py) without its tensors: size, strides and dtype of each allocation; each launch with its compiled
              kernel, its number of programs and its arguments. A tensor argument is (number of the tensor, byte offset).
    Replay    allocate the tensors, replace the numbers by addresses, launch

The first call with a key makes the plan, and all later ones are replays. The cache is not used, and each call makes a plan,

    - in the interpreter, on AMD's GPUs, and with versions of Triton not supported by triton_internals.py;
    - while launches are intercepted, or a profiler has set a launch hook in triton.knobs;
    - if a tensor is not on the GPU;
    - if a launch reads, or the launcher returns, a tensor that is neither an argument nor in the plan's allocations;
    - if the launcher returns an argument, or a view.

A call with the same tensor in two arguments may be replayed but is not cached, because its pointers would be ambiguous. Replays
ignore later changes of triton.knobs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import hardware
from .interpreter import INTERPRETED
from .launch import planned, start_plan
from .plan import Plan, make_plan
from .settings import settings
from .triton_internals import CachedLaunch, Place, cached_launch, is_hooked, is_supported, start

SUPPORTED = not INTERPRETED and torch.version.hip is None and is_supported(triton.__version__)
MAX_ENTRIES = 4096  # keys per launcher; at this limit its cache is cleared, so that changing shapes do not fill the memory

_runtime = triton.knobs.runtime
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", int)  # Triton calls the same function
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
# A tensor of torch.func may outlive its transform, so `_transforms` alone does not detect it.
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
on_gpu: Callable[[Tensor], bool] = torch._C.TensorBase.is_cuda.__get__  # type: ignore[attr-defined]
_PLAIN = (Tensor, torch.nn.Parameter)


class Allocation(NamedTuple):
    """A tensor that a launcher allocates."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class CachedPlan(NamedTuple):
    """A plan without its tensors. They are numbered: first the arguments of the call, then the allocations."""

    device: torch.device
    allocations: tuple[Allocation, ...]
    launches: tuple[CachedLaunch, ...]
    results: tuple[int, ...] | int | None  # numbers of the returned tensors


Cache = dict[Any, CachedPlan]
_caches: list[Cache] = []


def clear() -> None:
    """Clear all caches. Tests that patch launchers need this."""
    for cache in _caches:
        cache.clear()


def cached(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher as a function that computes, with a cache of its plans."""
    compute = planned(launcher)
    if not SUPPORTED:
        return compute
    cache: Cache = {}
    _caches.append(cache)

    @functools.wraps(launcher)
    def call(*args: Any) -> Any:
        if settings.intercept is not None or is_hooked(_runtime):
            return compute(*args)
        tensors, key = _key(args)
        entry = cache.get(key)
        if entry is not None:
            if entry.device.index == hardware.current_device():
                return _replay(entry, tensors)
            with torch.cuda.device(entry.device):
                return _replay(entry, tensors)
        plan = make_plan(launcher, args)
        entry = without_tensors(plan, start_plan(plan), tensors)
        if entry is not None:
            if len(cache) >= MAX_ENTRIES:
                cache.clear()
            cache[key] = entry
        return plan.results

    return call


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


def without_tensors(plan: Plan, kernels: list[Any], given: list[Tensor]) -> CachedPlan | None:
    """A plan in the form of the cache; None if no later call may run it.

    Args:
        kernels: the compiled kernel of each launch.
        given: the tensors among the arguments of the call.
    """
    results = plan.results if isinstance(plan.results, tuple) else () if plan.results is None else (plan.results,)
    tensors = [*given, *plan.allocations]
    storages = [_storage(t) for t in tensors]
    numbers = {storage: number for number, storage in enumerate(storages)}
    returned = [numbers.get(_storage(t), -1) for t in results]
    if (
        not given
        or not all(map(on_gpu, given))
        or len(set(map(id, given))) < len(given)
        or any(n < len(given) or _allocation(t) != _allocation(tensors[n]) for n, t in zip(returned, results, strict=True))
    ):
        return None

    def place_of(tensor: Tensor) -> Place | None:
        """(number of the tensor or of its base, byte offset). None if another tensor has the same storage, or none."""
        storage = _storage(tensor)
        number = next((n for n, t in enumerate(given) if t is tensor), numbers.get(storage))
        if number is None or (tensor is not tensors[number] and storages.count(storage) > 1):
            return None
        return number, tensor.data_ptr() - tensors[number].data_ptr()

    launches = []
    for (kernel, programs, args, constants, _), compiled in zip(plan.launches, kernels, strict=True):
        launch = cached_launch(compiled, kernel.arg_names, programs, args, constants, place_of)
        if launch is None:
            return None
        launches.append(launch)
    numbered = tuple(returned) if isinstance(plan.results, tuple) else returned[0] if returned else None
    return CachedPlan(given[0].device, tuple(map(_allocation, plan.allocations)), tuple(launches), numbered)


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def _allocation(tensor: Tensor) -> Allocation:
    return Allocation(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _replay(plan: CachedPlan, tensors: list[Tensor]) -> Any:
    device, allocations, launches, results = plan
    for size, stride, dtype in allocations:
        tensors.append(torch.empty_strided(size, stride, dtype=dtype, device=device))
    start(launches, [t.data_ptr() for t in tensors], _current_stream(device.index))
    if isinstance(results, int):
        return tensors[results]
    return tuple([tensors[i] for i in results]) if results is not None else None
