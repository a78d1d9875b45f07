"""A stub CUDA driver that records launches: Triton 3.6 builds and calls its real C launchers, without a GPU.

Call `install` after `stub_gpu.stand_in`. It builds bench/stub_libcuda.c and loads it under the name of NVIDIA's driver.
"""

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from bench import stub_gpu  # before triton

import triton  # isort: skip
from triton.backends.nvidia import driver
from triton.runtime import build

from trinn.kernels.runtime import launch_cache

LIBRARY = "libcuda.so.1"
STREAM = 0x5714EA40  # the stream of every launch
# Triton's name of an element type: its number in a tensor map's metadata, and its size in bytes.
ELEMENTS = {"i8": (0, 1), "u8": (0, 1), "fp16": (6, 2), "bf16": (10, 2), "fp32": (7, 4), "fp64": (9, 8)}


class KernelLaunch(NamedTuple):
    """A launch that reached the stub driver: the arguments of a call of cuLaunchKernelEx."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    function: int
    attributes: tuple[tuple[bytes, bytes], ...]  # id and value of each
    parameters: tuple[tuple[str, bytes], ...]  # C type and value of each; the last two are scratch memory


SIZES = {"CUdeviceptr": 8, "CUtensorMap": 128} | {f"{u}int{8 * n}_t": n for u in ("", "u") for n in (1, 2, 4, 8)}  # bytes
MOST = 32764  # bytes of all parameters
SOURCES: set[str] = set()  # sources of the C launchers in use
KERNELS: dict[tuple[str, Any], int] = {}  # function handles by kernel name and cache key, filled by compile_nothing


_kinds: list[str] = []  # C types of the parameters of the coming launch
_launches: list[KernelLaunch] = []


@ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32), *3 * [ctypes.c_uint64], ctypes.POINTER(ctypes.c_void_p))
def _observe(numbers: Any, stream: int, function: int, attributes: int, parameters: Any) -> None:
    """Read the arguments of cuLaunchKernelEx. stub_libcuda.c calls this function."""
    starts = range(attributes, attributes + 72 * numbers[7], 72)  # of a CUlaunchAttribute: an id, 4 unused bytes, a value
    read = tuple((ctypes.string_at(at, 4), ctypes.string_at(at + 8, 64)) for at in starts)
    values = tuple((kind, ctypes.string_at(parameters[i], SIZES[kind])) for i, kind in enumerate(_kinds))
    _launches.append(KernelLaunch(tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], stream, function, read, values))


def build_library(folder: str) -> str:
    """Compile stub_libcuda.c into a folder. Return the path of the library."""
    library, options = f"{folder}/{LIBRARY}", [f"-I{path}" for path in driver.include_dirs] + [f"-Wl,-soname,{LIBRARY}"]
    subprocess.run(["cc", "-shared", "-fPIC", *options, Path(__file__).with_name("stub_libcuda.c"), "-o", library], check=True)
    return library


def parameter_types(launcher: str) -> list[str]:
    """The C types of a kernel's parameters, from the source of its launcher."""
    found = re.search(r"static void _launch\(.*?CUdeviceptr profile_scratch(.*?)\) \{", launcher)
    assert found is not None, "the launcher differs from Triton 3.6's"
    return [declared.split()[0] for declared in found[1].split(",")[1:]] + ["CUdeviceptr"] * 2


def install(on_launch: Callable[[KernelLaunch], None]) -> None:
    """Run Triton's host code on the stub driver from now on in this process, and call `on_launch` with each launch."""
    assert triton.__version__.startswith("3.6."), f"the stub driver is for Triton 3.6, and this is {triton.__version__}"
    assert "libcuda.so" not in Path("/proc/self/maps").read_text(), "this process has loaded a CUDA driver already"
    folder = tempfile.TemporaryDirectory()
    ctypes.CDLL(build_library(folder.name), mode=ctypes.RTLD_GLOBAL).stub_observe(_observe)

    def build_launcher(src: str, **options: Any) -> Any:
        SOURCES.add(src)
        real_launch = build.compile_module_from_src(src=src, **options).launch
        kinds = parameter_types(src)
        assert sum(SIZES[kind] for kind in kinds) <= MOST, "too many parameters"

        def launch(*args: Any) -> None:
            _kinds[:] = kinds
            _launches.clear()
            real_launch(*args)
            assert len(_launches) == 1, "not one launch"
            on_launch(_launches[0])

        return SimpleNamespace(launch=launch)

    driver.library_dirs, driver.compile_module_from_src = lambda: [folder.name], build.compile_module_from_src
    stub_gpu.StubDriver.utils = driver.CudaUtils()  # builds Triton's driver.c
    driver.compile_module_from_src = build_launcher
    stub_gpu.StubDriver.get_current_stream = lambda self, device: STREAM  # type: ignore[method-assign]
    launch_cache._current_stream = lambda device: STREAM


def compile_nothing() -> None:
    """Replace compiled kernels by numbers from now on. The stub driver still records their launches."""

    def compiled(kernel: Any, key: Any, options: Any) -> tuple[int, tuple[int, int, int]]:
        handle = KERNELS.setdefault((kernel.__name__, key), len(KERNELS) + 1)
        return handle, (options.num_warps, options.num_ctas, 16 * handle % (227 << 10))

    def map_metadata(kind: str) -> dict[str, Any]:
        [(element, lengths)] = re.findall(r"^tensordesc<(\w+)\[([\d, ]+)\]", kind)
        number, size = ELEMENTS[element]
        *outer, inner = map(int, lengths.split(","))
        block = [*(min(length, 256) for length in outer), min(inner, 128 // size)]
        swizzle = {16: 0, 32: 1, 64: 2, 128: 3}[block[-1] * size]
        return {"swizzle": swizzle, "elem_size": size, "elem_type": number, "block_size": block, "fp4_padded": False}

    stub_gpu.replace_compiler(compiled, map_metadata)
