"""Choice of the tile for each shape.

The choice depends only on the shape, the dtype and the GPU, never on a timing at run time. So the order of every sum, and every
bit of a gradient, is the same in each run. `python -m bench.tune` measures tiles on a GPU and writes the fastest to the folder
tiles/, which ships with the code. Without such a record, rules choose the *default tile*.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from .hardware import architecture_of, gpu_name
from .interpreter import INTERPRETED
from .settings import settings

TILES = Path(__file__).with_name("tiles")

_LARGEST_TENSOR = 2**19  # elements of an interpreted tile; Triton allows twice as many


class GemmTile(NamedTuple):
    """Tile of a matrix product (m, k) @ (k, n): the block of the result per program, and the block of k per iteration."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class ElementTile(NamedTuple):
    """Tile of an elementwise kernel: `rows` runs of `lanes` contiguous elements."""

    rows: int
    lanes: int


class Gemm(NamedTuple):
    """A matrix product (m, k) @ (k, n) that needs a tile, and its kernel."""

    kernel: str  # "linear", "conv2d" (fprop and dgrad) or "wgrad"; through TMA "tma conv2d" or "tma wgrad"
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str
    scattered: bool = False  # adjacent elements of the product are not adjacent in memory, or offsets are int64

    @property
    def key(self) -> str:
        """Products with the same key share a measured tile: sizes, rounded up to powers of two, and all other properties."""
        sizes = (str(triton.next_power_of_2(size)) for size in (self.m, self.n, self.k))
        scattered = ["scattered"] if self.scattered else []
        return " ".join([self.kernel, str(self.dtype).removeprefix("torch."), self.precision, *scattered, *sizes])


def gemm_tile(product: Gemm, device: torch.device) -> GemmTile:
    """Tile of a product: the fastest one measured on this GPU if there is a record, else the default tile."""
    if settings.tile_of is not None:
        return settings.tile_of(product, architecture_of(device))
    return measured_tiles(gpu_name(device)).get(product.key) or default_tile(product, architecture_of(device))


@functools.cache
def measured_tiles(name: str) -> dict[str, GemmTile]:
    """Tiles by Gemm.key, from `python -m bench.tune` on a GPU of this name with this version of Triton."""
    path = TILES / f"{name.lower().replace(' ', '_')}.json"
    if not name or not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {like: GemmTile(*tile) for like, tile in found["tiles"].items()} if found["triton"] == triton.__version__ else {}


