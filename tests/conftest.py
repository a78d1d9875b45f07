"""What every test runs under: small tiles in the interpreter, so that a small shape has several; NaN in fresh memory.

A run ends with the number of torch's own inputs that passed; `--record` keeps it for docs/evidence.md.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests import evidence
from trinn.kernels import tuning
from trinn.kernels.launch import INTERPRETED


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 and several splits where kernels are interpreted: edges, loops and second passes all take part."""
    if INTERPRETED:
        monkeypatch.setattr(tuning, "interpreted_block", 16)
        monkeypatch.setattr(tuning, "wanted_programs", 8)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="keep the number of torch's own inputs that passed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    passed: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "torch's material" and report.when == "call":
                name, check, count = value
                passed.setdefault(name, Counter())[check] += count
    if not passed:
        return
    terminalreporter.section("torch's own inputs that passed")
    columns = list(dict.fromkeys(check for counts in passed.values() for check in counts))
    for name, counts in sorted(passed.items()):
        terminalreporter.write_line(f"{name:32}" + "".join(f"{counts[c]:6} {c}" for c in columns if counts[c]))
    if config.getoption("--record"):
        evidence.record("torchs_material", {"passed": {name: dict(counts) for name, counts in sorted(passed.items())}})
