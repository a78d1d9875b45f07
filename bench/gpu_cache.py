"""Precompile the kernels of `make gpu`, so that time on the GPU is not spent on compilation: `make gpu-cache`.

The kernels of `python -m bench.gpu` are compiled for an H200, without a GPU, and packed into gpu-cache.tar.xz. bench.gpu
unpacks them into Triton's cache. Use the same Python, torch and Triton as on the GPU machine: a key in Triton's cache covers
the compiler and the kernel's source with its line numbers. The file contains the machine code and metadata of each kernel, and
Triton's C launchers, built against bench/stub_libcuda.c. It is not used if the files in kernels/ have changed, or with another
version of Triton or Python.
"""

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKED = ROOT / "gpu-cache.tar.xz"
KEPT = (".cubin", ".json", ".so")  # the files that Triton reads; its other files are for debugging
ABOUT = "about.json"
GPU = "NVIDIA H200"


def about() -> dict[str, str]:
    """Return the properties that a packed cache and this machine must share: kernels/, Triton and Python.

    Other files affect launches too, but a missing kernel is simply compiled at its launch.
    """
    import triton

    sources = hashlib.sha256()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        sources.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"sources": sources.hexdigest()[:16], "triton": triton.__version__, "python": python}


def pack(cache: Path, packed: Path) -> int:
    """Pack a Triton cache folder into a file. Return the number of kernels."""
    kept = [path for path in cache.rglob("*") if path.suffix in KEPT and path.is_file()]
    kept.sort(key=lambda path: (path.suffix, path.name, path.stat().st_size))  # similar files side by side: better compression
    content = json.dumps(about()).encode()
    first = tarfile.TarInfo(ABOUT)
    first.size = len(content)
    with tarfile.open(packed, "w:xz", preset=6) as file:
        file.addfile(first, io.BytesIO(content))
        for path in kept:
            file.add(path, str(path.relative_to(cache)))
    return sum(path.suffix == ".cubin" for path in kept)


def unpack(packed: Path, cache: Path) -> int:
    """Unpack a file of `pack` into a Triton cache folder. Return the number of kernels.

    Raises:
        ValueError: the file was compiled from other sources, by another Triton or for another Python.
    """
    with tarfile.open(packed, "r:xz") as file:
        first = file.next()
        of = json.load(file.extractfile(first)) if first is not None and first.name == ABOUT else {}  # type: ignore[arg-type]
        differing = [f"{key} {of.get(key)}, here {value}" for key, value in about().items() if of.get(key) != value]
        if differing:
            raise ValueError("compiled with other " + "; ".join(differing))
        kernels = 0
        for member in itertools.islice(file, 1, None):
            file.extract(member, cache, filter="data")
            path = cache / member.name
            if path.name.startswith("__grp__"):  # has the absolute paths of the files beside it
                children = json.loads(path.read_text())["child_paths"]
                path.write_text(json.dumps({"child_paths": {name: str(path.with_name(name)) for name in children}}))
            kernels += path.suffix == ".cubin"
    return kernels


def unpacked(packed: Path = PACKED) -> str:
    """Unpack the file into Triton's cache if it exists and matches this machine. Return a message."""
    import triton

    if not packed.exists():
        return f"no {packed.name}: kernels are compiled at their first launch"
    try:
        return f"{packed.name}: {unpack(packed, Path(triton.knobs.cache.dir))} kernels unpacked"
    except (ValueError, OSError, tarfile.TarError) as error:
        return f"{packed.name} is not used: {error}"


def commands(stub: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Return the commands that compile the launches of bench.gpu, each with additional environment variables.

    The first links with the stub driver library in the folder `stub`; the others install a stub themselves.
    """
    from bench import gpu

    python, processes = [sys.executable, "-m"], str(len(os.sched_getaffinity(0)))
    tests = ["pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.rehearsal", "-n", processes, *gpu.CALLS, *gpu.TESTS]
    linked = {"TRITON_LIBCUDA_PATH": str(stub), "LD_LIBRARY_PATH": f"{stub}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    return [
        ([*python, "bench", "--compile-only", "--quick", "--gpu", GPU], linked),
        ([*python, "tests.support.descriptors", "--stub"], {}),
        ([*python, *tests], {"REHEARSAL_COMPILES": "1"}),
    ]


def build(packed: Path) -> int:
    """Compile and pack. Return 0 if all commands succeeded."""
    from bench import stub_driver

    failed = []
    with tempfile.TemporaryDirectory() as folder:
        cache, stub = Path(folder, "cache"), Path(folder, "stub")
        stub.mkdir()
        stub_driver.build_library(str(stub))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(cache)}
        for command, more in commands(stub):
            print("==", *command[2:5], flush=True)
            if subprocess.run(command, cwd=ROOT, env=environment | more).returncode:
                failed.append(" ".join(command[2:]))
        kernels = pack(cache, packed)
    print(f"{packed.name}: {kernels} kernels, {packed.stat().st_size / 2**20:.1f} MiB")
    print(*(f"FAILED {command}" for command in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(build(PACKED))
