"""The launches to compile for the rows of bench/shapes.py, each with its tile."""

from bench.compile import without_gpu  # noqa: F401  # before triton  # isort: skip

import itertools
import json
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.compile import tiles
from bench.compile.code import Driver
from bench.shapes import ARITHMETIC, HELD, Passes, Row, rows
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings

Item = TypeVar("Item")
Result = TypeVar("Result")
Observe = Callable[[Any, int, Any, dict[str, Any]], None]  # receives kernel, number of programs, arguments, constants


class Job(NamedTuple):
    """A launch to compile."""

    architecture: str
    case: str  # label, with arithmetic and memory format
    dtype: torch.dtype
    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]  # keyword arguments: tl.constexpr values, num_warps and num_stages
    held: bool = False  # whether it has a recorded row

    @property
    def elements(self) -> float:
        """Elements per thread: of the largest tensor or, in TMA kernels, of the tile."""
        warps = self.constants["num_warps"]
        if not self.uses_tma:
            return max(arg.numel() for arg in self.args if isinstance(arg, Tensor)) / (32 * warps * self.programs)
        blocks = [v for n, v in self.constants.items() if n.startswith("BLOCK") and n != "BLOCK_K"]
        return self.constants.get("TAPS", 1) * math.prod([*blocks, *self.constants.get("BOX", ())]) / (32 * warps)

    @property
    def uses_tma(self) -> bool:
        return uses_tma(self.args)

    @property
    def words(self) -> tuple[str, str, str]:
        """The label of the launch: kernel, case, and blocks, warps and stages."""
        blocks = [value for name, value in self.constants.items() if name.startswith("BLOCK")]
        blocks += [size for size in self.constants.get("TILE", ()) if type(size) is int]
        warps, stages = self.constants["num_warps"], self.constants["num_stages"]
        box = f" box {'x'.join(map(str, self.constants['BOX']))}" if "BOX" in self.constants else ""
        taps = f" taps {self.constants['TAPS']}" if self.uses_tma and "TAPS" in self.constants else ""
        return self.kernel.__name__, self.case, f"{'x'.join(map(str, blocks))} w{warps} s{stages}{box}{taps}"

    def compiled(self) -> Any:
        triton.runtime.driver.set_active(Driver(self.architecture))
        self.kernel.device_caches.clear()
        return self.kernel.warmup(*self.args, grid=(1,), **self.constants)


def jobs_of(architecture: str, pattern: str = "") -> list[Job]:
    """The launches of all rows with a label that matches the pattern, without repeated compilations.

    On sm_90, add convolutions of `tiles.convolutions` that have a TMA trait (see tma_traits) of no earlier row.
    """
    triton.runtime.driver.set_active(Driver(architecture))
    jobs: dict[Any, Job] = {}
    is_hopper, seen = architecture == "sm_90", set[str]()

    def add(row: Row, tile: tuning.GemmTile | None = None, only_new_traits: bool = False) -> None:
        name, arithmetic, channels_last, passes = row
        label = f"{name}, {arithmetic}{', channels_last' if channels_last else ''}"
        if not re.search(pattern, label):
            return
        is_held = is_hopper and arithmetic in ("fp16", "tf32") and name in HELD
        remember = remembering(jobs, architecture, label, ARITHMETIC[arithmetic][0], is_held)

        def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
            traits = {f"{arithmetic} {trait}" for trait in tma_traits(args, constants)}
            if not only_new_traits or traits - seen:
                remember(kernel, programs, args, constants)
            seen.update(traits)

        launched(passes, arithmetic, channels_last, architecture, observe, tile)

    for row in itertools.chain(rows(architecture), tiles.rows()):
        add(row)
    for row, tile in measured_rows() if is_hopper else ():
        add(row, tile)
    for row in tiles.convolutions() if is_hopper else ():
        add(row, only_new_traits=True)
    return list(jobs.values())


def launched(
    passes: Passes, arithmetic: str, channels_last: bool, architecture: str, observe: Observe,
    tile: tuning.GemmTile | None = None,
) -> None:  # fmt: skip
    """Call `observe` with each launch of `passes`, with `tile` or the tiles of tuning.py."""
    dtype, precision = ARITHMETIC[arithmetic]
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision

    def new(*shape: int, dtype: torch.dtype = dtype, channels_last: bool = channels_last) -> Tensor:
        order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)

    with settings.changed(tile_of=tile and (lambda *_: tile)), intercepted(observe, architecture):
        passes(new)


