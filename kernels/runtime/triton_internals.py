"""Uses of Triton's private parts. tests/kernels/test_triton_internals.py checks them with each version in SUPPORTED.

    compiled kernels     their launch function, handle and packed options; its calling convention (`start`)
    tensor descriptors   their expansion into tensor maps for TMA, sizes and strides
    launch hooks         whether one is set
    interpreter          Triton's own functions, defined for the compiler before the interpreter was turned on; NumPy's
    cache keys           the hash of a function's source

interpreter_caches.py has the rest: the functions of the interpreter that it replaces.

A descriptor is a tensor argument too. At every launch Triton encodes it as a tensor map, which takes as long as the rest of a
cached launch. All of the map except the address follows from the descriptor, and training reuses the same addresses in every
step. So `start` keeps the latest maps of each descriptor argument by address.
"""

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

SUPPORTED = ((3, 6), (3, 7))  # versions of Triton with the launch function that `start` calls
MAX_TENSOR_MAPS = 128  # per descriptor argument; a model with more layers of one shape encodes maps again

Place = tuple[int, int]  # number of a tensor, byte offset
Expand = Callable[[Any], list[Any]]  # descriptor -> [tensor map, sizes, strides]
Encode = Callable[[int], Any]  # address -> tensor map of a descriptor with this base address


def is_supported(version: str) -> bool:
    """Whether `start` can launch the kernels of this version of Triton."""
    return tuple(map(int, version.split(".")[:2])) in SUPPORTED


class CachedLaunch(NamedTuple):
    """A launch without its tensors, for `start`."""

    run: Callable[..., None]  # Triton's launch function
    programs: int
    function: int  # handle of the kernel in the driver
    metadata: Any  # Triton's packed launch options
    args: tuple[Any, ...]  # for all parameters, with descriptors expanded
    pointers: tuple[tuple[int, int, int], ...]  # (index of the argument, number of the tensor, byte offset)
    maps: tuple[tuple[int, int, int, Encode], ...]  # the same for descriptors, with the encoder of the map


def start(launches: Iterable[CachedLaunch], addresses: list[int], stream: int) -> None:
    """Launch kernels in a stream. Tensor i of the launches is at addresses[i]."""
    for run, programs, function, metadata, args, pointers, maps in launches:
        values = list(args)
        for index, tensor, offset in pointers:
            values[index] = addresses[tensor] + offset
        for index, tensor, offset, encode in maps:
            values[index] = encode(addresses[tensor] + offset)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *values)


def cached_launch(
    compiled: Any, names: list[str], programs: int, args: tuple[Any, ...], constants: dict[str, Any],
    place_of: Callable[[Tensor], Place | None],
) -> CachedLaunch | None:  # fmt: skip
    """The launch of a compiled kernel, for `start`; None if `place_of` returns None for one of its tensors.

    Args:
        names: the parameters of the kernel.
        args, constants: the arguments, by position and by name.
        place_of: the number of a tensor, and the byte offset from the address of the tensor with this number.
    """
    values = [*args, *(constants[name] for name in names[len(args) :])]
    run: Any = compiled.run
    expansions: Iterator[Expand] = iter(())
    if any(_is_descriptor(value) for value in values):
        run, expansions = _unwrapped(run)
    plain: list[Any] = []
    pointers: list[tuple[int, int, int]] = []
    maps: list[tuple[int, int, int, Encode]] = []
    for value in values:
        tensor = value.base if _is_descriptor(value) else value
        if not isinstance(tensor, Tensor):
            plain.append(value)
            continue
        place = place_of(tensor)
        if place is None:
            return None
        if tensor is value:
            pointers.append((len(plain), *place))
            plain.append(0)
        else:
            expand = next(expansions)
            maps.append((len(plain), *place, _encoder(value, expand)))
            plain += 0, *expand(value)[1:]
    return CachedLaunch(run, programs, compiled.function, compiled.packed_metadata, tuple(plain), tuple(pointers), tuple(maps))


def _is_descriptor(value: Any) -> bool:
    return type(value).__name__ == "TensorDescriptor"


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


def _encoder(descriptor: Any, expand: Expand) -> Encode:
    """The encoder of a descriptor's tensor map. It keeps the latest MAX_TENSOR_MAPS maps by address."""
    form = {name: value for name, value in vars(descriptor).items() if name != "base"}

    @functools.lru_cache(MAX_TENSOR_MAPS)
    def encode(address: int) -> Any:
        return expand(SimpleNamespace(base=_At(address), **form))[0]

    return encode


def is_hooked(runtime: Any) -> bool:
    """Whether a launch hook is set in `triton.knobs.runtime`."""
    before, after = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def has_driver(triton: Any) -> bool:
    """Whether Triton has chosen a device to compile for."""
    return triton.runtime.driver._active is not None


def redefine_for_interpreter(triton: Any) -> None:
    """Define Triton's own device functions, such as tl.sum, again, if they are defined for the compiler."""
    if isinstance(triton.language.sum, triton.JITFunction):
        for module in (triton.language.standard, triton.language.random, triton.language):
            importlib.reload(module)


def interpreted(function: str) -> Callable[[Any], Any]:
    """A function of NumPy, such as "tanh", as a device function for the interpreter; computed in float64, then rounded."""
    numpy: Any = importlib.import_module("numpy")
    builder: Any = importlib.import_module("triton.runtime.interpreter").interpreter_builder

    def compute(values: Any) -> Any:
        with numpy.errstate(all="ignore"):
            return getattr(numpy, function)(values.astype(numpy.float64)).astype(values.dtype)

    def call(x: Any) -> Any:
        return type(x)(builder.unary_op(x.handle, compute), x.type)

    return call


def cache_key(function: Any) -> str:
    """Triton's hash of the source of a function and its callees; empty for a Python function."""
    return getattr(function, "cache_key", "")
