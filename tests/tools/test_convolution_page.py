"""docs/convolution.md is up to date with its stored data, and shows measured times if there are any."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench import convolution_figures as figures
from bench.convolution_page import PAGE, STORED, UNTIMED, drawn_from, render
from bench.emulated import multiplied

# predicted.py counts the taps of each tile. Their sum must equal the count of kernels/conv2d/tma_box.py for all tiles together.
# In dgrad each tile has at least one tap.
COUNTED = """
from itertools import product

from bench.predicted import Axis, GatherAxis, taps_inside

axes = product((False, True), (1, 3, 4), (1, 2, 3), (0, 1, 5), (1, 2, 7), (1, 4))
for adjoint, taps, stride, padding, dilation, block in axes:
    size, axis = 12, Axis(taps, stride, padding, dilation)
    for source in (size, 5):
        phases = taps_inside(axis, adjoint, size, source, block)
        counted = sum(max(1, count) if adjoint else count for phase in phases for count in phase)
        assert counted == GatherAxis(size, source, axis, adjoint).work(block), (adjoint, axis, block, source)
"""


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "python -m bench.convolution_page rewrites it"


def test_pictures_are_up_to_date() -> None:
    for name, data in drawn_from().items():
        assert figures.digest(data).encode() in (STORED / f"{name}.png").read_bytes(), f"{name}.png shows other data"


def test_times_are_shown(tmp_path: Path) -> None:
    """The page shows the newest result of a GPU, from any subfolder, and ignores other files and other passes."""
    name = "AlexNet conv3 b128"
    for date, ours in (("2031-01-01", 61e-6), ("2030-01-01", 77e-6)):
        times = [
            {"side": side, "mode": "eager", "layout": layout, "median": seconds}
            for side, layout, seconds in (("ours", "channels_last", ours), ("torch", "contiguous", 83e-6))
        ]
        row = {
            "name": name,
            "op": "conv2d",
            "pass": "forward",
            "arithmetic": "bf16",
            "against": "eager",
            "bytes": 1,
            "flops": 1,
        }
        rows = [row | {"times": times, "pass": what} for what in ("forward", "backward")]
        result = {"environment": {"gpu": "H200", "date": date}, "ceilings": {}, "rows": rows}
        folder = tmp_path / "h200" / ("" if ours == 77e-6 else "of make gpu/h200")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{date}.json").write_text(json.dumps(result))
    (tmp_path / "h200" / "other.json").write_text("[]")
    page = render(tmp_path)
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |") and "| 61, 83 |" in line)
    assert "**Timed on H200**" in page and "forward 1 of" in page and "dgrad 0 of" in page and UNTIMED[:20] not in page
    assert {row["pass"] for row in drawn_from(tmp_path)["predictions"][1]} == {"forward"}
    assert "| H200 | bfloat16 |" in page and "77, 83" not in page and line.count("not yet") == 2


def test_nothing_was_timed(tmp_path: Path) -> None:
    assert "Nothing on it was timed." in render(tmp_path)


def test_taps_are_counted_as_in_the_launchers() -> None:
    subprocess.run([sys.executable, "-c", COUNTED], check=True, cwd=PAGE.parent.parent)


def test_an_instruction_truncates() -> None:
    """bench/emulated.py: a tensor-core instruction loses bits more than two below the accumulator's last bit.

    Bits of the sum beyond 24 are lost too.
    """

    def summed(acc: float, products: list[float], truncates: bool) -> float:
        a = np.array([products], dtype=np.float32)
        return float(multiplied(np.array([acc]), a, np.ones_like(a), "bf16", truncates)[0])

    large = 2.0**24
    assert summed(large, [0.25] * 8, truncates=True) == large and summed(large, [0.25] * 8, truncates=False) == large + 2
    assert summed(large, [0.5] * 3, truncates=True) == large and summed(large, [0.5] * 4, truncates=True) == large + 2
    assert summed(-large, [-1.5], truncates=True) == -large and summed(-large, [-1.5], truncates=False) == -large - 2
    assert summed(large, [-0.5], truncates=True) == large - 1
