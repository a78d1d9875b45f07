"""A GPU that stands still: launches get as far as its driver, on CPU tensors and without a GPU. To be imported before trinn."""

import os

os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton

from bench.machine_code import Driver
from trinn.kernels import launch, replay


class Launcher:
    """Starts nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass


class StillDriver(Driver):
    """Compiles for a GPU, loads and starts nothing."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda *_: (None, 1, 32, 0, 1024), get_device_properties=lambda _: {"max_shared_mem": 227 << 10}
    )


def stand_in(architecture: str = "sm_90") -> None:
    """From now on, in this process, CPU tensors are that GPU's, and kernels are compiled for it."""
    triton.runtime.driver.set_active(StillDriver(architecture))
    launch.GPU, launch.current_device = "cpu", lambda: None  # type: ignore[assignment,return-value]
    replay._current_stream, replay.on_gpu = lambda device: 0, torch._C.TensorBase.is_cpu.__get__  # type: ignore[attr-defined]
    properties: Any = SimpleNamespace(major=int(architecture[3:-1]), minor=int(architecture[-1]))
    torch.cuda.get_device_properties = lambda _=None: properties  # type: ignore[assignment]
    torch.cuda.get_device_name = lambda _=None: "a still GPU"  # type: ignore[assignment]


def compile_nothing(seen: Callable[[int, Any, tuple[Any, ...]], None]) -> None:
    """From now on a kernel's function is what Triton would have compiled it by; `seen` gets programs, function, arguments."""

    def run(g0: int, g1: int, g2: int, stream: int, function: Any, metadata: Any, *rest: Any) -> None:
        assert (g1, g2, stream, metadata) == (1, 1, 0, ()), "of another form than Triton's"
        seen(g0, function, rest[3:])

    def do_compile(self: Any, key: Any, _signature: Any, device: Any, *_: Any) -> Any:
        function = self.__name__, tuple(self.arg_names), key
        kernel = SimpleNamespace(run=run, function=function, packed_metadata=(), launch_metadata=lambda *_: None)
        self.device_caches[device][0][key] = kernel
        return kernel

    triton.runtime.jit.JITFunction._do_compile = do_compile
