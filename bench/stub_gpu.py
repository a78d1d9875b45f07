"""A stub GPU: launches with CPU tensors reach a fake driver. No GPU is needed. Import this module before trinn."""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.nvidia import driver

from bench.compile.code import Driver
from trinn.kernels.runtime import hardware, interpreter, launch_cache

Observer = Callable[[int, Any, tuple[Any, ...]], None]  # programs, function, arguments


class TensorMap(NamedTuple):
    """The arguments of cuTensorMapEncodeTiled, in place of the encoded tensor map."""

    address: int
    swizzle: int
    element_size: int
    element_type: int
    block: Any
    sizes: Any
    strides: Any
    padding: int


class StubDriver(Driver):
    """A driver that compiles kernels but loads and launches nothing. Triton's own Python code prepares the launches."""

    launcher_cls = driver.CudaLauncher
    utils = SimpleNamespace(
        load_binary=lambda name, *_: (name, name, 32, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        launch=lambda *_: None,
        build_signature_metadata=tuple,
        fill_tma_descriptor=TensorMap,
        fill_tma_descriptor_tiled=TensorMap,  # the name since Triton 3.7
    )


def stand_in() -> None:
    """Treat CPU tensors as tensors on the stub GPU, an H200, and compile kernels for it, from now on in this process."""
    triton.runtime.driver.set_active(StubDriver("sm_90"))
    driver.PyKernelArg = SimpleNamespace
    # In place of the C module that Triton would compile. Triton calls only its `launch`.
    driver.library_dirs, driver.compile_module_from_src = list, lambda **_: StubDriver.utils
    hardware.GPU, hardware.current_device = "cpu", lambda: None  # type: ignore[assignment,return-value]
    interpreter.NO_DEVICE = ""
    launch_cache._current_stream, launch_cache.on_gpu = lambda device: 0, torch._C.TensorBase.is_cpu.__get__  # type: ignore[attr-defined]
    torch.cuda.get_device_properties = lambda _=None: SimpleNamespace(major=9, minor=0)  # type: ignore[assignment,return-value]
    torch.cuda.get_device_name = lambda _=None: "a stub GPU"  # type: ignore[assignment]


def watch(observer: Observer) -> None:
    """Call `observer` for each launch from now on, with the arguments as Triton's Python code passes them to C."""
    one_by_one = hasattr(driver, "_BASE_ARGS_FORMAT_LEN")  # before 3.7 the kernel's arguments are separate, and come last

    def started(g0: int, g1: int, g2: int, stream: int, function: Any, *rest: Any) -> None:
        scratch, metadata, args = (rest[2:4], rest[4], rest[8:]) if one_by_one else (rest[6:8], rest[2], rest[10])
        expected = g1 == g2 == 1 and stream == 0 and scratch == (None, None) and type(metadata) is tuple
        assert expected, "not the arguments of Triton's launcher"
        observer(g0, function, tuple(args))

    StubDriver.utils.launch = started


def compile_nothing(observer: Observer) -> None:
    """Replace compiled kernels by their compilation keys from now on, and call `observer` for each launch."""

    def counted(programs: int, function: Any, args: tuple[Any, ...]) -> None:
        sizes_and_strides = sum(2 * len(arg.sizes) for arg in args if isinstance(arg, TensorMap))
        assert len(args) == len(function[1]) + sizes_and_strides
        observer(programs, function, args)

    watch(counted)
    map_fields = ["swizzle", "elem_size", "elem_type", "fp4_padded"]
    replace_compiler(
        lambda kernel, key, options: ((kernel.__name__, tuple(kernel.arg_names), key), ()),
        lambda kind: dict.fromkeys(map_fields, 0) | {"block_size": kind},
    )


def replace_compiler(
    compiled: Callable[[Any, Any, Any], tuple[Any, Any]], map_metadata: Callable[[str], dict[str, Any]]
) -> None:
    """Replace Triton's compiler from now on.

    Args:
        compiled: returns the function and the packed metadata for a kernel, its cache key and its options.
        map_metadata: returns the compiler's metadata of a tensor map for the type of a tensor descriptor.
    """
    scratch = [f"{kind}_scratch_{what}" for kind in ("global", "profile") for what in ("size", "align")]
    metadata = dict.fromkeys([*scratch, "launch_cooperative_grid", "launch_pdl"], 0)

    def do_compile(
        self: Any, key: Any, signature: dict[str, Any], device: Any, constants: Any, options: Any, *_: Any, **__: Any
    ) -> Any:
        described = [kind for kind in signature.values() if isinstance(kind, str) and kind.startswith("tensordesc")]
        function, packed = compiled(self, key, options)
        launcher = SimpleNamespace(tensordesc_meta=list(map(map_metadata, described)), num_ctas=options.num_ctas, **metadata)
        run = driver.CudaLauncher(SimpleNamespace(fn=self, signature=signature), launcher)
        kernel = SimpleNamespace(run=run, function=function, packed_metadata=packed, launch_metadata=lambda *_: None)
        self.device_caches[device][0][key] = kernel
        return kernel

    triton.runtime.jit.JITFunction._do_compile = do_compile
