"""Shared fixtures and options of pytest.

`--tma` and `--tf32` run the tests with the TMA kernels (support/tma.py) or with TF32 products (support/truncated.py), in the
interpreter too. After tests with torch's own inputs (support/torchs_material.py), a table counts the passed inputs; `--record`
stores the counts for docs/evidence.md, and those of convert/test_coverage.py.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from tests import evidence
from tests.support.tma import tma_everywhere
from tests.support.truncated import tf32_products
from trinn.kernels import gather2d
from trinn.kernels.runtime import launch_cache
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

# Test files collected only on a machine without a GPU. They test host code, with CPU tensors in place of GPU tensors. A real
# GPU would add nothing to them.
WITHOUT_A_GPU = (
    "bench", "compile", "compiled", "contained", "coverage", "evidence", "gpu", "house", "install",
    "interpreted", "launch_cache", "machine_code", "mutants", "notes", "readme", "tune",
)  # fmt: skip
collect_ignore_glob = [f"*/test_{name}.py" for name in WITHOUT_A_GPU] if torch.cuda.is_available() else []


if INTERPRETED:
    torch.set_num_threads(1)  # with several threads, torch writes to a repeated index in any order


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tiles of 16 and several splits in the interpreter, so edges, loops and the kernels that add the splits all run."""
    if INTERPRETED:
        monkeypatch.setattr(settings, "interpreted_block", 16)
        monkeypatch.setattr(settings, "interpreted_rows", 3)
        monkeypatch.setattr(gather2d, "MAX_UNROLLED", 3)
        monkeypatch.setattr(settings, "wanted_programs", 8)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    """Tests of whole networks run one program per launch. The operators' own tests cover the borders between tiles.

    The interpreter's matrix products are exact before they are rounded: NumPy's order of additions depends on the CPU, and is
    not the order on a GPU.
    """
    multiply = numpy.matmul

    def matmul(a: Any, b: Any, dtype: Any = None) -> Any:
        return multiply(a, b, dtype=numpy.float64).astype(dtype)

    monkeypatch.setattr(settings, "interpreted_block", 16384)
    monkeypatch.setattr(settings, "wanted_programs", 1)
    monkeypatch.setattr(numpy, "matmul", matmul)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill torch.empty with NaN, so an element without a write fails the test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def precision_flags() -> Iterator[None]:
    """Restore torch's fp32_precision flags after each test."""
    conv, matmul = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = conv, matmul


@pytest.fixture(autouse=True)
def empty_launch_cache() -> None:
    """Clear the launch cache: a launch recorded by an earlier test would ignore this test's patches."""
    launch_cache.clear()


@pytest.fixture(autouse=True)
def tma(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--tma`, run convolutions through TMA wherever Hopper does, in the interpreter too."""
    with tma_everywhere() if request.config.getoption("--tma") else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--tf32`, multiply in TF32 wherever a GPU does, in the interpreter too."""
    with tf32_products() if request.config.getoption("--tf32") else contextlib.nullcontext():
        yield


@pytest.fixture
def rowwise_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum all rows of a matrix product in the same order in the interpreter. NumPy's order may depend on the row's index."""

    def matmul(a: Any, b: Any, dtype: Any = None) -> Any:
        return (a[:, :, None] * b[None, :, :]).sum(axis=1, dtype=dtype)

    monkeypatch.setattr(numpy, "matmul", matmul)


@pytest.fixture
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn TF32 off in torch and trinn, so tolerances made for float32 hold on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tma", action="store_true", help="run convolutions through TMA wherever possible, in the interpreter too"
    )
    parser.addoption("--tf32", action="store_true", help="truncate operands to TF32 where torch allows it, as on a GPU")
    parser.addoption("--record", action="store_true", help="store counts for docs/evidence.md: torch's own inputs, coverage")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    summarise_long_tests(terminalreporter)
    summarise_torchs_material(terminalreporter, config)


def summarise_long_tests(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of long tests of each file, and their seconds in all processes together; the slowest file first."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        if report.when == "call" and {"long", "torchs_material"} & report.keywords.keys():
            counts[report.fspath] += 1
            seconds[report.fspath] += report.duration  # type: ignore[assignment]
    if counts:
        terminalreporter.section(f"{counts.total()} long tests: {seconds.total():.0f} s of all processes together")
        for file, duration in seconds.most_common():
            terminalreporter.write_line(f"{counts[file]:6} tests {duration:8.0f} s  {file}")


def summarise_torchs_material(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a table of torch's own inputs: how many passed, and how many were left out. `--record` stores it."""
    passed: dict[str, Counter[str]] = {}
    totals: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for key, value in report.user_properties:
            if key == "torch's material" and report.when == "call":
                name, check, count, total, ignored = value
                passed.setdefault(name, Counter())[check] += count
                totals[name, check], left_out[name] = total, ignored
    if not passed:
        return
    terminalreporter.section("Passed, of torch's own inputs")
    columns = sorted({check for _, check in totals})
    terminalreporter.write_line(" " * 24 + "".join(f"{column:>15}" for column in (*columns, "left out")))
    for name, counts in sorted(passed.items()):
        cells = [f"{counts[check]} of {totals[name, check]}" if check in counts else "" for check in columns]
        terminalreporter.write_line(f"{name:24}" + "".join(f"{cell:>15}" for cell in (*cells, left_out[name] or "")))
    if config.getoption("--record"):
        if terminalreporter.stats.get("failed") or any(passed[name][check] < total for (name, check), total in totals.items()):
            terminalreporter.write_line("Not recorded: some inputs did not run or did not pass.")
            return
        figures = {name: dict(counts) | {"left out": left_out[name]} for name, counts in sorted(passed.items())}
        evidence.record("torchs_material", {"passed": figures})
