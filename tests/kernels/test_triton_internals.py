"""Triton's private parts, as kernels/runtime/triton_internals.py uses them, in each supported version.

The installed version is tested, and each version in .venv/triton-VERSION: `TRITON=3.6.0 make compile-report` installs one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from tests.tools.test_install import ROOT
from trinn.kernels.runtime.triton_internals import SUPPORTED, is_supported

INSTALLED = {triton.__version__: ""} | {
    path.name.removeprefix("triton-"): str(path) for path in sorted(ROOT.glob(".venv/triton-*")) if path.suffix != ".part"
}


def run(version: str, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{INSTALLED[version]}:{ROOT}".lstrip(":"), "OMP_NUM_THREADS": "1"}
    environment["TRITON_INTERPRET"] = "0"
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("version", INSTALLED)
def test_launches_and_descriptors(version: str) -> None:
    """`start` passes the same arguments to Triton's launch function as Triton does, tensor maps included."""
    assert is_supported(version)
    run(version, "-m", "tests.support.descriptors")


@pytest.mark.parametrize("version", INSTALLED)
def test_hooks_drivers_and_cache_keys(version: str, tmp_path: Path) -> None:
    program = f"""
import torch, triton, triton.language as tl
from trinn.kernels.runtime.triton_internals import cache_key, has_driver, is_hooked
assert triton.__version__ == {version!r}
@triton.jit
def first(x): return x + 1
@triton.jit
def second(x): return x + 2
assert cache_key(first) and cache_key(first) != cache_key(second) and cache_key(len) == ""
runtime, hook = triton.knobs.runtime, lambda *_: None
for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
    assert not is_hooked(runtime)
    chain.add(hook)
    assert is_hooked(runtime)
    chain.remove(hook)
assert not has_driver(triton)
triton.runtime.driver.set_active(object())
assert has_driver(triton)
"""
    file = tmp_path / "program.py"  # Triton reads the source of a kernel from a file
    file.write_text(program)
    run(version, str(file))


@pytest.mark.parametrize("version", INSTALLED)
def test_interpreter_caches(version: str) -> None:
    """The interpreter computes the same bits, and raises the same errors, with half the calls of Python functions."""
    run(version, "-m", "tests.support.interpreter_caches")


def test_every_supported_version_is_tested() -> None:
    missing = {minor for minor in SUPPORTED if not any(is_version(version, minor) for version in INSTALLED)}
    if missing:
        pytest.skip(f"not installed: Triton {missing}; TRITON=3.6.0 make compile-report installs one")


def is_version(version: str, minor: tuple[int, int]) -> bool:
    return tuple(map(int, version.split(".")[:2])) == minor
