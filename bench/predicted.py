"""What convolutions in boxes should take on an H200, by a simple model: `python -m bench.predicted`, a minute, no GPU.

Writes docs/convolution/predicted.json. The launchers run on meta tensors, so that boxes, tiles, grids and copies are those that
would run. The model takes the largest of three times, each as if nothing else took any:

    memory        each operand read once and each result written once, at the rate of a copy
    matrix units  what the tiles multiply, with what they waste and without the taps they skip, at the rate of a large product
    L2            what is copied to shared memory for that, at an assumed rate

The last two are those of the busiest of all multiprocessors, as programs go to whichever is free first. Copies in another order
and the sums of parts come on top, at the rate of a copy. How long a program takes to begin and to store, and a kernel to start,
is left out: short sums will be slower than this says.
"""

from bench import compiled_only  # noqa: F401  # before triton  # isort: skip

import argparse
import contextlib
import heapq
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bench import ahead, registry
from bench.machine_code import Driver
from bench.rows import LAYOUTS, Instance
from bench.timing import Call, using
from trinn.kernels.conv2d import tma
from trinn.kernels.conv2d.tma_box import GatherAxis
from trinn.kernels.device.indexing import Axis
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings

STORED = Path(__file__).resolve().parent.parent / "docs" / "convolution" / "predicted.json"

PASSES = ("forward", "dgrad", "wgrad")
ARITHMETICS = ("bf16", "fp32")
SMS = 132
RATES = {"memory": 4.3e12, "bf16": 790e12, "tf32": 395e12, "L2": 5.5e12}  # a second, of an H200; L2 is an assumption
REPORTED = {"tflops": 572, "tile": [128, 256], "of": "NVIDIA/tilus#154"}  # its v3 on an H200 NVL; the tile is a guess
DRAWN = ("ResNet stage 3 3x3 256-256", "DeepLab 3x3 dilation 24")
COPIES = (
    "_relayout", "_merge_groups", "_few_channels_copy", "_sum_partials", "_channel_sum", "_plane_mean", "_small_plane_mean",
)  # fmt: skip
PRODUCTS = {"bf16": 1, "fp32": 6}  # of bfloat16, for each of the arithmetic


class Started(NamedTuple):
    """A launch that was not made."""

    kernel: str
    programs: int
    named: dict[str, Any]


class Cost(NamedTuple):
    """What a launch takes, in seconds, and of what; and what it would take if L2 held nothing up."""

    seconds: float
    limit: str
    fed: float
    flops: float = 0.0
    idle: float = 1.0  # how much longer the busiest multiprocessor works than all do on average
    depth: int = 0  # of the longest sum in one accumulator


