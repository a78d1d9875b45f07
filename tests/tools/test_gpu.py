"""`make gpu` (bench/gpu.py) without a GPU: time limits, recorded results, summary; and the packed kernel cache."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import gpu, gpu_cache
from bench.gpu import Part
from tests.conftest import WITHOUT_A_GPU
from tests.mutants import path_of_test
from tests.tools.test_install import ROOT

CHILD = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
)


def test_parts_are_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing and hanging parts do not stop the next part, and their child processes are killed. Each part is recorded."""
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    python = [sys.executable, "-c"]
    parts = [
        Part("right", [*python, "print('one')"], 60),
        Part("wrong", [*python, "import os; print('two', flush=True); os.abort()"], 60),
        Part("hangs", [*python, CHILD], 2),
        # A part without a time limit gets the remaining minutes as its last argument.
        Part("last", [*python, "import sys; print('minutes', sys.argv[1])"], None),
    ]
    assert not gpu.run_all(parts, tmp_path, 120)
    ended = {row["part"]: row["ended"] for row in json.loads((tmp_path / "parts.json").read_text())}
    assert ended == {"right": "exit status 0", "wrong": "exit status -6", "hangs": "timed out", "last": "exit status 0"}
    log = (tmp_path / "log.txt").read_text()
    assert all(words in log for words in ("\none\n", "\ntwo\n", "minutes 1."))
    assert "last" not in "\n".join(gpu.summary(tmp_path)) and "hangs: timed out" in gpu.summary(tmp_path)[1]


def test_no_part_starts_without_time(tmp_path: Path) -> None:
    assert not gpu.run_all([Part("late", [sys.executable, "-c", "open('/none')"], 60)], tmp_path, 0)
    assert json.loads((tmp_path / "parts.json").read_text())[0]["ended"] == "not started: no time left"


def test_limits_fit() -> None:
    """The parts with a limit leave the benchmark almost three of the nine minutes. All test files and modules exist."""
    limited = sum(part.seconds or 0 for part in gpu.parts(Path("out")))
    assert limited <= 9 * 60 - 160
    files = {*gpu.CALLS, *gpu.TESTS, *gpu.ON_A_GPU_ALONE}
    assert all((ROOT / file).exists() for file in files)
    assert not set(WITHOUT_A_GPU) & {Path(file).stem.removeprefix("test_") for file in files}
    assert all(map(path_of_test, WITHOUT_A_GPU))
    commands = [
        *(part.command for part in gpu.parts(Path("out"))),
        *(command for command, _ in gpu_cache.commands(Path("stub"))),
    ]
    assert all(command[1] == "-m" and find_spec(command[2]) for command in commands)


def result(name: str, outcome: str, error: str = "") -> str:
    return json.dumps(
        {"test": name, "outcome": outcome, "seconds": 1.0, "error": error, "kernels": {"found": 2, "compiled": 1}}
    )


def time_of(side: str, median: float) -> dict[str, Any]:
    return {"side": side, "mode": "eager", "layout": "contiguous", "median": median, "low": median, "high": median}


