"""A pytest plugin to isolate GPU tests from each other: `pytest -p tests.support.contained --results FILE`.

An illegal memory access breaks the CUDA context of its process, and every later CUDA call of the process fails. So the process
exits after such a test; pytest-xdist counts the test as failed and starts another process. Each finished test adds one JSON
line to FILE: name, outcome, seconds, error message, and the numbers of kernels compiled and found in Triton's cache.
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

BROKEN = 70  # exit status of a process with a broken CUDA context

# Called after each test: an illegal access becomes an error only at a synchronisation. Tests of this file replace it.
wait: Callable[[], Any] | None = None if INTERPRETED else torch.cuda.synchronize

_kernels: Counter[str] = Counter()


def _count_kernel(**event: Any) -> None:
    _kernels["found" if event["cache_hit"] else "compiled"] += 1


knobs.compilation.listener = _count_kernel


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
    parser.addoption("--results", type=Path, metavar="FILE", help="append a line of JSON for each finished test")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--results")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(path))


class Results:
    """Write test reports to a file, in the process that collects the reports of all workers."""

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
