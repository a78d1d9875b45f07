"""Reports of a benchmark result, made from its JSON: table, geometric means, worst ratios, and targets."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Result = dict[str, Any]

LARGE = 64e6  # bytes; larger tensors do not fit into the L2 cache
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
    found, ceilings = [], result["ceilings"]
    for row in result["rows"]:
        floor = None
        if row["bytes"] and ceilings:
            floor = max(row["bytes"] / ceilings["copy"], row["flops"] / ceilings["product"].get(row["arithmetic"], math.inf))
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
        if checked.get("cut"):
            yield f"{layout}: right only under truncation to TF32: {', '.join(checked['cut'])}"
        if checked["strides"]:
            yield f"{layout}: {checked['strides']}"
    for contender, why in row["failed"].items():
        yield f"{contender}: {why}"


def _ratio(c: Comparison) -> list[float]:
    return [c.ratio]


def _floor_shares(c: Comparison) -> list[float]:
    """Return floor / time in each memory format, for large tensors; 0 where we have no time."""
    ours = {t["layout"]: t["median"] for t in c.row["times"] if t["side"] == "ours"}
    if c.row["largest"] <= LARGE or c.floor is None:
        return []
    return [c.floor / ours[layout] if layout in ours else 0.0 for layout in c.row["checked"]]


def _contiguous(c: Comparison) -> list[float]:
    """Return the speedup over torch with contiguous tensors on both sides, torch's default format."""
    sides = {t["side"]: t["median"] for t in c.row["times"] if t["layout"] == "contiguous"}
    return [sides["torch"] / sides["ours"] if "ours" in sides else 0.0] if "torch" in sides else []


def _floor_share(c: Comparison) -> list[float]:
    """Return floor / time in the faster format: the share of the rate of a large matrix product."""
    return [c.floor / c.ours["median"] if c.ours else 0.0] if c.floor is not None else []


class Target(NamedTuple):
    """A performance target: every value of the selected comparisons, or their geometric mean, is at least `least`.

    `name` and `op` are regular expressions. An empty field selects everything, except that the default `op` excludes networks.
    """

    words: str  # printed after the least value
    least: float
    op: str = "(?!model)"
    what: str = ""  # the pass
    arithmetic: str = ""
    name: str = ""
    mode: str = "eager"
    values: Callable[[Comparison], Sequence[float]] = _ratio
    mean: bool = False  # whether the geometric mean decides

    def selects(self, c: Comparison) -> bool:
        matches = re.match(self.op, c.row["op"]) and re.match(self.name, c.row["name"])
        pairs = (self.what, c.row["pass"]), (self.arithmetic, c.row["arithmetic"]), (self.mode, c.mode)
        return bool(matches) and all(wanted in ("", found) for wanted, found in pairs)


