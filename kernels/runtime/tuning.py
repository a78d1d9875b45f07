"""Which tile for which shape.

The choice depends on the shape, the dtype and the GPU alone, never on a timing: the order of every sum, and so every bit of a
gradient, is the same from run to run. What was measured on a GPU is in tiles/, shipped with the code.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from .hardware import architecture, gpu_name
from .interpreter import INTERPRETED
from .settings import settings

TILES = Path(__file__).with_name("tiles")

_LARGEST_TENSOR = 2**19  # elements, for an interpreted tile; Triton allows twice that


class GemmTile(NamedTuple):
    """The part of a matrix product (m, k) @ (k, n) that one program computes, a block of k at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class ElementTile(NamedTuple):
    """What one program fills of an image: `lanes` side by side in memory, at `rows` places."""

    rows: int
    lanes: int


class Gemm(NamedTuple):
    """(m, k) @ (k, n), for which a tile is chosen, and the kernel that computes it."""

    kernel: str  # "linear", "conv2d" for its fprop and dgrad, or "wgrad"; of conv2d_tma.py "tma conv2d" and "tma wgrad"
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str
    scattered: bool = False  # neighbours in the product are not neighbours in memory, or offsets are int64

    @property
    def key(self) -> str:
        """What products have in common that share a tile: sizes to a power of two, and all else."""
        sizes = (str(triton.next_power_of_2(size)) for size in (self.m, self.n, self.k))
        scattered = ["scattered"] if self.scattered else []
        return " ".join([self.kernel, str(self.dtype).removeprefix("torch."), self.precision, *scattered, *sizes])


def gemm_tile(product: Gemm, device: torch.device) -> GemmTile:
    """The tile for a product: the one that was the fastest on this GPU where that is on record, else a good guess."""
    if settings.tile_of is not None:
        return settings.tile_of(product, architecture(device))
    return measured_tiles(gpu_name(device)).get(product.key) or guessed_tile(product, architecture(device))


@functools.cache
def measured_tiles(name: str) -> dict[str, GemmTile]:
    """By Product.key, the tiles that `python -m bench.tune` found on a GPU of that name with this Triton."""
    path = TILES / f"{name.lower().replace(' ', '_')}.json"
    if not name or not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {like: GemmTile(*tile) for like, tile in found["tiles"].items()} if found["triton"] == triton.__version__ else {}


def guessed_tile(product: Gemm, architecture: str) -> GemmTile:
    """The tile by rules alone.

    Smaller where a launcher cannot cut k to fill the GPU, and for a `scattered` product: there a thread holds an address for
    each of its elements.
    """
    kernel, m, n, k, dtype, _, scattered = product
    if kernel.startswith("tma "):
        return _guessed_tma_tile(product, architecture)
    if architecture == "interpreter":
        return _interpreted_tile(m, n, k)
    most_m, most_n, most_k = {2: (128, 128, 64), 4: (64, 128, 32), 8: (64, 32, 16)}[dtype.itemsize]
    if scattered:
        most_n, most_k = min(most_n, 64), max(most_k // 2, 16)
    block_m, block_n, block_k = _clamp(m, 16, most_m), _clamp(n, 16, most_n), _clamp(k, 16, most_k)
    whole = kernel == "conv2d"  # k is not cut
    while whole and block_m > 32 and triton.cdiv(m, block_m) * triton.cdiv(n, block_n) < settings.wanted_programs // 2:
        block_m //= 2
    # What a program has in registers: the accumulator, and both operands on their way in.
    held = (block_m * block_n + (block_m + block_n) * block_k) * (2 if scattered else 1)
    return GemmTile(
        block_m,
        block_n,
        block_k,
        warps=8 if held >= 12288 else 4,
        stages=2 if architecture.startswith("gfx") or dtype == torch.float64 else 3,
    )


def _guessed_tma_tile(product: Gemm, architecture: str) -> GemmTile:
    """For wgmma, which has 64 rows for each four warps: the tile that a model says is the fastest.

    A multiprocessor takes turns at its tiles, and each turn as long as its products or the copies from L2 to shared memory do,
    by rates that are assumed of an H200. Two small programs share a multiprocessor, so that one loads while the other stores,
    and where the sum is short there are no others. wgrad's columns are taps times channels, and no power of two; its sum is
    cut, so that there are turns enough.
    """
    kernel, m, n, k, dtype, precision, _ = product
    if architecture == "interpreter":
        return GemmTile(_clamp(m, 16, 64), _clamp(n, 16, 64), 16, warps=1, stages=1)
    in_planes = precision == "bf16x6"  # of bfloat16, whose sums are kept twice
    itemsize = 2 if in_planes else dtype.itemsize
    block_k = 128 // itemsize  # lines of 128 bytes
    room = 128 * 128 if in_planes else 128 * 256  # accumulators of eight warps
    short = k <= 8 * block_k
    if kernel == "tma wgrad":
        block_m = _clamp(m, 64, 128)
        block_n = n if n * block_m <= (1.0 if in_planes else 1.25) * room else room // block_m
    else:
        tiles = [(rows, columns) for columns in (64, 128, 256) for rows in (64, 128) if rows * columns <= room]
        tiles = [tile for tile in tiles if tile[1] <= (128 if short else 256)]
        block_m, block_n = min(tiles, key=lambda tile: (_turns(m, n, tile, itemsize), -math.prod(tile)))
    stage = (block_m + block_n) * block_k * itemsize
    warps = 8 if block_m * block_n > (128 * 64 if in_planes else 128 * 128 - 1) else 4
    half = 110 << 10  # of a multiprocessor's shared memory
    shared = half if block_m * block_n <= 128 * 128 and 3 * stage <= half else 2 * half
    return GemmTile(block_m, block_n, block_k, warps, stages=max(2, min(3 if short else 4, shared // stage)))


def _turns(m: int, n: int, tile: tuple[int, int], itemsize: int) -> float:
    """How long 132 multiprocessors take for all tiles of (m, k) @ (k, n), in nanoseconds for one of k."""
    rows, columns = tile
    products, copies = 2 * rows * columns / 6e3 * itemsize / 2, (rows + columns) * itemsize / 50
    return triton.cdiv(triton.cdiv(m, rows) * triton.cdiv(n, columns), 132) * max(products, copies)


def count_splits(tiles: int, depth: int, block: int) -> int:
    """Into how many parts to cut a reduction over `depth` elements so that `tiles` output tiles fill the GPU."""
    return max(1, min(triton.cdiv(settings.wanted_programs, tiles), depth // (4 * block)))


def elementwise_block(elements: int) -> int:
    """How many elements one program of an elementwise kernel takes."""
    return _clamp(elements, 16, min(16 * settings.interpreted_block, 2**16) if INTERPRETED else 1024)


def _interpreted_tile(m: int, n: int, k: int) -> GemmTile:
    block_n = _clamp(n, 16, min(settings.interpreted_block, 512))
    # Most of the time goes into the addresses of the (m, k) block: a short k wastes the fewest on rounding up.
    block_k = _clamp(k, 16, settings.interpreted_block if m <= block_n else min(settings.interpreted_block, 32))
    block_m = _clamp(m, 16, min(settings.interpreted_block, _LARGEST_TENSOR // max(block_n, block_k)))
    block_k = min(block_k, _LARGEST_TENSOR // block_n)
    return GemmTile(block_m, block_n, block_k, warps=1, stages=1)


def _clamp(size: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(size)))
