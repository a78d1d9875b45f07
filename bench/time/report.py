"""Reports of a benchmark result, made from its JSON: table, geometric means, worst ratios, targets, and plots."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.registry import CONVS

Result = dict[str, Any]

LARGE = 64e6  # bytes; larger tensors do not fit into the L2 cache
LETTERS = {"contiguous": "n", "channels_last": "c"}
FUSED = ("bn_relu", "bn_add_relu", "conv_relu", "conv_relu_max_pool", "conv_bn_relu", "linear_relu")


@dataclass(frozen=True)
class Comparison:
    """Our time and torch's time of a row, in one mode. None where a side has no time."""

    row: dict[str, Any]
    mode: str  # torch's: "eager", "graphed" or "compiled"
    ours: dict[str, Any] | None  # in the faster memory format
    torchs: dict[str, Any] | None  # in the faster memory format
    floor: float | None  # seconds; None for networks
    issue: float | None  # minimum seconds to issue our instructions; None if they were not counted

    @property
    def ratio(self) -> float:
        """Speedup over torch. 0 if we have no time, NaN if torch has none."""
        if self.torchs is None:
            return math.nan
        return self.torchs["median"] / self.ours["median"] if self.ours is not None else 0.0

    @property
    def words(self) -> tuple[str, str, str, str]:
        return self.row["name"], self.row["pass"], self.row["arithmetic"], self.mode


def floor_of(row: dict[str, Any], ceilings: dict[str, Any]) -> float | None:
    """Return the minimum seconds for a row's bytes and operations, at the rates measured in the same run."""
    if not row["bytes"] or not ceilings:
        return None
    return max(row["bytes"] / ceilings["copy"], row["flops"] / ceilings["product"].get(row["arithmetic"], math.inf))


def issue_of(row: dict[str, Any], ours: dict[str, Any] | None, ceilings: dict[str, Any]) -> float | None:
    """Return the minimum seconds to issue our instructions, in the memory format of `ours`."""
    count = row.get("instructions", {}).get(ours["layout"]) if ours else None
    return count / ceilings["issue"] if count and ceilings.get("issue") else None


def comparisons(result: Result) -> list[Comparison]:
    found = []
    for row in result["rows"]:
        modes = ["compiled"] if row["against"] == "compiled" else ["eager", "graphed"] if row["op"] == "model" else ["eager"]
        for mode in modes:
            our_mode = "eager" if mode == "compiled" and row["op"] != "model" else mode  # fused layers are eager on our side
            ours, ceilings = _best(row, "ours", our_mode), result["ceilings"]
            floors = floor_of(row, ceilings), issue_of(row, ours, ceilings)
            found.append(Comparison(row, mode, ours, _best(row, "torch", mode), *floors))
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


class Target(NamedTuple):
    """A performance target: every value of the selected comparisons, or their geometric mean, is at least `least`."""

    words: str  # printed after the least value
    least: float
    selects: Callable[[Comparison], bool]
    values: Callable[[Comparison], Sequence[float]] = lambda comparison: [comparison.ratio]
    mean: bool = False  # whether the geometric mean decides


def _where(
    op: Sequence[str] | None = None, what: str | None = None, mode: str = "eager", **also: str
) -> Callable[[Comparison], bool]:
    """Return a filter for comparisons: by operators (default: all but networks), pass, mode of torch, and row entries."""

    def selects(c: Comparison) -> bool:
        return (
            (c.row["op"] in op if op else c.row["op"] != "model")
            and what in (None, c.row["pass"])
            and c.mode == mode
            and all(c.row[key] == value for key, value in also.items())
        )

    return selects


def _large(comparison: Comparison) -> bool:
    memory_bound = _where(("relu", "max_pool2d", "bilinear", "nearest", "batch_norm"))
    return memory_bound(comparison) and comparison.row["largest"] > LARGE and comparison.floor is not None


def _floor_shares(comparison: Comparison) -> list[float]:
    """Return floor / time in each memory format; 0 where we have no time."""
    ours = {t["layout"]: t["median"] for t in comparison.row["times"] if t["side"] == "ours"}
    assert comparison.floor is not None
    return [comparison.floor / ours[layout] if layout in ours else 0.0 for layout in comparison.row["checked"]]


def _contiguous(comparison: Comparison) -> list[float]:
    """Return the speedup over torch with contiguous tensors on both sides, torch's default format."""
    sides = {t["side"]: t["median"] for t in comparison.row["times"] if t["layout"] == "contiguous"}
    return [sides["torch"] / sides["ours"] if "ours" in sides else 0.0] if "torch" in sides else []


def _is_wide_3x3(comparison: Comparison) -> bool:
    return _where(("conv2d",), **_BF16)(comparison) and bool(re.match(r"ResNet stage [234] 3x3", comparison.row["name"]))