_MEMORY = "(relu|max_pool2d|bilinear|nearest|batch_norm)$"
_FUSED = "(bn_relu|bn_add_relu|conv_relu|conv_relu_max_pool|conv_bn_relu|linear_relu)$"
_CONVS = "(depthwise conv2d|conv2d|conv_transpose2d)$"
TARGETS = (
    Target("of the copy bandwidth: ReLU, pools, bilinear, batch norm, tensors above 64 MB, both formats", 0.85, _MEMORY,
           values=_floor_shares),
    Target("x torch: max-pool backward", 2.0, "max_pool2d$", "backward"),
    Target("x torch: bilinear backward", 2.0, "bilinear$", "backward"),
    Target("x torch: batch norm's training, forward and backward", 1.3, "batch_norm$", "training"),
    Target("x torch: every operator", 0.95),
    Target("x torch: conv2d forward, bf16, geometric mean", 1.15, "conv2d$", "forward", "bf16", mean=True),
    Target("x torch: conv2d dgrad, bf16, geometric mean", 1.1, "conv2d$", "dgrad", "bf16", mean=True),
    Target("x torch: conv2d wgrad, bf16, geometric mean", 1.1, "conv2d$", "wgrad", "bf16", mean=True),
    Target("x torch: every convolution, bf16", 0.9, _CONVS, "", "bf16"),
    Target("x torch: DeepLab 3x3 dilation 24, bf16", 2.0, "", "", "bf16", "DeepLab 3x3 dilation 24$"),
    Target("x torch: transposed convolutions, bf16", 1.3, "conv_transpose2d$", "", "bf16"),
    Target("x torch: depthwise convolutions, bf16", 1.2, "depthwise conv2d$", "", "bf16"),
    Target("of the matrix product's rate: ResNet 3x3 with 128 or more channels, bf16", 0.65, "conv2d$", "", "bf16",
           "ResNet stage [234] 3x3", values=_floor_share),
    Target("x torch, both contiguous: every convolution, bf16", 1.3, _CONVS, "", "bf16", values=_contiguous),
    Target("x torch: every convolution, float32 without TF32", 1.0, _CONVS, "", "fp32"),
    Target("x torch, unfused: fused batch norm, (addition,) ReLU", 1.4, "(bn_relu|bn_add_relu)$"),
    Target("x torch.compile: fused layers", 1.0, _FUSED, mode="compiled"),
    Target("x torch: LeNet b128 training, both as CUDA graphs", 1.5, "model", "training", "", "LeNet b128$", "graphed"),
    Target("x torch: LeNet b128 training, eager", 1.0, "model", "training", "", "LeNet b128$"),
    Target("x torch: AlexNet b128 training, bf16, eager", 1.25, "model", "training", "bf16", "AlexNet b128$"),
    Target("x torch: AlexNet b128 inference, bf16, eager", 1.4, "model", "inference", "bf16", "AlexNet b128$"),
    Target("x torch.compile(max-autotune): AlexNet b128, bf16", 1.05, "model", "", "bf16", "AlexNet b128$", "compiled"),
)  # fmt: skip


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


def lines_of(result: Result) -> Iterator[str]:
    """Yield the lines of the report: table, remarks, summary, targets, failures."""
    environment, ceilings, found = result["environment"], result["ceilings"], comparisons(result)
    yield "  ".join(f"{key} {value}" for key, value in environment.items() if not isinstance(value, dict))
    if ceilings:
        products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {name}" for name, rate in ceilings["product"].items())
        yield f"measured here: {ceilings['copy'] / 1e12:.2f} TB/s in a copy; {products} in a matrix product"
    yield "us: time of one call in the faster memory format (n contiguous, c channels_last); +-%: half the interquartile range"
    yield "floor%: the minimum time for the bytes and operations of the pass, as a share of our time"
    yield ""
    header = ("", "", "", "against", "ours us", "+-%", "floor%", "torch us", "+-%", "ratio")
    yield from table([header, *map(_cells, found)], 4)
    yield ""
    yield from dict.fromkeys(f"{' '.join(c.words[:3])}: {remark}" for c in found for remark in remarks(c.row))
    yield ""
    yield from summary(found)
    yield ""
    yield from (target_line(target, found) for target in TARGETS)
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

    share = "".join(f"{100 * share:.0f}" for share in _floor_share(c) if share)
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


def target_line(target: Target, found: Sequence[Comparison]) -> str:
    """Return the line of a target: verdict, deciding value (the worst, or the geometric mean), and the worst comparison."""
    values = [(value, c.words) for c in found if target.selects(c) for value in target.values(c) if value == value]
    if not values:
        return f"not measured    >= {target.least:4.2f} {target.words}"
    worst, words = min(values)
    mean = geomean([value for value, _ in values])
    reached, below = mean if target.mean else worst, sum(value < target.least for value, _ in values)
    verdict = f"FAIL {reached:5.2f}" if reached < target.least else f"pass {reached:5.2f}"
    where = f"; {len(values)} measured"
    if below:
        where = f"; {below} of {len(values)} below, geometric mean {mean:.2f}, the worst {worst:.2f} {' '.join(words[:3])}"
    return f"{verdict:15} >= {target.least:4.2f} {target.words}{where}"


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