@contextlib.contextmanager
def launches(gpu: str) -> Iterator[list[Started]]:
    """The launches within, with tiles as measured on the GPU of that name, or else guessed."""
    found: list[Started] = []

    def note(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        found.append(Started(kernel.__name__, programs, dict(zip(kernel.arg_names, args, strict=False)) | constants))

    with settings.changed(gpu=gpu), intercepted(note, "sm_90"):
        yield found


def taps_seen(axis: Axis, adjoint: bool, size: int, source: int, block: int) -> list[list[int]]:
    """For each phase, and each tile of `block` pixels along an axis, how many taps see the source at all."""
    seen = []
    for phase in range(min(axis.stride, size) if adjoint else 1):
        tiles = []
        for first in range(0, triton.cdiv(size, axis.stride if adjoint else 1), block):
            if adjoint:
                at = [phase + (first + i) * axis.stride + axis.padding for i in range(block)]
                small = [[divmod(h - tap * axis.dilation, axis.stride) for h in at] for tap in range(axis.taps)]
                hits = [any(rest == 0 and 0 <= pixel < source for pixel, rest in line) for line in small]
            else:
                at = [(first + i) * axis.stride - axis.padding for i in (0, block - 1)]
                hits = [at[1] + tap * axis.dilation >= 0 and at[0] + tap * axis.dilation < source for tap in range(axis.taps)]
            tiles.append(sum(hits))
        seen.append(tiles)
    return seen


def steps_of_gather(programs: int, of: dict[str, Any]) -> np.ndarray:
    """How many blocks each program multiplies, in the order of the programs."""
    box, adjoint = of["BOX"], of["ADJOINT"]
    rows = np.array(taps_seen(of["H"], adjoint, of["result_height"], of["source_height"], box.rows))
    columns = np.array(taps_seen(of["W"], adjoint, of["result_width"], of["source_width"], box.columns))
    taps = rows[:, None, None, :, None] * columns[None, :, None, None, :]  # phases, images, rows, columns
    taps = np.broadcast_to(taps, (*taps.shape[:2], of["image_tiles"], *taps.shape[3:])).reshape(-1)
    channel_tiles = triton.cdiv(of["channels_out"], of["BLOCK_M"])
    taps = np.tile(np.repeat(taps, channel_tiles), programs // (len(taps) * channel_tiles))
    return taps * triton.cdiv(of["channels_in"], of["BLOCK_K"])


def steps_of_wgrad(programs: int, of: dict[str, Any]) -> np.ndarray:
    """How many lines each program multiplies, in the order of the programs."""
    h, w, parts = of["H"], of["W"], of["parts"]

    def count(axis: Axis, taps: range, small: int, big: int) -> int:
        hit = [p for p in range(small) if any(0 <= p * axis.stride - axis.padding + t * axis.dilation < big for t in taps)]
        return hit[-1] - hit[0] + 1 if hit else 0

    tiles = triton.cdiv(of["filters"], of["BLOCK_M"]) * triton.cdiv(of["channels"], of["BLOCK_N"])
    at_once = (of["TAPS"], 1) if w.taps == 1 else (1, of["TAPS"])  # of a column, or of a row
    lines = []
    for r in range(0, h.taps, at_once[0]):
        rows = count(h, range(r, r + at_once[0]), of["out_height"], of["height"])
        for s in range(0, w.taps, at_once[1]):
            columns = count(w, range(s, s + at_once[1]), of["out_width"], of["width"])
            lines.append(of["line_tiles"] * rows * (columns if of["OF_IMAGES"] else triton.cdiv(columns, of["BLOCK_K"])))
    of_taps = np.repeat(np.array(lines), tiles)
    of_parts = [(part + 1) * of_taps // parts - part * of_taps // parts for part in range(parts)]
    steps = np.concatenate(of_parts)
    return np.tile(steps, programs // len(steps))


def busiest(steps: np.ndarray) -> int:
    """The steps of the multiprocessor that has the most, as programs go in their order to whichever is free first."""
    if steps.min() == steps.max():
        return triton.cdiv(len(steps), SMS) * int(steps[0])
    free = [0] * SMS
    for count in steps.tolist():
        heapq.heapreplace(free, free[0] + count)
    return max(free)


def size_of(tensor: Any) -> int:
    """Bytes that a launch reads or writes of an argument."""
    if isinstance(tensor, TensorDescriptor):
        whole = tensor.base.untyped_storage().nbytes()  # windows may overlap
        return min(math.prod(tensor.shape) * tensor.base.dtype.itemsize, whole)
    return tensor.numel() * tensor.dtype.itemsize if isinstance(tensor, Tensor) else 0


def cost(started: Started) -> Cost | None:
    """What a launch takes, or None for one that the model is not about."""
    kernel, programs, of = started
    moved = sum(map(size_of, of.values()))
    if kernel.startswith(COPIES):
        return Cost(moved / RATES["memory"], "copies", moved / RATES["memory"])
    if "_tma_" not in kernel:
        return None
    if "_gather_" in kernel:
        steps = steps_of_gather(programs, of)
        m, n, k, taps = of["BLOCK_M"], of["BOX"].pixels, of["BLOCK_K"], 1
        itemsize = of["source"].base.dtype.itemsize
    else:
        steps = steps_of_wgrad(programs, of)
        m, n, k, taps = of["BLOCK_M"], of["BLOCK_N"], of["BLOCK_K"], of["TAPS"]
        itemsize = of["x"].base.dtype.itemsize
    depth = int(steps.max()) * k
    steps = steps * (1 + of["CROSS"])
    most = SMS * busiest(steps)
    times = {
        "memory": moved / RATES["memory"],
        "matrix units": most * 2 * m * n * k * taps / RATES["tf32" if of["PRECISION"] == "tf32" else "bf16"],
        "L2": most * (m + taps * n) * k * itemsize / RATES["L2"],
    }
    limit = max(times, key=lambda name: times[name])
    fed = max(times["memory"], times["matrix units"])
    return Cost(times[limit], limit, fed, float(steps.sum()) * 2 * m * n * k * taps, most / max(1, int(steps.sum())), depth)


def rows(gpu: str) -> Iterator[dict[str, Any]]:
    """Of each convolution of the registry, each of its passes, in both memory formats."""
    cases = [case for case in registry.CASES.values() if case.op in ("conv2d", "conv_transpose2d")]
    with ahead._Launchers():
        for case in cases:
            for arithmetic in ARITHMETICS:
                for layout in LAYOUTS:
                    for what in (what for what in PASSES if what in case.works):
                        with using(arithmetic) as dtype, launches(gpu) as found:
                            call = call_of(case, what, dtype, layout)
                            found.clear()
                            call()
                        yield row_of(case, what, arithmetic, layout, dtype.itemsize, found)


def call_of(case: registry.Case, what: str, dtype: torch.dtype, layout: str) -> Call:
    """A pass that has no other gradients than its own: a Function's backward computes those of all that require them."""
    instance = Instance(case, "ours", dtype, layout, "meta")
    for parameter in instance.module.parameters() if what == "dgrad" else instance.inputs:
        parameter.requires_grad_(what == "forward" and parameter.requires_grad)
    return instance.call(what)


def row_of(
    case: registry.Case, what: str, arithmetic: str, layout: str, itemsize: int, found: list[Started]
) -> dict[str, Any]:  # fmt: skip
    work = case.works[what]
    flops = work.flops * PRODUCTS[arithmetic]
    row = {
        "name": case.name, "pass": what, "arithmetic": arithmetic, "layout": layout,
        "floor": max(work.bytes(itemsize) / RATES["memory"], flops / RATES["bf16"]),
    }  # fmt: skip
    costs = [cost(started) for started in found]
    if None in costs:
        return row | {"seconds": None, "by": sorted({s.kernel for s, c in zip(found, costs, strict=True) if c is None})}
    main = max((c for c in costs if c is not None and c.flops), key=lambda c: c.seconds)
    started = found[costs.index(main)]
    copies = sum(c.seconds for c in costs if c is not None and not c.flops)
    of = started.named
    return row | {
        "seconds": main.seconds + copies, "fed": main.fed + copies, "copies": copies,
        "limit": "copies" if copies > main.seconds else main.limit,
        "multiplied": main.flops / flops, "idle": main.idle, "programs": started.programs, "depth": main.depth,
        "tile": [of["BLOCK_M"], of["BOX"].pixels if "BOX" in of else of["BLOCK_N"] * of["TAPS"], of["BLOCK_K"]],
        "box": list(of["BOX"]) if "BOX" in of else None,
    }  # fmt: skip


def drawn(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """What the page draws of a convolution's forward pass: its box, and how many taps each tile of rows and columns sees.

    Shares are of the products of all taps: of those that see a pixel, and what boxes of so many images multiply at least.
    """
    case = registry.CASES[name]
    box = next(row["box"] for row in rows if (row["name"], row["pass"]) == (name, "forward"))
    images, _, *size = case.inputs[0]
    with torch.device("meta"):
        conv: Any = case.make(torch.nn)
    axis = Axis(conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0])
    blocks = zip((*size, *size), (*box[1:], 1, 1), strict=True)
    seen = [taps_seen(axis, False, n, n, block)[0] for n, block in blocks]
    along = [GatherAxis(n, n, axis, False) for n in size]
    powers = [1 << i for i in range(math.prod(box).bit_length())]
    every = images * math.prod(size) * axis.taps**2
    shares = {}
    for several in powers:
        works = [along[0].work(h) * along[1].work(w) for h in powers for w in powers if several * h * w == math.prod(box)]
        shares[several] = round(triton.cdiv(images, several) * min(works) * math.prod(box) / every, 4)
    return {
        "name": name, "images": images, "size": size, "box": box, "taps": axis.taps, "dilation": axis.dilation,
        "seen": seen[:2], "useful": round(sum(seen[2]) * sum(seen[3]) * images / every, 4), "shares": shares,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="", metavar="NAME", help="with the tiles measured on that one")
    args = parser.parse_args()
    triton.runtime.driver.set_active(Driver("sm_90"))
    found = [shortened(row) for row in rows(args.gpu)]
    lines = ",\n".join(map(json.dumps, found))
    least = {name: getattr(tma, name) for name in ("FEWEST", "WIDE", "MOST_AT_ONCE")}
    head = {
        "rates": RATES,
        "channels": least,
        "apart": max(row["tile"][2] for row in found if row["arithmetic"] == "fp32" and row.get("tile")),
        "multiprocessors": SMS,
        "reported": REPORTED,
        "tiles": args.gpu,
        "drawn": [drawn(found, name) for name in DRAWN],
    }
    STORED.parent.mkdir(parents=True, exist_ok=True)
    STORED.write_text(f'{json.dumps(head)[:-1]},\n"rows": [\n{lines}\n]}}\n')
    print(f"wrote {STORED}, {len(found)} rows")


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    main()