def _best_floor_share(comparison: Comparison) -> list[float]:
    """Return floor / time in the faster format: the share of the rate of a large matrix product."""
    if comparison.floor is None:
        return []
    return [comparison.floor / comparison.ours["median"] if comparison.ours else 0.0]


_BF16 = {"arithmetic": "bf16"}
_ALEXNET = {"name": "AlexNet b128", "arithmetic": "bf16"}
TARGETS = (
    Target(
        "of the copy bandwidth: ReLU, pools, bilinear, batch norm, tensors above 64 MB, both formats",
        0.85,
        _large,
        _floor_shares,
    ),
    Target("x torch: max-pool backward", 2.0, _where(("max_pool2d",), "backward")),
    Target("x torch: bilinear backward", 2.0, _where(("bilinear",), "backward")),
    Target("x torch: batch norm's training, forward and backward", 1.3, _where(("batch_norm",), "training")),
    Target("x torch: every operator", 0.95, _where()),
    Target("x torch: conv2d forward, bf16, geometric mean", 1.15, _where(("conv2d",), "forward", **_BF16), mean=True),
    Target("x torch: conv2d dgrad, bf16, geometric mean", 1.1, _where(("conv2d",), "dgrad", **_BF16), mean=True),
    Target("x torch: conv2d wgrad, bf16, geometric mean", 1.1, _where(("conv2d",), "wgrad", **_BF16), mean=True),
    Target("x torch: every convolution, bf16", 0.9, _where(CONVS, **_BF16)),
    Target("x torch: DeepLab 3x3 dilation 24, bf16", 2.0, _where(None, name="DeepLab 3x3 dilation 24", **_BF16)),
    Target("x torch: transposed convolutions, bf16", 1.3, _where(("conv_transpose2d",), **_BF16)),
    Target("x torch: depthwise convolutions, bf16", 1.2, _where(("depthwise conv2d",), **_BF16)),
    Target("of the matrix product's rate: ResNet 3x3 with 128 or more channels, bf16", 0.65, _is_wide_3x3, _best_floor_share),
    Target("x torch, both contiguous: every convolution, bf16", 1.3, _where(CONVS, **_BF16), _contiguous),
    Target("x torch: every convolution, float32 without TF32", 1.0, _where(CONVS, arithmetic="fp32")),
    Target("x torch, unfused: fused batch norm, (addition,) ReLU", 1.4, _where(("bn_relu", "bn_add_relu"))),
    Target("x torch.compile: fused layers", 1.0, _where(FUSED, mode="compiled")),
    Target(
        "x torch: LeNet b128 training, both as CUDA graphs", 1.5, _where(("model",), "training", "graphed", name="LeNet b128")
    ),
    Target("x torch: LeNet b128 training, eager", 1.0, _where(("model",), "training", name="LeNet b128")),
    Target("x torch: AlexNet b128 training, bf16, eager", 1.25, _where(("model",), "training", **_ALEXNET)),
    Target("x torch: AlexNet b128 inference, bf16, eager", 1.4, _where(("model",), "inference", **_ALEXNET)),
    Target("x torch.compile(max-autotune): AlexNet b128, bf16", 1.05, _where(("model",), None, "compiled", **_ALEXNET)),
)


def geomean(values: Sequence[float]) -> float:
    if not values or min(values) <= 0:
        return 0.0 if values else math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def lines_of(result: Result) -> Iterator[str]:
    """Yield the lines of the report: table, summary, targets, failures."""
    environment, ceilings = result["environment"], result["ceilings"]
    yield "  ".join(f"{key} {value}" for key, value in environment.items() if not isinstance(value, dict))
    if ceilings:
        products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {name}" for name, rate in ceilings["product"].items())
        yield f"measured here: {ceilings['copy'] / 1e12:.2f} TB/s in a copy; {products} in a matrix product"
    yield "us: time of one call in the faster memory format (n contiguous, c channels_last); +-%: half the interquartile range"
    yield "floor%: the minimum time for the bytes and operations of the pass, as a share of our time"
    yield "issue%: the minimum time to issue the instructions of our kernels, as a share of our time"
    found = comparisons(result)
    width = max((len(c.row["name"]) for c in found), default=4)
    yield ""
    yield line_of(("", "", "", "against"), width, "ours us", "+-%", "floor%", "issue%", "torch us", "+-%", "ratio")
    remarked: set[int] = set()
    for c in found:
        shares = [f"{100 * s / c.ours['median']:.0f}" if c.ours and s is not None else "" for s in (c.floor, c.issue)]
        ratio = "WRONG" if any(r["wrong"] for r in c.row["checked"].values()) else f"{c.ratio:.2f}" if c.torchs else ""
        yield line_of(c.words, width, *_cells(c.ours), *shares, *_cells(c.torchs), ratio)
        if id(c.row) not in remarked:
            yield from (f"    {remark}" for remark in remarks(c.row))
        remarked.add(id(c.row))
    yield ""
    yield from summary(found)
    yield ""
    yield from (target_line(target, found) for target in TARGETS)
    for failure in result["failed"]:
        yield f"FAILED {failure['item']}: {failure['why']}"
    if result["left"]:
        yield f"{len(result['left'])} measurements are missing: the time limit was reached"