def default_tile(product: Gemm, architecture: str) -> GemmTile:
    """The tile chosen by rules.

    fprop and dgrad do not split k, so they get smaller tiles if large ones would not fill the GPU. A `scattered` product gets
    smaller tiles, because a thread needs registers for the address of each element.
    """
    kernel, m, n, k, dtype, _, scattered = product
    if kernel.startswith("tma "):
        return _default_tma_tile(product, architecture)
    if architecture == "interpreter":
        return _interpreted_tile(m, n, k)
    most_m, most_n, most_k = {2: (128, 128, 64), 4: (64, 128, 32), 8: (64, 32, 16)}[dtype.itemsize]
    if scattered:
        most_n, most_k = min(most_n, 64), max(most_k // 2, 16)
    block_m, block_n, block_k = _clamp(m, 16, most_m), _clamp(n, 16, most_n), _clamp(k, 16, most_k)
    splits_k = kernel != "conv2d"
    while not splits_k and block_m > 32 and triton.cdiv(m, block_m) * triton.cdiv(n, block_n) < settings.wanted_programs // 2:
        block_m //= 2
    # Elements in registers: the accumulator, and both operands during their loads.
    registers = (block_m * block_n + (block_m + block_n) * block_k) * (2 if scattered else 1)
    return GemmTile(
        block_m,
        block_n,
        block_k,
        warps=8 if registers >= 12288 else 4,
        stages=2 if architecture.startswith("gfx") or dtype == torch.float64 else 3,
    )


def _default_tma_tile(product: Gemm, architecture: str) -> GemmTile:
    """The default tile for wgmma, which computes 64 rows per four warps: the fastest tile according to a model.

    In the model the multiprocessors compute the tiles in waves. A wave takes the time of its products or of its copies from L2
    to shared memory, the longer one, at rates measured on an H200. Two programs with small tiles share a multiprocessor, so one
    loads while the other stores; if the sum is short, only small tiles are candidates.

    wgrad needs no model, because its split sum always fills the GPU. Its n is taps times channels, so block_n need not be a
    power of two: tma_wgrad.py divides it into taps and channels.
    """
    kernel, m, n, k, dtype, precision, _ = product
    if architecture == "interpreter":
        return GemmTile(_clamp(m, 16, 64), _clamp(n, 16, 64), 16, warps=1, stages=1)
    in_terms = precision == "bf16x6"  # three bf16 terms per float32, with two accumulators
    itemsize = 2 if in_terms else dtype.itemsize
    block_k = 128 // itemsize  # rows of 128 bytes
    room = 128 * 128 if in_terms else 128 * 256  # accumulators of eight warps
    short = k <= 8 * block_k
    if kernel == "tma wgrad":
        block_m = _clamp(m, 64, 128)
        # A single block may exceed the room by a quarter: then a thread has 160 accumulators.
        block_n = n if n * block_m <= (1.0 if in_terms else 1.25) * room else room // block_m
    else:
        tiles = [(rows, columns) for columns in (64, 128, 256) for rows in (64, 128) if rows * columns <= room]
        tiles = [tile for tile in tiles if tile[1] <= (128 if short else 256)]
        block_m, block_n = min(tiles, key=lambda tile: (_wave_time(m, n, tile, itemsize), -math.prod(tile)))
    stage = (block_m + block_n) * block_k * itemsize
    # Eight warps if four would have at least 128 accumulators per thread or, with bf16 terms, more than 64.
    warps = 8 if block_m * block_n > (128 * 64 if in_terms else 128 * 128 - 1) else 4
    half = 110 << 10  # half of a multiprocessor's shared memory
    shared = half if block_m * block_n <= 128 * 128 and 3 * stage <= half else 2 * half
    return GemmTile(block_m, block_n, block_k, warps, stages=max(2, min(3 if short else 4, shared // stage)))


def _wave_time(m: int, n: int, tile: tuple[int, int], itemsize: int) -> float:
    """Time of all waves of (m, k) @ (k, n) on 132 multiprocessors, in nanoseconds per unit of k.

    Rates of one multiprocessor of an H200, per nanosecond: 6,000 FLOPs with 16-bit operands, 3,000 with 32-bit ones, and 66
    bytes from L2 (bench/results/nvidia-h200/20261129T2206/rates.json).
    """
    rows, columns = tile
    products, copies = 2 * rows * columns / 6e3 * itemsize / 2, (rows + columns) * itemsize / 66
    return triton.cdiv(triton.cdiv(m, rows) * triton.cdiv(n, columns), 132) * max(products, copies)


def count_splits(tiles: int, depth: int, block: int) -> int:
    """Number of splits of a reduction over `depth` elements: enough to fill the GPU with programs of `tiles` output tiles.

    Each split has at least four iterations over `block` elements.
    """
    return max(1, min(triton.cdiv(settings.wanted_programs, tiles), depth // (4 * block)))


def elementwise_block(elements: int) -> int:
    """Elements per program of an elementwise kernel."""
    return _clamp(elements, 16, min(16 * settings.interpreted_block, 2**16) if INTERPRETED else 1024)


def _interpreted_tile(m: int, n: int, k: int) -> GemmTile:
    block_n = _clamp(n, 16, min(settings.interpreted_block, 512))
    # The addresses of the (m, k) block take most of the time: a small block_k wastes the least when k is rounded up to it.
    block_k = _clamp(k, 16, settings.interpreted_block if m <= block_n else min(settings.interpreted_block, 32))
    block_m = _clamp(m, 16, min(settings.interpreted_block, _LARGEST_TENSOR // max(block_n, block_k)))
    block_k = min(block_k, _LARGEST_TENSOR // block_n)
    return GemmTile(block_m, block_n, block_k, warps=1, stages=1)


def _clamp(size: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(size)))
