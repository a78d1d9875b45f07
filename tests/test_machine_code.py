"""Compiled code is held to what is on record: each way of getting worse is a fault, and recording ends it."""

from pathlib import Path

import pytest

from bench import machine_code
from bench.machine_code import Row, held

BEFORE = Row(registers=40, spilled=0, shared=1024, wide_loads=3, loads=4, wide_stores=1, stores=1, instructions=10.0)


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "ROWS", tmp_path / "compiled" / "triton.json")
    assert held({"a kernel, a case": BEFORE}, record=True) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"registers": 49}, "registers 40 -> 49"),
        ({"spilled": 8}, "spilled 0 -> 8"),
        ({"shared": 1025}, "shared 1024 -> 1025"),
        ({"wide_loads": 2}, "loads of less than 16 bytes 1 -> 2"),
        ({"stores": 2}, "stores of less than 16 bytes 0 -> 1"),
        ({"instructions": 10.6}, "instructions 10.0 -> 10.6"),
    ],
)
def test_worse(change: dict[str, int], fault: str) -> None:
    row = {"a kernel, a case": BEFORE._replace(**change)}
    assert held(row, record=False) == [f"a kernel, a case: {fault}"]
    held(row, record=True)
    assert held(row, record=False) == []


def test_better_or_nearly_the_same() -> None:
    row = BEFORE._replace(registers=44, wide_loads=4, instructions=10.4, shared=0)
    assert held({"a kernel, a case": row}, record=False) == []


def test_rows_and_launches_are_the_same() -> None:
    faults = held({"another": BEFORE}, record=False)
    assert [fault.partition(":")[0] for fault in faults] == ["another", "a kernel, a case"]
    held({"another": BEFORE}, record=True)
    assert held({"another": BEFORE}, record=False) == []
