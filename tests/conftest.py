"""What every test runs under: small tiles in the interpreter, so that a small shape has several; NaN in fresh memory.

A run ends with the number of torch's own inputs that passed; `--record` keeps it for docs/evidence.md.
"""

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from tests import evidence
from tests.cutting import units_that_cut
from tests.tma import tma_everywhere
from trinn.kernels import gather2d
from trinn.kernels.runtime import launch_cache
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

# What these test is the same with a GPU, and they assume that there is none: CPU tensors stand for its own.
WITHOUT_A_GPU = (
    "bench", "bench_conv", "compile", "contained", "convolution_page", "evidence", "gpu", "house", "install", "interpreted",
    "machine_code", "mutants", "notes", "launch_cache", "rates", "readme", "tune",
)  # fmt: skip
collect_ignore = [f"test_{name}.py" for name in WITHOUT_A_GPU] if torch.cuda.is_available() else []


def looked_up_once(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Triton's table of NumPy's dtypes, asked once for each scalar type: the interpreter builds all of it at every step."""
    language = importlib.import_module("triton.language")
    known: dict[str, Any] = {}

    def dtype_of(type_: Any) -> Any:
        if type(type_) is not language.dtype:
            return find(type_)
        if type_.name not in known:
            known[type_.name] = find(type_)
        return known[type_.name]

    return dtype_of


if INTERPRETED:
    torch.set_num_threads(1)  # torch writes to indices that repeat in the order of its threads
    interpreter = vars(importlib.import_module("triton.runtime.interpreter"))  # behind trinn, which tells Triton to interpret
    interpreter["_get_np_dtype"] = looked_up_once(interpreter["_get_np_dtype"])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 and several splits where kernels are interpreted: edges, loops and second passes all take part."""
    if INTERPRETED:
        monkeypatch.setattr(settings, "interpreted_block", 16)
        monkeypatch.setattr(settings, "interpreted_rows", 3)
        monkeypatch.setattr(gather2d, "MAX_UNROLLED", 3)
        monkeypatch.setattr(settings, "wanted_programs", 8)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    """One program a launch: for what is made of operators, whose own tests see the seams of tiles."""
    monkeypatch.setattr(settings, "interpreted_block", 16384)
    monkeypatch.setattr(settings, "wanted_programs", 1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def precision_flags() -> Iterator[None]:
    """What torch allows float32 to be computed in is after a test what it was before."""
    conv, matmul = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = conv, matmul


@pytest.fixture(autouse=True)
def launchers_run() -> None:
    """What a test changes about them, no launch of an earlier one stands for."""
    launch_cache.clear()


@pytest.fixture(autouse=True)
def tma(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--tma` the interpreter, too, takes the convolutions that Hopper does in boxes."""
    with tma_everywhere() if request.config.getoption("--tma") else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--tf32` the interpreter's products are those of TF32 wherever a GPU's are."""
    with units_that_cut() if request.config.getoption("--tf32") else contextlib.nullcontext():
        yield


@pytest.fixture
def rowwise_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's matrix products with every row summed alike. NumPy's may sum a row otherwise at another place."""

    def matmul(a: Any, b: Any, dtype: Any = None) -> Any:
        return (a[:, :, None] * b[None, :, :]).sum(axis=1, dtype=dtype)

    monkeypatch.setattr(numpy, "matmul", matmul)


@pytest.fixture
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 in torch's float32 nor in ours: tolerances made for float32 hold on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tma", action="store_true", help="convolutions in boxes wherever they can be, in the interpreter too")
    parser.addoption("--tf32", action="store_true", help="products of cut numbers where torch allows TF32, as on a GPU")
    parser.addoption("--record", action="store_true", help="keep the number of torch's own inputs that passed, if all did")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    passed: dict[str, Counter[str]] = {}
    of: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for key, value in report.user_properties:
            if key == "torch's material" and report.when == "call":
                name, check, count, total, ignored = value
                passed.setdefault(name, Counter())[check] += count
                of[name, check], left_out[name] = total, ignored
    if not passed:
        return
    terminalreporter.section("torch's own inputs that passed")
    columns = sorted({check for _, check in of})
    terminalreporter.write_line(" " * 24 + "".join(f"{column:>15}" for column in (*columns, "left out")))
    for name, counts in sorted(passed.items()):
        cells = [f"{counts[check]} of {of[name, check]}" if check in counts else "" for check in columns]
        terminalreporter.write_line(f"{name:24}" + "".join(f"{cell:>15}" for cell in (*cells, left_out[name] or "")))
    if config.getoption("--record"):
        if terminalreporter.stats.get("failed") or any(passed[name][check] < total for (name, check), total in of.items()):
            terminalreporter.write_line("Not recorded: not all of them ran and passed.")
            return
        figures = {name: dict(counts) | {"left out": left_out[name]} for name, counts in sorted(passed.items())}
        evidence.record("torchs_material", {"passed": figures})
