"""Predicted times of the TMA convolutions on an H200, by a simple model: `python -m bench.predicted`, a minute, no GPU.

The result is docs/convolution/predicted.json. The launchers run on meta tensors, so the TMA boxes, tiles, grids and copies are
the real ones. A TMA box is the block of a tensor moved by one TMA copy. The model takes the largest of three times, each
computed as if the other two were zero:

    memory        each operand read once and each result written once, at the rate of a copy
    matrix units  the products of all tiles, with padding and without skipped taps, at the rate of a large product
    L2            the copies of operands to shared memory, at an assumed rate

The last two are times of the busiest multiprocessor: the next program runs on the first free one. Relayout copies and the sums
of splits are added, at the rate of a copy. The model ignores the start-up and the stores of a program, and the launch of a
kernel, so short sums will be slower than predicted.
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
# Of an H200, in bytes or floating-point operations per second. The L2 rate is an assumption.
RATES = {"memory": 4.3e12, "bf16": 790e12, "tf32": 395e12, "L2": 5.5e12}
REPORTED = {"tflops": 572, "tile": [128, 256], "of": "NVIDIA/tilus#154"}  # its v3 on an H200 NVL; the tile is assumed
DRAWN = ("ResNet stage 3 3x3 256-256", "DeepLab 3x3 dilation 24")
# Prefixes of the names of the kernels without products: copies, and sums of splits or of pixels.
COPIES = (
    "_relayout", "_merge_groups", "_few_channels_copy", "_sum_partials", "_channel_sum", "_plane_mean", "_small_plane_mean",
)  # fmt: skip
PRODUCTS = {"bf16": 1, "fp32": 6}  # bfloat16 products per multiplication


class Started(NamedTuple):
    """An intercepted launch."""

    kernel: str
    programs: int
    named: dict[str, Any]


class Cost(NamedTuple):
    """The predicted cost of a launch."""

    seconds: float
    limit: str  # the resource that determines `seconds`
    fed: float  # seconds with infinite L2 bandwidth: operands always arrive in time
    flops: float = 0.0
    idle: float = 1.0  # imbalance: the work of the busiest multiprocessor divided by the average
    depth: int = 0  # length of the longest sum in one accumulator


@contextlib.contextmanager
def launches(gpu: str) -> Iterator[list[Started]]:
    """Intercept launches within the context, with the tiles measured on that GPU, or default tiles. Yield their list."""
    found: list[Started] = []

    def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        found.append(Started(kernel.__name__, programs, dict(zip(kernel.arg_names, args, strict=False)) | constants))

    with settings.changed(gpu=gpu), intercepted(observe, "sm_90"):
        yield found


def taps_inside(axis: Axis, adjoint: bool, size: int, source: int, block: int) -> list[list[int]]:
    """Count the taps that each tile of `block` pixels multiplies along one axis.

    A tap counts if it is inside the source for at least one pixel of the tile.

    Returns:
        For each phase (only dgrad has several), the counts of its tiles.
    """
    counts = []
    for phase in range(min(axis.stride, size) if adjoint else 1):
        tiles = []
        for first in range(0, triton.cdiv(size, axis.stride if adjoint else 1), block):
            if adjoint:
                at = [phase + (first + i) * axis.stride + axis.padding for i in range(block)]
                small = [[divmod(h - tap * axis.dilation, axis.stride) for h in at] for tap in range(axis.taps)]
                hits = [any(rest == 0 and 0 <= pixel < source for pixel, rest in tap) for tap in small]
            else:
                at = [(first + i) * axis.stride - axis.padding for i in (0, block - 1)]
                hits = [at[1] + tap * axis.dilation >= 0 and at[0] + tap * axis.dilation < source for tap in range(axis.taps)]
            tiles.append(sum(hits))
        counts.append(tiles)
    return counts


def steps_of_gather(programs: int, of: dict[str, Any]) -> np.ndarray:
    """The number of blocks each program multiplies, in the order of the programs."""
    box, adjoint = of["BOX"], of["ADJOINT"]
    rows = np.array(taps_inside(of["H"], adjoint, of["result_height"], of["source_height"], box.rows))
    columns = np.array(taps_inside(of["W"], adjoint, of["result_width"], of["source_width"], box.columns))
    taps = rows[:, None, None, :, None] * columns[None, :, None, None, :]  # phases, images, rows, columns
    taps = np.broadcast_to(taps, (*taps.shape[:2], of["image_tiles"], *taps.shape[3:])).reshape(-1)
    channel_tiles = triton.cdiv(of["channels_out"], of["BLOCK_M"])
    taps = np.tile(np.repeat(taps, channel_tiles), programs // (len(taps) * channel_tiles))
    return taps * triton.cdiv(of["channels_in"], of["BLOCK_K"])


def steps_of_wgrad(programs: int, of: dict[str, Any]) -> np.ndarray:
    """The number of runs of pixels or images each program multiplies, in the order of the programs."""
    h, w, splits = of["H"], of["W"], of["splits"]

    def count(axis: Axis, taps: range, small: int, big: int) -> int:
        hit = [p for p in range(small) if any(0 <= p * axis.stride - axis.padding + t * axis.dilation < big for t in taps)]
        return hit[-1] - hit[0] + 1 if hit else 0

    tiles = triton.cdiv(of["filters"], of["BLOCK_M"]) * triton.cdiv(of["channels"], of["BLOCK_N"])
    at_once = (of["TAPS"], 1) if w.taps == 1 else (1, of["TAPS"])  # taps of a column, or of a row
    runs = []
    for r in range(0, h.taps, at_once[0]):
        rows = count(h, range(r, r + at_once[0]), of["out_height"], of["height"])
        for s in range(0, w.taps, at_once[1]):
            columns = count(w, range(s, s + at_once[1]), of["out_width"], of["width"])
            runs.append(of["run_tiles"] * rows * (columns if of["ALONG_IMAGES"] else triton.cdiv(columns, of["BLOCK_K"])))
    of_taps = np.repeat(np.array(runs), tiles)
    of_splits = [(split + 1) * of_taps // splits - split * of_taps // splits for split in range(splits)]
    steps = np.concatenate(of_splits)
    return np.tile(steps, programs // len(steps))


def busiest(steps: np.ndarray) -> int:
    """The steps of the busiest multiprocessor, if programs run in order on the first free one."""
    if steps.min() == steps.max():
        return triton.cdiv(len(steps), SMS) * int(steps[0])
    free = [0] * SMS
    for count in steps.tolist():
        heapq.heapreplace(free, free[0] + count)
    return max(free)


def size_of(tensor: Any) -> int:
    """The bytes of an argument."""
    if isinstance(tensor, TensorDescriptor):
        whole = tensor.base.untyped_storage().nbytes()  # windows may overlap
        return min(math.prod(tensor.shape) * tensor.base.dtype.itemsize, whole)
    return tensor.numel() * tensor.dtype.itemsize if isinstance(tensor, Tensor) else 0


def cost(started: Started) -> Cost | None:
    """The cost of a launch, or None for a kernel outside the model."""
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
    steps = steps * (1 + of["CROSS"])  # float32 as bf16 terms: CROSS small products beside the largest one
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
    """A row for each pass of each convolution of the registry, in both memory formats."""
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
    """A call of one pass alone. Only its own tensors require gradients, since backward computes every required gradient."""
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
    """The figures' data for a convolution's forward pass: its TMA box, and the number of taps inside the image for each tile.

    "useful" and "shares" are fractions of the products of all taps. "useful" counts the taps inside the image. "shares" has the
    products of the best TMA box, by its number of images.
    """
    case = registry.CASES[name]
    box = next(row["box"] for row in rows if (row["name"], row["pass"]) == (name, "forward"))
    images, _, *size = case.inputs[0]
    with torch.device("meta"):
        conv: Any = case.make(torch.nn)
    axis = Axis(conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0])
    blocks = zip((*size, *size), (*box[1:], 1, 1), strict=True)
    counts = [taps_inside(axis, False, n, n, block)[0] for n, block in blocks]
    along = [GatherAxis(n, n, axis, False) for n in size]
    powers = [1 << i for i in range(math.prod(box).bit_length())]
    every = images * math.prod(size) * axis.taps**2
    shares = {}
    for several in powers:
        works = [along[0].work(h) * along[1].work(w) for h in powers for w in powers if several * h * w == math.prod(box)]
        shares[several] = round(triton.cdiv(images, several) * min(works) * math.prod(box) / every, 4)
    return {
        "name": name, "images": images, "size": size, "box": box, "taps": axis.taps, "dilation": axis.dilation,
        "seen": counts[:2], "useful": round(sum(counts[2]) * sum(counts[3]) * images / every, 4), "shares": shares,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="", metavar="NAME", help="use the tiles measured on this GPU")
    args = parser.parse_args()
    triton.runtime.driver.set_active(Driver("sm_90"))
    found = [shortened(row) for row in rows(args.gpu)]
    lines = ",\n".join(map(json.dumps, found))
    least = {name: getattr(tma, name) for name in ("MIN_CHANNELS", "MIN_GROUP_CHANNELS", "MAX_MERGED_GROUPS")}
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
