"""Write docs/convolution.md and its figures from the stored data: `python -m bench.convolution_page`.

The text is docs/convolution/text.md. All numbers come from stored data, and a test fails when the page is out of date. The data
come from bench/tried.py, bench/predicted.py and bench/emulated.py, without a GPU. The times come from all results of
`python -m bench` on a GPU, and so also of `python -m bench conv` and `make gpu`, in bench/results/.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

from bench import convolution_figures as figures
from bench import report
from bench.emulated import APART

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, STORED = DOCS / "convolution.md", DOCS / "convolution"
RESULTS = Path(__file__).with_name("results")

Row = dict[str, Any]

NAMES = {"bf16": "bfloat16", "fp32": "float32 without TF32"}
SIX, TRUNCATES = "6 products of bfloat16", "truncates"  # the kernels' way to multiply float32, and the published rounding
UNTIMED = """\
**No result in bench/results/ has the time of a convolution.** This page describes the kernels, with results from compiling
them, from an emulation and from a model of their speed. Nothing on it was timed."""
PARTLY_TIMED = """\
The other passes have no time yet: a run with `--quick` selects some convolutions, and times their gradients together only."""


def stored(name: str) -> dict[str, Any]:
    return json.loads((STORED / f"{name}.json").read_text())


def measured(results: Path) -> list[Row]:
    """The newest row of each timed pass of this page on each GPU, from the results in all subfolders.

    A row has our time in channels_last, and torch's time in its better format. Other passes, such as both gradients together,
    have no prediction, and are left out.
    """
    read = []
    for path in sorted(results.rglob("*.json")):
        try:
            read.append(report.read(path))
        except ValueError:  # not a result
            continue
    found: dict[tuple[str, str, str, str], Row] = {}
    for result in sorted(read, key=lambda result: result["environment"]["date"]):
        gpu = result["environment"]["gpu"]
        for comparison in report.comparisons(result):
            row = comparison.row
            if comparison.mode == "eager" and row["op"] in report.CONVS and row["pass"] in figures.PASSES:
                ours = [t["median"] for t in row["times"] if (t["side"], t["layout"]) == ("ours", "channels_last")]
                found[gpu, row["name"], row["pass"], row["arithmetic"]] = {
                    "gpu": gpu, "date": result["environment"]["date"][:10],
                    "name": row["name"], "pass": row["pass"], "arithmetic": row["arithmetic"],
                    "ours": ours[0] if ours else math.nan,
                    "torch": comparison.torchs["median"] if comparison.torchs else math.nan,
                }  # fmt: skip
    return list(found.values())


def state(rows: Sequence[Row], timed: Sequence[Row]) -> str:
    """Text: which of the predicted passes were timed, and where."""
    predicted = [(row["name"], row["pass"], row["arithmetic"]) for row in rows]
    texts = []
    for gpu in dict.fromkeys(row["gpu"] for row in timed):
        known = {(row["name"], row["pass"], row["arithmetic"]) for row in timed if row["gpu"] == gpu}
        counts = [(what, [key for key in predicted if key[1] == what]) for what in figures.PASSES]
        shares = ", ".join(f"{what} {len(known & set(keys))} of {len(keys)}" for what, keys in counts)
        dates = sorted({row["date"] for row in timed if row["gpu"] == gpu})
        texts.append(f"**Timed on {gpu}** ({', '.join(dates)}), of the predicted passes in both precisions: {shares}.")
        if not known >= set(predicted):
            texts.append(PARTLY_TIMED)
    return " ".join(texts) or UNTIMED


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def us(seconds: float) -> str:
    """Microseconds, or a dash for NaN."""
    return f"{1e6 * seconds:.{0 if seconds > 20e-6 else 1}f}" if seconds == seconds else "-"


def geomean(values: Sequence[float]) -> str:
    return f"{report.geomean(values):.2f}"


def tma_rows(rows: Sequence[Row], layout: str = "channels_last") -> list[Row]:
    return [row for row in rows if row["layout"] == layout and row["seconds"] is not None]


def of_one_batch(rows: Sequence[Row]) -> list[Row]:
    """Rows without AlexNet's larger batch, which adds no information."""
    return [row for row in rows if not row["name"].endswith(" b256")]


