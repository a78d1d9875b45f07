"""The rule of check.py finds each kind of error. No test reads a clock."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tests.support.check
from bench import tf32
from tests.support.check import check, randn

WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "value": lambda x: x * (1 + 1e-5),
    "one element": lambda x: x + (torch.arange(x.numel(), device=x.device).view(x.shape) == 3) * 1e-4,
    "gradient": lambda x: x.detach() + (x - x.detach()) * 1.001,
    "shape": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "strides": lambda x: x.contiguous(memory_format=torch.channels_last),
    "NaN where torch has none": lambda x: torch.where(x == x.max(), x.new_tensor(float("nan")), x),
    "no gradient": lambda x: x.detach(),
    "unwritten memory": lambda x: x + torch.empty_like(x) * 0,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_finds_errors(wrong: str) -> None:
    check(lambda x: x * 1, lambda x: x * 1, randn(2, 3, 4, 5))
    with pytest.raises(AssertionError):
        check(WRONG[wrong], lambda x: x * 1, randn(2, 3, 4, 5))


def convolution(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w, b, padding=1)


def products(bits: int) -> Callable[..., Tensor]:
    """A convolution with operands truncated by `bits` bits, forward and backward."""

    def truncated(*tensors: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf32, "MASK", ~((1 << bits) - 1))
            with tf32.Truncating():
                return convolution(*tensors)

    return truncated


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_truncation_is_allowed(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule allows truncation only where the flags allow TF32, and only to TF32's precision."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    monkeypatch.setattr(tests.support.check, "truncates", lambda: allowed)
    tensors = randn(2, 8, 6, 6), randn(8, 8, 3, 3, seed=1), randn(8, seed=2)
    for bits in (13, 15):
        if allowed and bits == 13:
            check(products(bits), convolution, *tensors)
        else:
            with pytest.raises(AssertionError):
                check(products(bits), convolution, *tensors)


# Files with code of tests.
TESTS = [
    path for path in sorted(Path(__file__).parents[1].rglob("*.py")) if path.stem.startswith(("test_", "conftest", "check"))
]
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime", "sleep"}


def clocks_in(source: str) -> set[str]:
    """Names in a module that read a clock or wait: functions of `time`, and the module timeit."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            found.add(f"time.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {"time.time" if (alias.name, bool(alias.asname)) == ("time", True) else alias.name for alias in node.names}
    clocks = {f"time.{name}{unit}" for name in CLOCKS for unit in ("", "_ns")}
    return {name for name in found if name in clocks or name.partition(".")[0] == "timeit"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_reads_a_clock(path: Path) -> None:
    """A busy machine must not fail a test. Patching a clock is allowed: its name is then a string."""
    assert not clocks_in(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import time\nstart = time.monotonic()",
        "import time as t\nt.sleep(1)",
        "from time import perf_counter_ns as now",
        "def test():\n    import timeit",
        "from timeit import repeat",
    ],
)
def test_a_clock_is_found(source: str) -> None:
    assert clocks_in(source)
    assert not clocks_in('import time\npatch.setattr(time, "monotonic", lambda: 0.0)')
