"""Ways to write a TMA convolution for Hopper's matrix units, compiled without a GPU: `python -m bench.tried`.

The result is docs/convolution/tried.json. The kernels below are minimal: one load and one product in a loop. The real kernels
are in kernels/conv2d/tma.py. A loop is good if its products read both operands from the shared memory that TMA filled. A TMA
box is the block of a tensor moved by one TMA copy.
"""

from bench import compiled_only  # noqa: F401  # before triton  # isort: skip

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.machine_code import Driver, read_cubin, read_loops, read_sass

STORED = Path(__file__).resolve().parent.parent / "docs" / "convolution" / "tried.json"

N, H, W, C, K, TAPS = 64, 56, 56, 128, 128, 9  # a layer of ResNet's second stage
PITCH = tl.constexpr(C)


@triton.jit
def _loaded(
    x, w, m, n, p, q, step, blocks,
    IMAGE: tl.constexpr, FILTERS: tl.constexpr, PIXELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The operands of a step: a TMA box of pixels, (PIXELS, BLOCK_K), and filters, (BLOCK_M, BLOCK_K)."""
    c, tap = step % blocks * BLOCK_K, step // blocks
    r, s = tap // 3, tap % 3
    if IMAGE == "pairs of rows and columns":
        box = x.load([n, p + (r - 1) // 2, (r + 1) % 2, q + (s - 1) // 2, (s + 1) % 2 * PITCH + c])
    elif IMAGE == "pairs of columns":
        box = x.load([n, p * 2 + r - 1, q + (s - 1) // 2, (s + 1) % 2 * PITCH + c])
    else:
        box = x.load([n, p + r - 1, q + s - 1, c])
    if FILTERS == "rank 3":
        filters = tl.reshape(w.load([m, tap, c]), (BLOCK_M, BLOCK_K))
    elif FILTERS == "transposed":
        filters = w.load([c, tap * PITCH + m]).T
    else:
        filters = w.load([m, tap * PITCH + c])
    return tl.reshape(box, (PIXELS, BLOCK_K)), filters


@triton.jit
def _fprop_kernel(
    x, w, y, blocks, steps,
    IMAGE: tl.constexpr, FILTERS: tl.constexpr, BOX_LEFT: tl.constexpr, SUMS: tl.constexpr, SPECIALIZE: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Filters times a TMA box, summed over taps and blocks of channels; SUMS selects where the products are added.

    The kernel is compiled and never runs: only its loop matters, not the positions.
    """
    m = tl.program_id(0) * BLOCK_M
    n0, p0, q0 = tl.program_id(1), tl.program_id(2) * 8, tl.program_id(2) % 7 * 8
    if BOX_LEFT:
        acc = tl.full((PIXELS, BLOCK_M), 0.0, tl.float32)
    else:
        acc = tl.full((BLOCK_M, PIXELS), 0.0, tl.float32)
    # Sums of four steps in an inner loop; the outer loop adds them outside of the matrix units.
    if SUMS == "inner loop":
        for first in range(0, steps, 4):
            partial = tl.full((BLOCK_M, PIXELS), 0.0, tl.float32)
            for step in range(first, tl.minimum(first + 4, steps)):
                box, filters = _loaded(x, w, m, n0, p0, q0, step, blocks, IMAGE, FILTERS, PIXELS, BLOCK_M, BLOCK_K)
                partial = tl.dot(filters, box.T, partial)
            acc += partial
    # One loop; a branch adds the sum of each four steps.
    elif SUMS == "branch":
        partial = tl.full((BLOCK_M, PIXELS), 0.0, tl.float32)
        for step in range(steps):
            box, filters = _loaded(x, w, m, n0, p0, q0, step, blocks, IMAGE, FILTERS, PIXELS, BLOCK_M, BLOCK_K)
            partial = tl.dot(filters, box.T, partial)
            if step % 4 == 3:
                acc += partial
                partial = tl.full((BLOCK_M, PIXELS), 0.0, tl.float32)
        acc += partial
    # One accumulator; the matrix units or, in two variants, additions after each product sum it.
    else:
        for step in tl.range(steps, warp_specialize=SPECIALIZE):
            box, filters = _loaded(x, w, m, n0, p0, q0, step, blocks, IMAGE, FILTERS, PIXELS, BLOCK_M, BLOCK_K)
            if BOX_LEFT:
                acc = tl.dot(box, filters.T, acc)
            elif SUMS == "each":
                acc += tl.dot(filters, box.T)
            elif SUMS == "each, not fused":
                acc += tl.dot(filters, box.T, max_num_imprecise_acc=1)
            else:
                acc = tl.dot(filters, box.T, acc)
    tl.store(y + tl.arange(0, acc.shape[0])[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :], acc)


@triton.jit
def _wgrad_kernel(
    x, dy, dw, steps, IMAGES_LAST: tl.constexpr, ALONG_IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dy^T times x, summed over TMA boxes, or over runs of consecutive pixels or images. It is compiled and never runs."""
    m, c, r = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N, tl.program_id(2)
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for step in range(steps):
        p, q, n = step % 7 * 8, step // 7 % 7 * 8, step // 49
        if IMAGES_LAST:
            a = tl.reshape(dy.load([p, q, m, n * BLOCK_K]), (BLOCK_M, BLOCK_K))
            b = tl.reshape(x.load([p + r, q, c, n * BLOCK_K]), (BLOCK_N, BLOCK_K)).T
        elif ALONG_IMAGES:
            a = tl.reshape(dy.load([p, q, n * BLOCK_K, m]), (BLOCK_K, BLOCK_M)).T
            b = tl.reshape(x.load([p + r, q, n * BLOCK_K, c]), (BLOCK_K, BLOCK_N))
        else:
            a = tl.reshape(dy.load([n, p, q, m]), (BLOCK_K, BLOCK_M)).T
            b = tl.reshape(x.load([n, p + r, q, c]), (BLOCK_K, BLOCK_N))
        acc = tl.dot(a, b, acc)
    tl.store(dw + tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :], acc)


class Way(NamedTuple):
    """One way to write a pass. The fields select the kernel's variant."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    box: tuple[int, int, int] = (2, 8, 8)  # images, rows, columns
    image: str = "unchanged"  # or a view for stride 2: "pairs of columns", "pairs of rows and columns"
    filters: str = "matrix"  # or "rank 3", "transposed"
    box_left: bool = False  # whether the box is the left operand
    sums: str = "in the matrix units"  # or additions outside: "each", "each, not fused", "branch", "inner loop"
    specialize: bool = False  # Triton's warp specialisation
    wgrad: str = ""  # the operands of wgrad: "boxes", "columns", "images", "images last"; empty for fprop and dgrad
    warps: int = 8

    def compiled(self) -> Any:
        block_k, out = 128 // self.dtype.itemsize, torch.empty(1, dtype=torch.float32, device="meta")
        options = {"num_warps": self.warps, "num_stages": 3, "grid": (1,)}
        if self.wgrad:
            images_last, along_images = self.wgrad == "images last", self.wgrad == "images"
            if images_last:
                x = self.described((H, W, C, N), (1, 1, 128, block_k))
            elif along_images:
                x = self.described((H, W, N, C), (1, 1, block_k, 128))
            else:
                x = self.described((N, H, W, C), (*self.box, 128))
            return _wgrad_kernel.warmup(x, x, out, 99, images_last, along_images, 128, 128, block_k, **options)
        n, h, w = self.box
        if self.image == "pairs of rows and columns":
            x = self.described((N, H // 2, 2, W // 2, 2 * C), (n, h, 1, w, block_k))
        elif self.image == "pairs of columns":
            x = self.described((N, H, W // 2, 2 * C), (n, h, w, block_k))
        else:
            x = self.described((N, H, W, C), (n, h, w, block_k))
        if self.filters == "rank 3":
            filters = self.described((K, TAPS, C), (128, 1, block_k))
        else:
            filters = self.described((K, TAPS * C), (block_k, 128) if self.filters == "transposed" else (128, block_k))
        return _fprop_kernel.warmup(
            x, filters, out, C // block_k, TAPS * C // block_k,
            self.image, self.filters, self.box_left, self.sums, self.specialize, n * h * w, 128, block_k, **options,
        )  # fmt: skip

    def described(self, shape: Sequence[int], block: Sequence[int]) -> TensorDescriptor:
        """A descriptor of a contiguous tensor."""
        tensor = torch.empty(tuple(shape), dtype=self.dtype, device="meta")
        return TensorDescriptor(tensor, list(shape), list(tensor.stride()), list(block))


PLAIN = Way("fprop: the filters' matrix on the left, a box of several rows on the right")
WAYS = (
    PLAIN,
    Way("fprop: the box on the left, the filters on the right", box_left=True),
    Way("fprop: a box of one row on the left", box_left=True, box=(1, 1, 128)),
    Way("fprop: filters as a rank-3 tensor, [filters, taps, channels]", filters="rank 3"),
    Way("fprop, stride 2: view [N, H/2, 2, W/2, 2 C]", image="pairs of rows and columns"),
    Way("fprop, stride 2: view [N, H, W/2, 2 C]", image="pairs of columns", box=(16, 1, 8)),
    Way("fprop: `tl.range(warp_specialize=True)`, 8 warps", specialize=True),
    Way("fprop: `tl.range(warp_specialize=True)`, 4 warps", specialize=True, warps=4, box=(1, 8, 8)),
    Way("fprop: `acc += tl.dot(...)`, to add outside of the matrix units", sums="each"),
    Way("fprop: the same with `max_num_imprecise_acc=1`, against fusing the addition", sums="each, not fused"),
    Way("fprop: sums of four blocks, added outside of the matrix units in an `if`", sums="branch"),
    Way("fprop: sums of four blocks, each in an inner loop", sums="inner loop"),
    Way("fprop: the same, twice as many pixels", sums="inner loop", box=(4, 8, 8)),
    Way("dgrad: the same filters, transposed", filters="transposed"),
    Way("dgrad, TF32: the same filters, transposed", filters="transposed", dtype=torch.float32, box=(2, 8, 4)),
    Way("dgrad, TF32: filters transposed by a copy beforehand", dtype=torch.float32, box=(2, 8, 4)),
    Way("wgrad: a box on either side", wgrad="boxes", box=(1, 8, 8)),
    Way("wgrad: a run of columns on either side", wgrad="columns", box=(1, 1, 64)),
    Way("wgrad: a run of images on either side", wgrad="images"),
    Way("wgrad, TF32: runs of images, channels innermost", wgrad="images", dtype=torch.float32),
    Way("wgrad, TF32: runs of images, images innermost", wgrad="images last", dtype=torch.float32),
)


def found(way: Way) -> dict[str, Any]:
    """The properties of a way's compiled loop."""
    triton.runtime.driver.set_active(Driver("sm_90"))
    try:
        binary = way.compiled()
    except Exception as error:  # a compiler may raise anything
        return {"way": way.name, "fault": " ".join(str(error).split())[:200] or type(error).__name__}
    code = read_cubin(binary.asm["cubin"], binary.asm["ptx"])
    loop = read_loops(binary.asm["ttgir"])[-1]
    names = ("ttg.local_load", "ttg.local_alloc", "ttg.local_store", "ttg.convert_layout")
    return {
        "way": way.name,
        "fault": None,
        "products": loop.operations["ttng.warp_group_dot"] + loop.operations["tt.dot"],
        "in registers": loop.in_registers,
        "copies": loop.operations["ttng.async_tma_copy_global_to_local"],
        "ahead": loop.ahead,
        "pending": loop.pending,
        "if": loop.operations["scf.if"] > 0,
        "besides": {name: loop.operations[name] for name in names if loop.operations[name]},
        "registers": code.registers,
        "spilled": code.spilled,
        "shared": binary.metadata.shared,
        "code": [instruction[1:] for instruction in read_sass(binary.asm["cubin"])],
    }


def found_in_a_process(way: Way) -> dict[str, Any]:
    """Like `found`, in another process, because the compiler may abort."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(found, way).result()
        except BrokenProcessPool:
            return {"way": way.name, "fault": "aborts the process"}


def main() -> None:
    rows = [found_in_a_process(way) for way in WAYS]
    plain = rows[0]["code"]
    for row in rows:
        row["as the first"] = row.pop("code", None) == plain and row is not rows[0]
        print({name: value for name, value in row.items() if value})
    STORED.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    STORED.write_text(f'{{\n "triton": "{triton.__version__}",\n "rows": [\n{lines}\n ]\n}}\n')
    print(f"wrote {STORED}")


if __name__ == "__main__":
    main()
