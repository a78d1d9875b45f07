"""Reports of a benchmark result, made from its JSON: table, geometric means, worst ratios."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]

LETTERS = {"contiguous": "n", "channels_last": "c"}


@dataclass(frozen=True)
class Comparison:
    """Our time and torch's time of a row, in one mode. None where a side has no time."""

    row: dict[str, Any]
    mode: str  # torch's: "eager", "graphed" or "compiled"
    ours: dict[str, Any] | None  # in the faster memory format
    torchs: dict[str, Any] | None  # in the faster memory format
    floor: float | None  # minimum seconds for the bytes and operations, at the rates of the same run; None for networks

    @property
    def ratio(self) -> float:
        """Speedup over torch. 0 if we have no time, NaN if torch has none."""
        if self.torchs is None:
            return math.nan
        return self.torchs["median"] / self.ours["median"] if self.ours is not None else 0.0

    @property
    def words(self) -> tuple[str, str, str, str]:
        return self.row["name"], self.row["pass"], self.row["arithmetic"], self.mode

    @property
    def wrong(self) -> bool:
        return any(checked["wrong"] for checked in self.row["checked"].values())


def comparisons(result: Result) -> list[Comparison]:
    found, peak = [], result["ceilings"]
    for row in result["rows"]:
        floor = None
        if row["bytes"] and peak:
            floor = max(row["bytes"] / peak["copy"], row["flops"] / peak["product"].get(row["arithmetic"], math.inf))
        modes = ["compiled"] if row["against"] == "compiled" else ["eager", "graphed"] if row["op"] == "model" else ["eager"]
        for mode in modes:
            our_mode = "eager" if mode == "compiled" and row["op"] != "model" else mode  # fused layers are eager on our side
            found.append(Comparison(row, mode, _best(row, "ours", our_mode), _best(row, "torch", mode), floor))
    return found


def _best(row: dict[str, Any], side: str, mode: str) -> dict[str, Any] | None:
    times = [t for t in row["times"] if (t["side"], t["mode"]) == (side, mode)]
    return min(times, key=lambda t: t["median"], default=None)


def remarks(row: dict[str, Any]) -> Iterator[str]:
    """Yield the remarks below a row: wrong results, TF32 truncation, strides, failures."""
    for layout, checked in row["checked"].items():
        if checked["wrong"]:
            yield f"WRONG in {layout}: {checked['wrong']}"
        if checked.get("truncated"):
            yield f"{layout}: right only under truncation to TF32: {', '.join(checked['truncated'])}"
        if checked["strides"]:
            yield f"{layout}: {checked['strides']}"
    for contender, why in row["failed"].items():
        yield f"{contender}: {why}"


def geomean(values: Sequence[float]) -> float:
    if not values or min(values) <= 0:
        return 0.0 if values else math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def table(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Yield the rows as aligned lines. The first `left` columns align to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        yield "  ".join(cells).rstrip()


def ceilings(result: Result) -> Iterator[str]:
    """Yield the line of the peak rates, if they were measured."""
    if of := result["ceilings"]:
        products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {name}" for name, rate in of["product"].items())
        yield f"measured here: {of['copy'] / 1e12:.2f} TB/s in a copy; {products} in a matrix product"


def lines_of(result: Result) -> Iterator[str]:
    """Yield the lines of the report: table, remarks, summary, failures."""
    environment, found = result["environment"], comparisons(result)
    yield "  ".join(f"{key} {value}" for key, value in environment.items() if not isinstance(value, dict))
    yield from ceilings(result)
    yield "us: time of one call in the faster memory format (n contiguous, c channels_last); +-%: half the interquartile range"
    yield "floor%: the minimum time for the bytes and operations of the pass, as a share of our time"
    yield ""
    header = ("", "", "", "against", "ours us", "+-%", "floor%", "torch us", "+-%", "ratio")
    yield from table([header, *map(_cells, found)], 4)
    yield ""
    yield from dict.fromkeys(f"{' '.join(c.words[:3])}: {remark}" for c in found for remark in remarks(c.row))
    yield ""
    yield from summary(found)
    for failure in result["failed"]:
        yield f"FAILED {failure['item']}: {failure['why']}"
    if result["left"]:
        yield f"{len(result['left'])} measurements are missing: the time limit was reached"


def _cells(c: Comparison) -> tuple[str, ...]:
    """Return the words of a comparison, each side's time and half its interquartile range in percent, and the ratio."""

    def cells(time: dict[str, Any] | None) -> tuple[str, str]:
        if time is None:
            return "-", ""
        spread = 50 * (time["high"] - time["low"]) / time["median"]
        return f"{1e6 * time['median']:.1f}{LETTERS[time['layout']]}", f"{spread:.0f}"

    share = f"{100 * c.floor / c.ours['median']:.0f}" if c.floor and c.ours else ""
    ratio = "WRONG" if c.wrong else f"{c.ratio:.2f}" if c.torchs else ""
    return (*c.words, *cells(c.ours), share, *cells(c.torchs), ratio)


def summary(found: Sequence[Comparison]) -> Iterator[str]:
    """Yield one line per operator, pass and mode: number of timed rows, geometric mean of the ratios, worst ratio."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in found:
        groups.setdefault((c.row["op"], c.row["pass"], c.mode), []).append(c)
        if c.row["op"] != "model":
            groups.setdefault(("all operators", "", c.mode), []).append(c)
    rows = [("", "", "against", "the worst", "timed", "geomean", "worst")]
    for (op, what, mode), members in sorted(groups.items()):
        timed = [c for c in members if c.ratio > 0]
        if timed:
            worst, mean = min(timed, key=lambda c: c.ratio), geomean([c.ratio for c in timed])
            count = f"{len(timed)}/{len(members)}"
            rows.append((op, what, mode, " ".join(worst.words[:3]), count, f"{mean:.2f}", f"{worst.ratio:.2f}"))
    yield from table(rows, 4)


def read(path: Path) -> Result:
    """Read a result from its file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a benchmark result.
    """
    result = json.loads(path.read_text())
    if not isinstance(result, dict) or not {"environment", "ceilings", "rows"} <= result.keys():
        raise ValueError(f"{path} is not a result of python -m bench")
    return result