def remembering(jobs: dict[Any, Job], architecture: str, case: str, dtype: torch.dtype, held: bool = False) -> Observe:
    """The callback for `intercepted`: adds a Job for each launch with a new compilation key."""

    def observe(kernel: Any, programs: int, args: Any, constants: dict[str, Any]) -> None:
        def remember(*, key: str, **_: Any) -> bool:
            jobs.setdefault((kernel, key), Job(architecture, case, dtype, kernel, programs, args, constants, held))
            return True  # stops Triton from compiling now

        triton.knobs.runtime.jit_cache_hook = remember
        kernel.device_caches.clear()
        kernel.warmup(*args, grid=(1,), **constants)
        triton.knobs.runtime.jit_cache_hook = None

    return observe


def measured_rows() -> Iterator[tuple[Row, tuning.GemmTile]]:
    """TMA convolutions with the tiles measured on GPUs."""
    arithmetics = {"bfloat16 ieee": "bf16", "float16 ieee": "fp16", "float32 tf32": "tf32", "float32 bf16x6": "fp32"}
    for path in sorted(tuning.TILES.glob("*.json")):
        gpu = json.loads(path.read_text())["gpu"]
        for kind, tile in sorted({(like.rsplit(" ", 3)[0], tile) for like, tile in tuning.measured_tiles(gpu).items()}):
            if kind.startswith("tma "):
                _, kernel, arithmetic = kind.split(" ", 2)
                for name, passes in tiles.of_tma_tile(kernel, tile.m, tile.n).items():
                    yield (f"{gpu}, {name}", arithmetics[arithmetic], True, passes), tile


def uses_tma(args: Sequence[Any]) -> bool:
    """Whether TMA loads the operands of a kernel's products."""
    return any(isinstance(arg, TensorDescriptor) for arg in args)


def tma_traits(args: Sequence[Any], constants: dict[str, Any]) -> list[str]:
    """Labels of the tile and of the operand loads of a TMA convolution, which determine its code. Empty for other kernels."""
    if not uses_tma(args):
        return []
    if "BOX" in constants:
        residual, result, kept, means = args[6:10]
        planar = " planar" if constants["PLANAR"] else ""
        activation = f" {constants['ACTIVATION'].partition(':')[0]}" if constants["ACTIVATION"] else ""
        stored = f"{' channels first' if result.stride(1) != 1 else ''}{' with statistics' if means is not None else ''}"
        stored += f"{' with z' if kept is not None else ''}{' with a residual' if residual is not None else ''}"
        long = " ".join(axis for axis, size in constants["BOX"]._asdict().items() if size > 1)
        name = "dgrad" if constants["ADJOINT"] else "fprop"
        return [tma_tile(constants) + planar + stored, f"{name}{planar}{activation} of {long}, every {constants['SPAN']}"]
    runs = "images innermost" if constants["IMAGES_LAST"] else "images" if constants["ALONG_IMAGES"] else "columns"
    channels = "few" if constants["PITCH"] else "all"
    return [tma_tile(constants), f"wgrad of {constants['BLOCK_K']} {runs}, every {constants['SPAN']}, {channels} channels"]


def tma_tile(constants: dict[str, Any]) -> str:
    """The tile of a TMA convolution, as text: it determines registers and shared memory."""
    m, warps, stages = constants["BLOCK_M"], constants["num_warps"], constants["num_stages"]
    if "BOX" in constants:
        name, sizes = "dgrad" if constants["ADJOINT"] else "fprop", f"{m}x{math.prod(constants['BOX'])}x{constants['BLOCK_K']}"
    else:
        name, sizes = "wgrad", f"{m}x{constants['BLOCK_N']}, {constants['TAPS']} taps,"
    return f"{name} by {sizes} w{warps} s{stages}"


_work: tuple[Callable[[Any], Any], Sequence[Any]]  # forked processes inherit it


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) for each item. Forked processes on all cores compute the results."""
    global _work
    _work = function, items
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        yield from zip(items, pool.imap(_worked, range(len(items)), chunksize=4), strict=True)


def _worked(number: int) -> Any:
    function, items = _work
    return function(items[number])


def line_printer(words: Sequence[Sequence[str]]) -> Callable[[Sequence[str], Sequence[object]], None]:
    """A function that prints a table row: words on the left, padded to the widest of `words`, and numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]

    def print_line(left: Sequence[str], right: Sequence[object]) -> None:
        padded = [word.ljust(width) for word, width in zip(left, widths, strict=True)]
        print("  ".join([*padded, *(f"{number:>9}" for number in right)]), flush=True)

    return print_line
