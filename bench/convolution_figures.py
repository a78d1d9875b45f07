"""Figures of docs/convolution.md. The metadata of each picture contains a digest of its data."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Stored = dict[str, Any]
Row = dict[str, Any]

PASSES = {"forward": "#1b6ca8", "dgrad": "#d1692b", "wgrad": "#3f8f4f"}


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _figure(wide: float, high: float, columns: int = 1, **options: Any) -> tuple[Any, list[Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(wide, high), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    return figure, list(axes)


def save(figure: Any, path: Path, data: Any) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None, "Description": digest(data)})


def box(drawn: Stored) -> Any:
    """A TMA box over several images, and the products of boxes with fewer or more images."""
    from matplotlib.patches import Rectangle

    figure, (sheets, shares) = _figure(8.6, 3.4, 2, width_ratios=(1.15, 1))
    (rows, columns), (images, high, wide) = drawn["size"], drawn["box"]
    shown = 4
    column, row = wide, high
    for sheet in reversed(range(shown)):
        at, over = 3.2 * sheet, 2 + shown - sheet
        sheets.add_patch(
            Rectangle((at, -at), columns, rows, facecolor="white", edgecolor="#888888", linewidth=0.8, zorder=over)
        )
        for y in range(0, rows, high):
            sheets.plot([at, at + columns], [y - at] * 2, color="#cccccc", linewidth=0.4, zorder=over)
        for x in range(0, columns, wide):
            sheets.plot([at + x] * 2, [-at, rows - at], color="#cccccc", linewidth=0.4, zorder=over)
        sheets.add_patch(Rectangle((at + column, row - at), wide, high, facecolor=PASSES["forward"], zorder=over))
    last = 3.2 * (shown - 1)
    sheets.annotate(f"image {drawn['images']}", (last + columns + 0.4, 1 - last), annotation_clip=False)
    sheets.annotate("image 1", (0, rows + 1.4), annotation_clip=False)
    sheets.set(xlim=(-0.5, last + columns + 7), ylim=(rows + 2, -last - 1), aspect="equal")
    sheets.axis("off")
    sheets.set_title(f"the box of a program: {high} x {wide} pixels of {images} images")
    counts, values = list(drawn["shares"]), [100 * value for value in drawn["shares"].values()]
    chosen = counts.index(str(images))
    shares.bar(counts, values, color=["#bbbbbb" if i != chosen else PASSES["forward"] for i in range(len(counts))])
    shares.axhline(100 * drawn["useful"], color="black", linewidth=1, label="taps inside the image")
    shares.legend(loc="upper left", frameon=False)
    shares.set(xlabel=f"images in a box of {images * high * wide} pixels", ylabel="products, % of those of all taps")
    shares.set_title("products of the best box")
    return figure


def taps(drawn: Stored) -> Any:
    """The number of taps that each box of a dilated convolution multiplies, without skipped taps."""
    figure, (axes,) = _figure(5.4, 4.0)
    (rows, columns), (_, high, wide) = drawn["size"], drawn["box"]
    of_rows, of_columns = drawn["seen"]
    grid = [[r * c for c in of_columns] for r in of_rows]
    edges = [[min(i * block, size) for i in range(-(-size // block) + 1)] for size, block in ((columns, wide), (rows, high))]
    drawn_grid = axes.pcolormesh(*edges, grid, cmap="Blues", vmin=0, vmax=drawn["taps"] ** 2, edgecolor="white", linewidth=0.5)
    for row, line in enumerate(grid):
        for column, count in enumerate(line):
            at = [sum(e[i : i + 2]) / 2 for e, i in zip(edges, (column, row), strict=True)]
            axes.text(*at, count, ha="center", va="center", fontsize=8, color="white" if count > 5 else "black")
    axes.set(aspect="equal", xticks=[0, columns], yticks=[0, rows])
    axes.invert_yaxis()
    axes.set_title(f"{drawn['name']}: taps of each box, of {drawn['taps'] ** 2}")
    figure.colorbar(drawn_grid, ax=axes, shrink=0.8)
    return figure


def loop(way: Row, stages: int) -> Any:
    """The contents of each buffer in shared memory, and the products of the matrix units, over time.

    Args:
        way: a row of tried.py.
        stages: buffers for each operand.
    """
    from matplotlib.patches import Rectangle

    figure, (axes,) = _figure(8.6, 2.0)
    steps, ahead = 8, way["ahead"] // way["copies"]
    colours = ["#1b6ca8", "#d1692b", "#3f8f4f", "#7b4fa3", "#b23a48"][:stages]
    for step in range(steps):
        row, colour = stages - step % stages, colours[step % stages]
        axes.add_patch(Rectangle((step - ahead, row + 0.1), ahead, 0.8, facecolor=colour, alpha=0.25))
        axes.text(step - ahead / 2, row + 0.5, f"copy {step}", ha="center", va="center")
        for y in (row, 0):
            axes.add_patch(Rectangle((step + 0.02, y + 0.1), 0.96, 0.8, facecolor=colour))
            axes.text(step + 0.5, y + 0.5, f"x {step}", ha="center", va="center", color="white")
    axes.set(xlim=(-ahead - 0.1, steps + 0.1), ylim=(-0.1, stages + 1.05), xticks=[])
    axes.set_yticks([i + 0.5 for i in range(stages + 1)], ["matrix units", *(f"buffer {i}" for i in range(stages, 0, -1))])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("time")
    return figure


def predictions(rows: Sequence[Row], measured: Sequence[Row], arithmetics: Sequence[str]) -> Any:
    """A row for each convolution, with up to three passes.

    A bar extends from the time with infinite L2 bandwidth to the predicted time. A black tick is the floor, a dot is a measured
    time.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, panels = _figure(11, 1.2 + 0.24 * len(names), len(arithmetics), sharey=True)
    for axes, arithmetic in zip(panels, arithmetics, strict=True):
        for row in rows:
            if row["arithmetic"] == arithmetic:
                y, colour = names.index(row["name"]) + _offset(row), PASSES[row["pass"]]
                least, most = 1e6 * row["fed"], 1e6 * row["seconds"]
                axes.plot([least, max(most, least * 1.02)], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
                axes.plot([1e6 * row["floor"]] * 2, [y - 0.13, y + 0.13], color="black", linewidth=1)
        for row in measured:
            if row["arithmetic"] == arithmetic and row["name"] in names:
                y = names.index(row["name"]) + _offset(row)
                axes.plot(1e6 * row["ours"], y, "o", markersize=3.5, color=PASSES[row["pass"]], markeredgecolor="black")
        axes.set(xscale="log", xlabel="us")
        axes.set_title({"bf16": "bfloat16", "fp32": "float32 without TF32"}.get(arithmetic, arithmetic))
        axes.grid(axis="x", which="both", alpha=0.25)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for name, colour in PASSES.items():
        panels[-1].plot([], [], color=colour, linewidth=2.2, label=name)
    panels[-1].plot([], [], "|", color="black", markersize=8, label="floor")
    panels[-1].plot([], [], "o", color="white", markeredgecolor="black", markersize=3.5, label="measured")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def _offset(row: Row) -> float:
    return 0.27 * (list(PASSES).index(row["pass"]) - 1)


# Colour and line style by the name of a way in emulated.py, and the rounding of its instructions.
LINES = {
    ("6 products of bfloat16", "truncates"): ("#b23a48", "-"),
    ("6 products of bfloat16", "rounds"): ("#b23a48", ":"),
    ("6 products of bfloat16, largest in sums of 256", "truncates"): ("#1b6ca8", "-"),
    ("6 products of bfloat16, largest in sums of 1024", "truncates"): ("#1b6ca8", "--"),
    ("3 products of TF32, in sums of 32", "truncates"): ("#3f8f4f", "-"),
    ("3 products of bfloat16", "truncates"): ("#d1692b", "-"),
    ("1 product of TF32", "truncates"): ("#888888", "-"),
}


def errors(rows: Sequence[Row]) -> Any:
    """A panel for each distribution: the largest error by depth, relative to float32's."""
    kinds = list(dict.fromkeys(row["numbers"] for row in rows))
    figure, panels = _figure(11, 3.8, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for (way, instruction), (colour, style) in LINES.items():
            line = [row for row in rows if (row["numbers"], row["way"], row["instruction"]) == (kind, way, instruction)]
            axes.plot([row["depth"] for row in line], [row["largest"] for row in line], style, color=colour, marker=".",
                      label=f"{way}; {instruction}")  # fmt: skip
        axes.axhline(2, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", title=kind, xlabel="numbers summed")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("largest error, float32's = 1")
    panels[0].annotate("the rule: 2", (70, 2.2), fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
