"""Rehearse `make gpu` on the stub GPU (a fake driver), with the Python, torch and Triton of the GPU machine: `make rehearse`.

`python -m tests.rehearsal` runs:

    - the tests of bench/gpu.py, in processes whose CPU tensors act as CUDA tensors: pytest -p tests.rehearsal
    - the cases of `python -m bench --quick`, shrunk, and a network: each pass of trinn and of torch, with a fake clock
    - random calls of every operator, through Triton's C launchers and through the launch cache, on the stub driver: the bytes
      passed to cuLaunchKernelEx must be equal (tests/support/cached_launches.py and tests/support/descriptors.py)

It records the figures for docs/evidence.md. No kernel runs, so results are not computed and not compared: a test passes if its
Python code runs. A test that launched kernels and then failed because of a value counts as passed. Any other exception is a
fault. With REHEARSAL_COMPILES set, the kernels are compiled, for `make gpu-cache`.
"""

import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import stub_gpu  # sets TRITON_INTERPRET, so it comes before trinn and triton

import torch  # isort: skip
from torch.autograd.gradcheck import GradcheckError

import tests.support.check
from bench import gpu, gpu_cache, registry, stub_driver
from bench.time import case, networks
from bench.time.protocol import Machine
from tests import evidence
from trinn.kernels import max_unpool2d

ROOT = Path(__file__).resolve().parent.parent
RECORD = "REHEARSAL"  # environment variable: a file to which each test adds a line
WRONG_VALUES = (AssertionError, GradcheckError, pytest.fail.Exception)  # raised for wrong values

launches: list[str] = []  # one entry per launch of the current test: the kernel and its specialisation


class Stream:
    """A fake CUDA stream, event, graph or capture. Every method does nothing."""

    cuda_stream = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def stand_in() -> None:
    """Install the stub GPU in this process."""
    stub_gpu.stand_in()
    if os.environ.get("REHEARSAL_COMPILES"):
        stub_driver.install(lambda launch: launches.append(str(launch.function)))
    else:
        stub_gpu.compile_nothing(lambda programs, function, args: launches.append(repr(function)))
    torch.cuda.get_device_name = lambda _=None: gpu_cache.GPU  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda _=None: (9, 0)  # type: ignore[assignment]
    torch.cuda.mem_get_info = lambda _=None: (0, 0)  # type: ignore[assignment]
    torch.cuda.synchronize = torch.cuda._sleep = lambda *_: None  # type: ignore[assignment]
    for name in ("Stream", "Event", "CUDAGraph", "graph", "stream", "current_stream"):
        setattr(torch.cuda, name, lambda *args, **options: Stream())
    for module, name, result in (
        (max_unpool2d, "_check", None),  # the CPU's check of indices; on a GPU the kernel checks
        (tests.support.check, "check_results", None),
        (tests.support.check, "close", None),
        (torch, "equal", True),
        (torch, "allclose", True),
        (torch.Tensor, "allclose", True),
        (torch.testing, "assert_close", None),
    ):
        setattr(module, name, lambda *args, result=result, **options: result)


def pytest_configure() -> None:
    stand_in()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect tests that need a GPU. While tests run, torch must find no GPU: it would call the driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Ignore a failure because of values, if kernels were launched: no kernel computed the values."""
    report = yield
    if call.when == "setup":
        launches.clear()
    if report.failed and call.excinfo is not None and launches and call.excinfo.errisinstance(WRONG_VALUES):
        report.outcome = "passed"
    if RECORD in os.environ and (call.when == "call" or not report.passed):
        row = {"test": item.nodeid, "outcome": report.outcome, "launches": len(launches), "kernels": sorted(set(launches))}
        with open(os.environ[RECORD], "a") as file:
            file.write(json.dumps(row) + "\n")
    return report


def tests_run(environment: dict[str, str]) -> dict[str, Any]:
    """Run the tests. Return the numbers of tests, of tests that launch, of distinct kernels, and the failed tests."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "rows")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.rehearsal", "--tb=short"]
        command += ["-n", str(len(os.sched_getaffinity(0))), *gpu.CALLS, *gpu.TESTS]
        subprocess.run(command, cwd=ROOT, env=environment | {RECORD: str(record)})
        rows = [json.loads(line) for line in record.read_text().splitlines()]
    return {
        "tests": len({row["test"] for row in rows}),
        "launching": len({row["test"] for row in rows if row["launches"]}),
        "kernels": len(set().union(*(row["kernels"] for row in rows))),
        "faults": sorted({row["test"] for row in rows if row["outcome"] == "failed"}),
    }


class FakeClock:
    def seconds(self, calls: Sequence[Callable[[], object]], ahead: bool) -> float:
        for call in calls:
            call()
        return 1e-3


def measure() -> None:
    """Print a line of JSON for each row of the benchmark: its name, failures, and number of launches."""
    stand_in()
    machine = Machine("cpu", FakeClock())
    cases = ((name, arithmetic) for name, several in registry.QUICK.items() for arithmetic in several)
    small = dataclasses.replace(networks.MODELS["LeNet b128"], batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case, "words_of", lambda errors: None)
        patch.setattr(case, "other_bits", lambda got, before: None)
        for found in (
            *(case.rows_of(registry.CASES[name].small(), arithmetic, machine, rounds=2) for name, arithmetic in cases),
            networks.rows_of("LeNet", small, "bf16", machine, rounds=2),
        ):
            for row in found:
                name = f"{row['name']} {row['pass']} {row['arithmetic']}"
                print(json.dumps({"test": name, "failed": row["failed"], "launches": len(launches)}))
                launches.clear()


def rows_measured(environment: dict[str, str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.rehearsal", "measure"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the benchmark: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def bytes_compared(environment: dict[str, str]) -> dict[str, int]:
    """Compare random calls. Return counts: compared launches, replayed launches, tensor maps, C launchers.

    The counts are from tests.support.cached_launches, the last module.
    """
    for module in ("tests.support.descriptors", "tests.support.cached_launches"):
        command = [sys.executable, "-m", module, "--stub"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{module}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    patterns = {
        "compared": "launches compared",
        "replayed": "of them replayed",
        "maps": "tensor maps",
        "launchers": "C launchers",
    }
    return {name: int(re.findall(rf"(\d+) {words}", done.stdout)[0]) for name, words in patterns.items()}


def main() -> int:
    if sys.argv[1:] == ["measure"]:
        measure()
        return 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    measured = rows_measured(environment)
    figures = {"date": f"{datetime.date.today()}", **tests_run(environment), "bytes": bytes_compared(environment)}
    figures["rows"] = len(measured)
    figures["faults"] += [row["test"] for row in measured if row["failed"] or not row["launches"]]
    print(json.dumps(figures, indent=1))
    evidence.record("rehearsal", figures, "a stub GPU")
    evidence.PAGE.write_text(evidence.render())
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
