"""tests/support/contained.py: a test that breaks the GPU or hangs does not affect other tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import CONTAINED
from tests.tools.test_install import ROOT

TESTS = """
import time
import pytest
import tests.support.contained

@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    def wait():
        if broken:
            raise RuntimeError("an illegal memory access was encountered")
    broken = []
    tests.support.contained.wait = wait
    yield broken

@pytest.mark.parametrize("number", range(8))
def test_one(number, gpu):
    tests.support.contained._count_kernel(cache_hit=number == 0)
    if number == 2:
        gpu.append("an illegal access")
    if number == 3:
        while True:
            pass
    assert number != 5, "wrong"
"""


@pytest.mark.long
def test_other_tests_are_not_affected(tmp_path: Path) -> None:
    file, results = tmp_path / "test_some.py", tmp_path / "results.jsonl"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.contained", *CONTAINED]
    command += ["-n", "2", "--timeout", "3", "--results", str(results), str(file)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    outcomes = {row["test"][-2]: row["outcome"] for row in rows if row["outcome"] == "failed" or row["test"][-2] not in "23"}
    assert outcomes == {number: "failed" if number in "235" else "passed" for number in "01234567"}
    kernels = {row["test"][-2]: row["kernels"] for row in rows}
    assert kernels["0"] == {"found": 1} and kernels["1"] == {"compiled": 1}, "kernels found in the cache, and compiled"
    errors = {row["test"][-2]: row["error"] for row in rows if row["outcome"] == "failed"}
    assert "crashed" in errors["2"] and "crashed" in errors["3"] and "wrong" in errors["5"]