def line_of(words: Sequence[str], width: int, *cells: str) -> str:
    name, what, arithmetic, mode = words
    left = f"{name:{width}} {what:9} {arithmetic:4} {mode:8}"
    return left + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 6, 8, 8, 10, 6, 9), strict=True))


def _cells(time: dict[str, Any] | None) -> tuple[str, str]:
    """Return microseconds with the letter of the memory format, and half the interquartile range in percent."""
    if time is None:
        return "-", ""
    spread = 50 * (time["high"] - time["low"]) / time["median"]
    return f"{1e6 * time['median']:.1f}{LETTERS[time['layout']]}", f"{spread:.0f}"


def summary(found: Sequence[Comparison]) -> Iterator[str]:
    """Yield one line per operator, pass and mode: number of timed rows, geometric mean of the ratios, worst ratio."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in found:
        for key in ((c.row["op"], c.row["pass"], c.mode), ("all operators", "", c.mode)):
            if key[0] != "all operators" or c.row["op"] != "model":
                groups.setdefault(key, []).append(c)
    yield f"{'':20} {'':9} {'against':8} {'timed':>7} {'geomean':>8} {'worst':>6}"
    for (op, what, mode), members in sorted(groups.items()):
        timed = [c for c in members if c.ratio > 0]
        if timed:
            worst = min(timed, key=lambda c: c.ratio)
            mean, count = geomean([c.ratio for c in timed]), f"{len(timed)}/{len(members)}"
            where = f"{worst.row['name']} {worst.row['pass']} {worst.row['arithmetic']}"
            yield f"{op:20} {what:9} {mode:8} {count:>7} {mean:8.2f} {worst.ratio:6.2f}  {where}"


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
        where = f"; {below} of {len(values)} below, the worst {f'{worst:.2f} ' * target.mean}{' '.join(words[:3])}"
        where += "" if target.mean else f", geometric mean {mean:.2f}"
    return f"{verdict:15} >= {target.least:4.2f} {target.words}{where}"


def plots_of(result: Result, folder: Path) -> list[Path]:
    """Plot speedups, shares of the floor, and networks. Return the written files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    gpu, found = result["environment"]["gpu"], comparisons(result)
    eager = [c for c in found if c.mode == "eager" and c.row["op"] != "model" and c.ours and c.torchs]
    networks = [c for c in found if c.row["op"] == "model" and c.ours and c.torchs]
    shares = [(c, 100 * c.floor / c.ours["median"]) for c in eager if c.floor is not None and c.ours]
    drawn = [
        _dots([(c, c.ratio) for c in eager], f"Speedup over torch in its faster memory format, {gpu}", 1.0),
        _dots(shares, f"Per cent of the best possible speed, {gpu}", 100.0),
        _dots([(c, c.ratio) for c in networks], f"Networks: speedup over torch, {gpu}", 1.0, modes=True),
    ]
    paths = []
    for name, figure in zip(("ratios", "floors", "networks"), drawn, strict=True):
        if figure is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
    return paths


def _dots(values: Sequence[tuple[Comparison, float]], title: str, line: float, modes: bool = False) -> Any:
    """Draw one line per case and pass with one dot per arithmetic. Return None without values."""
    from matplotlib.figure import Figure

    if not values:
        return None
    keys = list(dict.fromkeys(f"{c.row['name']}  {c.row['pass']}{f', {c.mode}' if modes else ''}" for c, _ in values))
    figure = Figure(figsize=(9, 1 + 0.18 * len(keys)))
    axes = figure.add_subplot(xscale="log")
    for arithmetic in dict.fromkeys(c.row["arithmetic"] for c, _ in values):
        dots = [(c, value) for c, value in values if c.row["arithmetic"] == arithmetic]
        at = [keys.index(f"{c.row['name']}  {c.row['pass']}{f', {c.mode}' if modes else ''}") for c, _ in dots]
        axes.plot([value for _, value in dots], at, "o", markersize=4, label=arithmetic)
    axes.axvline(line, color="black", linewidth=1)
    axes.set_yticks(range(len(keys)), keys, fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    axes.set_title(title, fontsize=10)
    return figure


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