def test_summary(tmp_path: Path) -> None:
    """Failures and slow rows in at most 60 lines; `python -m bench report` prints the same."""
    several = [result(f"tests/test_{i}.py::test[{j}]", "failed", f"error {i}") for i in range(20) for j in range(i + 1)]
    passed = [result("tests/test_conv.py::test[a]", "passed"), result("tests/test_conv.py::test[b]", "passed")]
    broken = [result("tests/test_conv.py::test[b]", "failed", "worker 'gw1' crashed")]
    (tmp_path / "tests.jsonl").write_text("\n".join([*passed, *several, *broken]) + '\n{"test": "cut o')
    row: dict[str, Any] = {
        "op": "relu", "pass": "forward", "arithmetic": "bf16", "against": "eager", "bytes": 10**9, "flops": 0,
        "sets": 2, "failed": {}, "checked": {"contiguous": {"errors": {}, "wrong": None, "truncated": [], "strides": None}},
    }  # fmt: skip
    rows = [row | {"name": f"case {i}", "times": [time_of("ours", 1e-3 * (1 + i)), time_of("torch", 2e-3)]} for i in range(30)]
    rows.append(rows[0] | {"name": "off", "checked": {"contiguous": row["checked"]["contiguous"] | {"wrong": "is off"}}})
    benchmark = {
        "environment": {"gpu": "GPU"}, "ceilings": {"copy": 4e12, "product": {}}, "rows": rows, "left": [["a"]] * 3,
        "failed": [{"item": ["case", "one"], "why": "crashed"}] * 9,
    }  # fmt: skip
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "20261128T2000-quick.json").write_text(json.dumps(benchmark))
    lines = gpu.summary(tmp_path)
    text = "\n".join(lines)
    assert len(lines) <= gpu.SUMMARY_LINES
    assert "tests: 1 passed, 211 failed, 0 skipped; kernels: 213 compiled, 426 found in the cache" in text
    assert "    20 x test_19.py::test: error 19" in text and "9 other tests" in text
    assert "off forward bf16 eager: WRONG in contiguous: is off" in text and "3 missing" in text
    assert "measured here: 4.00 TB/s in a copy" in text
    assert "0.07 x torch  case 29 forward bf16 eager" in text and "120.0 x the floor  case 29" in text
    again = subprocess.run([sys.executable, "-m", "bench", "report", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.splitlines() == lines


SAMPLE = """
import os, sys
from pathlib import Path
os.environ["TRITON_INTERPRET"] = "0"
import torch, triton
from bench import gpu_cache
from bench.compile.code import Driver
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels import launchers

packed = Path(sys.argv[1])
if sys.argv[2] == "use":
    print(gpu_cache.unpacked(packed))
triton.runtime.driver.set_active(Driver("sm_90"))
found = []
triton.knobs.compilation.listener = lambda **heard: found.append(heard["cache_hit"])
new = lambda *shape: torch.empty(*shape, dtype=torch.float16, device="meta")
with intercepted(lambda kernel, _, args, constants: kernel.warmup(*args, grid=(1,), **constants), "sm_90"):
    launchers.activation_forward(new(2, 3, 8, 8), "relu")
    launchers.activation_forward(new(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)[:, 1:], "relu")
    launchers.conv2d_fprop(new(2, 8, 5, 5), new(4, 8, 3, 3), None, (3, 3), (1, 1), (0, 0), (1, 1), 1)
print(found)
if sys.argv[2] == "pack":
    gpu_cache.pack(Path(triton.knobs.cache.dir), packed)
"""


def sample(step: str, packed: Path, cache: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAMPLE, str(packed), step]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_finds_packed_kernels(tmp_path: Path) -> None:
    """A process with another cache folder finds each packed kernel by its key. Files for debugging are not packed."""
    packed = tmp_path / "cache.tar.xz"
    assert sample("pack", packed, tmp_path / "first") == [str([False] * 3)]
    shutil.rmtree(tmp_path / "first")  # Triton stores absolute paths
    message, found = sample("use", packed, tmp_path / "second")
    assert "3 kernels unpacked" in message and found == str([True] * 3)
    suffixes = {path.suffix for path in (tmp_path / "second").rglob("*") if path.is_file()}
    assert suffixes == {".cubin", ".json"}


def test_kernels_of_other_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "one.cubin").write_bytes(b"code")
    gpu_cache.pack(tmp_path / "cache", tmp_path / "packed")
    assert gpu_cache.unpack(tmp_path / "packed", tmp_path / "again") == 1
    here = gpu_cache.about()
    monkeypatch.setattr(gpu_cache, "about", lambda: here | {"sources": "others"})
    with pytest.raises(ValueError, match="sources .*, here others"):
        gpu_cache.unpack(tmp_path / "packed", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert "is not used" in gpu_cache.unpacked(tmp_path / "packed")


def test_hash_changes_with_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a line to a kernel, or a file, changes the hash."""
    monkeypatch.setattr(gpu_cache, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    hashes = [gpu_cache.about()["sources"]]
    for name, text in (("a.py", "x"), ("a.py", "\nx"), ("b.py", "\nx")):
        (tmp_path / "kernels" / name).write_text(text)
        hashes.append(gpu_cache.about()["sources"])
    assert len(set(hashes)) == 4


KEY = """
import importlib, os, sys
os.environ["TRITON_INTERPRET"] = "0"
names = {"linear": "_linear_matmul_kernel", "conv2d.pointer": "_conv2d_gather_kernel"}
keys = {name: getattr(importlib.import_module(f"trinn.kernels.{name}"), names[name]).cache_key for name in sys.argv[1:]}
print(keys["linear"])
"""


def test_keys_do_not_depend_on_order() -> None:
    """The key of a kernel is the same whichever kernel with the same callee is launched first.

    Otherwise another process would miss both kernels in the cache.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = {
        subprocess.run([sys.executable, "-c", KEY, *order], env=environment, cwd=ROOT, capture_output=True, text=True).stdout
        for order in (("linear", "conv2d.pointer"), ("conv2d.pointer", "linear"))
    }
    assert len(found) == 1 and found != {""}