def by_pointers(rows: Sequence[Row], arithmetic: str) -> list[str]:
    """Names of convolutions that need kernels/conv2d/pointer.py for some pass in channels_last."""
    those = [row for row in rows if (row["arithmetic"], row["layout"], row["seconds"]) == (arithmetic, "channels_last", None)]
    return list(dict.fromkeys(row["name"] for row in those if any(name.startswith("_conv2d_") for name in row["by"])))


def stages(way: Row) -> int:
    return 1 + way["ahead"] // way["copies"]


def tried_table(rows: Sequence[Row]) -> str:
    def operands(row: Row) -> str:
        if row["fault"]:
            return f"does not compile: `{row['fault']}`"
        if row["besides"]:
            return "**through registers**: " + ", ".join(f"`{name}` {count}" for name, count in row["besides"].items())
        return "the machine code of the first row" if row["as the first"] else "from shared memory"

    def runs_on(row: Row) -> str:
        return "" if row["fault"] else "yes" if row["pending"] else "but in the `if`" if row["if"] else "**no**"

    cells = [
        [
            row["way"],
            operands(row),
            runs_on(row),
            row.get("registers", ""),
        ]
        for row in rows
    ]
    return table(["", "operands", "a product runs on while the next begins", "registers"], cells)


def details(rows: Sequence[Row], timed: Sequence[Row], arithmetic: str) -> str:
    """A collapsed table of all predictions in one dtype and precision, with the measured times."""
    rows = [row for row in rows if row["arithmetic"] == arithmetic]
    of = {(row["name"], row["pass"]): row for row in rows}
    several = len({row["gpu"] for row in timed}) > 1

    def cells(name: str) -> Iterator[str]:
        for what in figures.PASSES:
            row = of.get((name, what))
            yield f"{us(row['fed'])} to {us(row['seconds'])}, {row['limit']}" if row else ""
            times = [t for t in timed if (t["name"], t["pass"], t["arithmetic"]) == (name, what, arithmetic)]
            shown = [f"{us(t['ours'])}, {us(t['torch'])}" + (f" on {t['gpu']}" if several else "") for t in times]
            yield "; ".join(shown) or ("not yet" if row else "")

    floors = {row["name"]: max(other["floor"] for other in rows if other["name"] == row["name"]) for row in rows}
    header = ["", "floor", *(cell for what in figures.PASSES for cell in (what, "measured"))]
    return f"""\
<details><summary>All predictions in {NAMES[arithmetic]}, in microseconds. A prediction is a range and its limiting
resource: the time with unlimited L2 bandwidth, and the time at the assumed L2 rate. A measured pair has the time of trinn in
channels_last and the time of torch in its better format.</summary>

{table(header, [[name, us(floor), *cells(name)] for name, floor in floors.items()])}

</details>
"""


def worst(rows: Sequence[Row], key: str, count: int) -> str:
    """A table of the passes furthest above their floors."""
    cells = [
        [
            f"{row['name']}, {row['pass']}", us(row["floor"]), us(row["fed"]), us(row["seconds"]), row["limit"],
            f"{row['multiplied']:.2f}", f"{row['idle']:.2f}", us(row["copies"]), f"{row['tile'][0]} x {row['tile'][1]}",
        ]
        for row in sorted(of_one_batch(rows), key=lambda row: row["floor"] / row[key])[:count]
    ]  # fmt: skip
    return table(["", "floor", "in time", "predicted", "limit", "multiplied", "busiest", "copies", "tile"], cells)


