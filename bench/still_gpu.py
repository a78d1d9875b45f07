"""A GPU that stands still: launches get as far as its driver, on CPU tensors and without a GPU. To be imported before trinn."""

from bench import compiled_only  # noqa: F401  # before triton  # isort: skip

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.nvidia import driver

from bench.machine_code import Driver
from trinn.kernels.runtime import hardware, interpreter, launch_cache

Seen = Callable[[int, Any, tuple[Any, ...]], None]  # programs, function, arguments


class TensorMap(NamedTuple):
    """What a tensor descriptor is encoded from, in place of what it is encoded to."""

    address: int
    swizzle: int
    element_size: int
    element_type: int
    block: Any
    sizes: Any
    strides: Any
    padding: int


class StillDriver(Driver):
    """Compiles for a GPU, loads and starts nothing. Launches are Triton's as far as its Python goes."""

    launcher_cls = driver.CudaLauncher
    utils = SimpleNamespace(
        load_binary=lambda name, *_: (name, name, 32, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        launch=lambda *_: None,
        build_signature_metadata=tuple,
        fill_tma_descriptor=TensorMap,
        fill_tma_descriptor_tiled=TensorMap,  # its name from 3.7 on
    )


def stand_in(architecture: str = "sm_90") -> None:
    """From now on, in this process, CPU tensors are that GPU's, and kernels are compiled for it."""
    triton.runtime.driver.set_active(StillDriver(architecture))
    driver.PyKernelArg = SimpleNamespace
    driver.library_dirs, driver.compile_module_from_src = list, lambda **_: StillDriver.utils  # a `launch` for each signature
    hardware.GPU, hardware.current_device = "cpu", lambda: None  # type: ignore[assignment,return-value]
    interpreter.NOWHERE = ""
    launch_cache._current_stream, launch_cache.on_gpu = lambda device: 0, torch._C.TensorBase.is_cpu.__get__  # type: ignore[attr-defined]
    properties: Any = SimpleNamespace(major=int(architecture[3:-1]), minor=int(architecture[-1]))
    torch.cuda.get_device_properties = lambda _=None: properties  # type: ignore[assignment]
    torch.cuda.get_device_name = lambda _=None: "a still GPU"  # type: ignore[assignment]


def watch(seen: Seen) -> None:
    """From now on `seen` is told of each launch, in the form in which Triton's Python hands it on."""
    one_by_one = hasattr(driver, "_BASE_ARGS_FORMAT_LEN")  # before 3.7: arguments, after scratch memory and metadata

    def started(g0: int, g1: int, g2: int, stream: int, function: Any, *rest: Any) -> None:
        scratch, metadata, args = (rest[2:4], rest[4], rest[8:]) if one_by_one else (rest[6:8], rest[2], rest[10])
        assert (g1, g2, stream, scratch, type(metadata)) == (1, 1, 0, (None, None), tuple), "of another form than Triton's"
        seen(g0, function, tuple(args))

    StillDriver.utils.launch = started


def compile_nothing(seen: Seen) -> None:
    """From now on a kernel's function is what Triton would have compiled it by, and `seen` is told of each launch."""

    def counted(programs: int, function: Any, args: tuple[Any, ...]) -> None:
        sizes_and_strides = sum(2 * len(arg.sizes) for arg in args if isinstance(arg, TensorMap))
        assert len(args) == len(function[1]) + sizes_and_strides
        seen(programs, function, args)

    watch(counted)
    of_maps = ["swizzle", "elem_size", "elem_type", "fp4_padded"]
    replace_compiler(
        lambda kernel, key, options: ((kernel.__name__, tuple(kernel.arg_names), key), ()),
        lambda kind: dict.fromkeys(of_maps, 0) | {"block_size": kind},
    )


def replace_compiler(
    compiled: Callable[[Any, Any, Any], tuple[Any, Any]], map_metadata: Callable[[str], dict[str, Any]]
) -> None:
    """From now on Triton compiles no kernel.

    Args:
        compiled: of a kernel, its cache key and its options, the function and the packed metadata.
        map_metadata: of the type of a tensor descriptor, what a compiler says of its tensor map.
    """
    scratch = [f"{kind}_scratch_{what}" for kind in ("global", "profile") for what in ("size", "align")]
    metadata = dict.fromkeys([*scratch, "launch_cooperative_grid", "launch_pdl"], 0)

    def do_compile(
        self: Any, key: Any, signature: dict[str, Any], device: Any, constants: Any, options: Any, *_: Any, **__: Any
    ) -> Any:
        described = [kind for kind in signature.values() if isinstance(kind, str) and kind.startswith("tensordesc")]
        function, packed = compiled(self, key, options)
        told = SimpleNamespace(tensordesc_meta=list(map(map_metadata, described)), num_ctas=options.num_ctas, **metadata)
        run = driver.CudaLauncher(SimpleNamespace(fn=self, signature=signature), told)
        kernel = SimpleNamespace(run=run, function=function, packed_metadata=packed, launch_metadata=lambda *_: None)
        self.device_caches[device][0][key] = kernel
        return kernel

    triton.runtime.jit.JITFunction._do_compile = do_compile
