"""The recorded rows of compiled launches, a JSON file for each version of Triton: no number may get worse."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import triton

ROWS = Path(__file__).with_name("recorded") / f"triton-{triton.__version__}.json"


class Row(NamedTuple):
    """A launch: resources, and narrow accesses to global memory.

    The instructions are those of the PTX executed per element of the largest tensor (see ptx.py) or, in TMA kernels, those
    present in the machine code per element of the tile.
    """

    registers: int
    spilled: int  # bytes of local memory per thread
    shared: int  # bytes
    narrow_loads: int  # in the text of the PTX, of less than 16 bytes
    narrow_stores: int
    instructions: float


def named(rows: Iterable[tuple[str, Row]]) -> dict[str, Row]:
    """Rows by their label, numbered if several launches have the same label."""
    found: dict[str, Row] = {}
    for label, row in rows:
        ways = (f"{label}{f' ({i})' if i else ''}" for i in itertools.count())
        found[next(way for way in ways if way not in found)] = row
    return found


def compared(rows: dict[str, Row], record: bool) -> list[str]:
    """Compare the rows with the recorded rows, and return the faults. With `record`, write the rows and return no faults."""
    if record:
        lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
        ROWS.parent.mkdir(exist_ok=True)
        ROWS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return []
    known = {name: Row(*row) for name, row in json.loads(ROWS.read_text()).items()} if ROWS.exists() else {}
    faults = [f"{name}: {way}" for name, row in rows.items() if name in known for way in worse(row, known[name])]
    faults += [f"{name}: has no row in {ROWS.name}; --record writes it" for name in rows if name not in known]
    return faults + [f"{name}: has a row in {ROWS.name}, but is not launched" for name in known if name not in rows]


def worse(row: Row, than: Row) -> Iterator[str]:
    """Compare two rows. Yield the worse numbers, with some slack: ptxas varies registers and instructions without cause."""
    slack = {"registers": 4 + than.registers // 10, "instructions": than.instructions / 20}
    for name, value in row._asdict().items():
        if value > getattr(than, name) + slack.get(name, 0):
            yield f"{name} {getattr(than, name)} -> {value}"