def comparison(rows: Sequence[Row], timed: Sequence[Row]) -> str:
    """A table of measured times divided by predicted ones."""
    predicted = {(row["name"], row["pass"], row["arithmetic"]): row["seconds"] for row in rows}
    ratios: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in timed:
        seconds = predicted.get((row["name"], row["pass"], row["arithmetic"]))
        if seconds and row["ours"] == row["ours"]:
            of = ratios.setdefault((row["gpu"], NAMES[row["arithmetic"]]), {what: [] for what in figures.PASSES})
            of[row["pass"]].append(row["ours"] / seconds)
    if not ratios:
        return "No measured times yet. They will appear in the tables below, and their ratios to the predictions here."
    cells = [[*where, *(f"{geomean(v)} of {len(v)}" if v else "" for v in of.values())] for where, of in ratios.items()]
    return "Measured by predicted time, geometric mean:\n\n" + table(["GPU", "", *figures.PASSES], cells)


def of_way(rows: Sequence[Row], way: str, instruction: str) -> list[Row]:
    return [row for row in rows if (row["way"], row["instruction"]) == (way, instruction)]


def errors_table(rows: Sequence[Row]) -> str:
    depths = sorted({row["depth"] for row in rows})

    def shown(those: Sequence[Row]) -> str:
        largest = max(row["largest"] for row in those)
        number = f"{largest:.2f}" if largest < 100 else f"{largest:.0f}"
        return number if all(row["right"] for row in those) else f"**{number}**"

    cells = []
    for way in dict.fromkeys(row["way"] for row in rows):
        line = [[row for row in rows if (row["way"], row["depth"]) == (way, depth)] for depth in depths]
        several = [[[row for row in those if row["instruction"] == i] for i in ("rounds", TRUNCATES)] for those in line]
        cells.append([way, *(" / ".join(shown(r) if r else "-" for r in pair) for pair in several)])
    return table(["rounds / truncates", *depths], cells)


def verdict(errors: Sequence[Row], rows: Sequence[Row], apart: int) -> str:
    """Text: whether the kernels' float32 products keep the error rule in the emulation.

    Args:
        apart: the largest number of products that the kernels sum separately.
    """
    single = of_way(errors, SIX, TRUNCATES)
    first = {row["numbers"]: row["depth"] for row in reversed(single) if not row["right"]}
    broken = ", ".join(f"{depth} ({numbers})" for numbers, depth in sorted(first.items(), key=lambda pair: pair[1]))
    most = max(first.values())
    mean = max(row["mean"] for row in single if row["depth"] == most)
    deep = [row for row in rows if row["arithmetic"] == "fp32" and row["depth"] >= min(first.values())]
    deeper = [row for row in deep if row["depth"] >= most]
    keep: list[str] = []
    others: list[str] = []
    for length in APART:
        wrong = [row["numbers"] for row in of_way(errors, f"{SIX}, largest in sums of {length}", TRUNCATES) if not row["right"]]
        (others if wrong else keep).append(f"{length} ({', '.join(dict.fromkeys(wrong))})" if wrong else str(length))
    broken_apart = f"It breaks with {', '.join(others)}." if others else ""
    return f"""\
**If Hopper's matrix units truncate like this, six products in one accumulator break the rule in long sums**, for at least one
draw, from this many numbers on: {broken}. Truncation always rounds towards zero, so its error grows with the number of
instructions, while errors of rounding partly cancel. For {most} numbers the mean error is up to {mean:.0f} times float32's.
{len(deep)} passes of the registry sum at least {min(first.values())} numbers, {len(deeper)} at least {most}.

The rule holds at all of these depths if the largest of the six products is summed
{" or ".join(keep) or "no such"} numbers at a time, in an inner loop, and rounding additions add these sums.
{broken_apart} The kernels sum {apart} at most. Triton's own three products of TF32, in the pointer kernel, are added in the
same way, block by block."""


