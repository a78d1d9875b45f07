"""`pytest -p tests.contained --results FILE`: tests on a GPU, of which none can harm another.

An illegal memory access breaks the CUDA context of its process, and every later call in that process fails. So a process ends
after the test that broke it; pytest-xdist counts that test as failed and starts another process. FILE gets a line of JSON for
each test when it ends: its name, outcome, seconds, the last line of an error, and how many kernels Triton compiled for it and
found in its cache.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs

from trinn.kernels.runtime.interpreter import INTERPRETED

BROKEN = 70  # the exit status of a process that cannot use its GPU any more

wait: Callable[[], Any] | None = None if INTERPRETED else torch.cuda.synchronize

_kernels: Counter[str] = Counter()


def _listen(**heard: Any) -> None:
    _kernels["found" if heard["cache_hit"] else "compiled"] += 1


knobs.compilation.listener = _listen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    _kernels.clear()
    try:
        return (yield)
    finally:
        item.user_properties.append(("kernels", dict(_kernels)))


@pytest.fixture(autouse=True)
def contained() -> Iterator[None]:
    yield
    if wait is not None:
        try:
            wait()
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(BROKEN)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FILE", help="a line of JSON for each test, as it ends")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--results")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(path))


class Results:
    """Writes down what the process that collects all reports is told."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and report.passed:
            return
        if report.when == "setup" and report.passed:
            return
        words = str(report.longrepr).strip().splitlines()[-1:] if report.failed else []
        error = getattr(getattr(report.longrepr, "reprcrash", None), "message", None) if report.failed else None
        row = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "error": (error or "\n".join(words))[:500],
            "kernels": dict(report.user_properties).get("kernels", {}),
        }
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