def values(results: Path) -> dict[str, str]:
    """The values of the placeholders in text.md."""
    tried, predicted, emulated = stored("tried"), stored("predicted"), stored("emulated")
    rates, channels, reported = predicted["rates"], predicted["channels"], predicted["reported"]
    m, n = reported["tile"]
    rows, timed, errors = tma_rows(predicted["rows"]), measured(results), emulated["rows"]
    first, (small, dilated) = tried["rows"][0], predicted["drawn"]
    bf16 = [row for row in rows if row["arithmetic"] == "bf16"]
    contiguous = {(r["name"], r["pass"], r["arithmetic"]): r["seconds"] for r in tma_rows(predicted["rows"], "contiguous")}
    pairs = [(contiguous.get((row["name"], row["pass"], "bf16")), row["seconds"]) for row in bf16]
    pointers = {arithmetic: by_pointers(predicted["rows"], arithmetic) for arithmetic in NAMES}
    left = dilated["shares"][str(dilated["box"][0])]
    return {
        "state": state(rows, timed),
        "stages": str(stages(first)),
        "ahead": str(stages(first) - 1),
        "small": small["name"],
        "small_box": f"{small['box'][1]} x {small['box'][2]} pixels of {small['box'][0]} images",
        "dilated": f"{dilated['name']} on {dilated['size'][0]} x {dilated['size'][1]} pixels",
        "left": f"{100 * left:.0f}%",
        "useful": f"{100 * dilated['useful']:.0f}%",
        "wide": str(channels["MIN_GROUP_CHANNELS"]),
        "at_once": str(channels["MAX_MERGED_GROUPS"]),
        "fewest": str(channels["MIN_CHANNELS"]),
        "apart": str(predicted["apart"]),
        "pointers_bf16": ", ".join(pointers["bf16"]) or "nothing",
        "pointers_fp32": ", ".join(name for name in pointers["fp32"] if name not in pointers["bf16"]) or "nothing",
        "triton": tried["triton"],
        "tried": tried_table(tried["rows"]),
        "memory": f"{rates['memory'] / 1e12:.1f}",
        "products": f"{rates['bf16'] / 1e12:.0f}",
        "l2": f"{rates['L2'] / 1e12:.1f}",
        "multiprocessors": str(predicted["multiprocessors"]),
        "tiles": f"those measured on an {predicted['tiles']}" if predicted["tiles"] else "the default tiles, before any tuning",
        "by_l2": f"{sum(row['limit'] == 'L2' for row in bf16)} of {len(bf16)}",
        "reported": str(reported["tflops"]),
        "reported_tile": f"{m} x {n}",
        "implied": f"{reported['tflops'] * (m + n) / (m * n):.1f}",
        "by_floor": geomean([row["seconds"] / row["floor"] for row in bf16]),
        "fed_by_floor": geomean([row["fed"] / row["floor"] for row in bf16]),
        "contiguous": geomean([seconds / last for seconds, last in pairs if seconds]),
        "worst": worst(bf16, "seconds", 8),
        "worst_fed": worst(bf16, "fed", 5),
        "comparison": comparison(rows, timed),
        "details": "\n".join(details(rows, timed, arithmetic) for arithmetic in NAMES).rstrip(),
        "sums": str(emulated["sums"]),
        "draws": str(emulated["draws"]),
        "errors": errors_table(errors),
        "verdict": verdict(errors, rows, predicted["apart"]),
    }


def render(results: Path = RESULTS) -> str:
    """The page."""
    text = Template((STORED / "text.md").read_text()).substitute(values(results))
    return "\n\n".join(map(_wrapped, text.strip().split("\n\n"))) + "\n"


def _wrapped(paragraph: str) -> str:
    if paragraph.startswith(("|", "#", "!", "<", " ")):
        return paragraph
    return textwrap.fill(paragraph.strip(), 128, break_long_words=False, break_on_hyphens=False)


def drawn_from(results: Path = RESULTS) -> dict[str, Sequence[Any]]:
    """The data of each figure: the arguments of the function with its name."""
    first, predicted = stored("tried")["rows"][0], stored("predicted")
    small, dilated = predicted["drawn"]
    return {
        "loop": [first, stages(first)],
        "box": [small],
        "taps": [dilated],
        "predictions": [of_one_batch(tma_rows(predicted["rows"])), measured(results), list(NAMES)],
        "errors": [stored("emulated")["rows"]],
    }


def main() -> None:
    PAGE.write_text(render())
    for name, data in drawn_from().items():
        figures.save(getattr(figures, name)(*data), STORED / f"{name}.png", data)
    print(f"wrote {PAGE} and its figures")


if __name__ == "__main__":
    main()
