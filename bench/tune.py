"""Finds the fastest tile of each kind of matrix product that networks compute on this GPU: `python -m bench.tune`.

The products are those of bench/shapes.py. Candidates lie around the tile that the rules of tuning.py guess, and are compiled
side by side, ahead of time. Then a process of its own runs those of one product one after another. It may crash: the candidate
it was at is struck off, and a new process goes on behind it. A candidate must compute what the guess computes. The winners go
to kernels/tiles/, from where tuning.py takes them; a product that no candidate computes clearly faster keeps its guess.

`--compile-only` needs no GPU: it compiles the candidates for an H100 or H200 and says which of them cannot be.
"""

import os
import sys

if "--compile-only" in sys.argv or "--compile" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench import shapes
from bench.machine_code import SHARED_MEMORY, Driver
from bench.timing import Machine, interleaved
from bench.workers import say, worked_off
from trinn import kernels
from trinn.kernels import launch, tuning
from trinn.kernels.tuning import Product, Tile

CLEARLY = 0.97  # of the guess's time
PATIENCE = 120  # seconds for a candidate
CLOSE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 2e-3}  # of the norm of the result; TF32 included


class Case(NamedTuple):
    """A shape of bench/shapes.py."""

    name: str
    arithmetic: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.arithmetic}{', channels_last' if self.channels_last else ''}"


class Call(NamedTuple):
    """A launcher with its arguments, which computes one product."""

    product: Product
    run: functools.partial[Any]


class Recorder:
    """The launchers of trinn.kernels; each call is noted, with the products that it computes."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        launcher = getattr(kernels, name)

        def call(*args: Any) -> Any:
            products: list[Product] = []
            guessed = tuning.guessed_tile

            def noted(product: Product, architecture: str) -> Tile:
                products.append(product)
                return guessed(product, architecture)

            with patched(tuning, guessed_tile=noted):
                result = launcher(*args)
            self.calls += [Call(product, functools.partial(launcher, *args)) for product in products]
            return result

        return call


def calls_of(case: Case, device: str) -> list[Call]:
    """The calls of a case that compute products, with random tensors on that device."""
    dtype, precision = shapes.ARITHMETIC[case.arithmetic]
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        tensor = torch.randn(shape, device=device).to(dtype)
        return tensor.to(memory_format=torch.channels_last) if case.channels_last and len(shape) == 4 else tensor

    recorder = Recorder()
    with patched(shapes, kernels=recorder), patched(tuning, measured_tiles=lambda name: {}):
        (shapes.EVERYWHERE | shapes.USUALLY)[case.name](new)
    return recorder.calls


@contextlib.contextmanager
def patched(module: Any, **names: Any) -> Iterator[None]:
    """Within, these names of a module mean something else."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


def products(pattern: str) -> dict[str, tuple[Case, int, Product]]:
    """One of each kind of product: the case, and the number of the call that computes it."""
    found: dict[str, tuple[Case, int, Product]] = {}
    for case in map(Case._make, itertools.product(sorted(shapes.HELD), ("bf16", "fp16", "tf32", "fp32"), (True, False))):
        if re.search(pattern, str(case)):
            with launch.observed(lambda *_: None, "sm_90"):
                for number, call in enumerate(calls_of(case, "meta")):
                    found.setdefault(call.product.like, (case, number, call.product))
    return found


def candidates(product: Product, most: int) -> list[Tile]:
    """The guess, and the tiles next to it that a GPU has room for."""
    guess = tuning.guessed_tile(product, "sm_90")
    sizes = (16, 32, 64, 128, 256)
    tiles = (Tile(*t) for t in itertools.product(sizes, sizes, sizes[:4], (4, 8), (2, 3, 4, 5)))
    fitting = [tile for tile in tiles if tile != guess and _fits(tile, product)]
    return [guess, *sorted(fitting, key=lambda tile: _steps(tile, guess))[: most - 1]]


def _fits(tile: Tile, product: Product) -> bool:
    shared = tile.stages * tile.k * (tile.m + tile.n) * product.dtype.itemsize
    accumulators = tile.m * tile.n // (32 * tile.warps)
    sizes = zip((tile.m, tile.n, tile.k), (product.m, product.n, product.k), strict=True)
    return (
        shared <= SHARED_MEMORY["sm_90"] and 2 <= accumulators <= 128
        and all(block <= max(16, triton.next_power_of_2(size)) for block, size in sizes)
    )  # fmt: skip


def _steps(tile: Tile, guess: Tile) -> float:
    """How far two tiles are apart, in doublings; a stage is as far as half of one."""
    blocks = sum(abs(math.log2(a / b)) for a, b in zip(tile[:4], guess[:4], strict=True))
    return blocks + abs(tile.stages - guess.stages) / 2


def compiled(work: tuple[Case, int, Tile]) -> str | None:
    """Compile a candidate into Triton's cache; what is wrong with it, if something is."""
    case, number, tile = work
    triton.runtime.driver.set_active(Driver("sm_90"))
    faults: list[str] = []

    def compile_it(kernel: Any, args: Any, constants: Any) -> None:
        try:
            kernel.warmup(*args, grid=(1,), **constants)
        except Exception as error:  # whatever a compiler may raise
            faults.append(str(error).splitlines()[-1])

    with launch.observed(lambda *_: None, "sm_90"):
        call = calls_of(case, "meta")[number]
    with patched(tuning, only_tile=tile), launch.observed(compile_it, "sm_90"):
        call.run()
    return "; ".join(faults) or None


def measure(case: Case, number: int, tiles: list[Tile]) -> None:
    """Say, for one tile after the other, its time in microseconds, or that it is wrong: what a process of its own does."""
    machine, call = Machine.gpu(), calls_of(case, "cuda")[number]
    sets = machine.sets(sum(arg.nbytes for arg in call.run.args if isinstance(arg, Tensor)))
    calls = [call, *(calls_of(case, "cuda")[number] for _ in range(sets - 1))]
    expected = _outputs(call)
    for tile in tiles:
        say(at=tile)
        with patched(tuning, only_tile=tile):
            got = _outputs(call)
            wrong = any(not (g - e).norm() <= CLOSE[call.product.dtype] * e.norm() for g, e in zip(got, expected, strict=True))
            time_us = None if wrong else 1e6 * interleaved({tile: [c.run for c in calls]}, machine.clock)[tile].median
        say(of=tile, result=time_us)


def _outputs(call: Call) -> list[Tensor]:
    result = call.run()
    return [t.float() for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]


def measured(case: Case, number: int, tiles: list[Tile], command: list[str]) -> Iterator[tuple[Tile, float | None]]:
    """(tile, microseconds) by processes that may crash; None for a tile that crashes, hangs or computes something else."""
    command = [*command, json.dumps([case, number])]
    for tile, time_us, _ in worked_off(list(map(list, tiles)), command, lambda _: PATIENCE):
        yield Tile(*tile), time_us


def record(name: str, found: dict[str, Tile]) -> None:
    """Keep the winners, next to those of products that were not measured this time."""
    path = tuning.TILES / f"{name.lower().replace(' ', '_')}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    tiles = (known["tiles"] if known.get("triton") == triton.__version__ else {}) | found
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(like)}: {json.dumps(tile)}" for like, tile in sorted(tiles.items()))
    path.write_text(f'{{\n "gpu": "{name}",\n "triton": "{triton.__version__}",\n "tiles": {{\n{lines}\n }}\n}}\n')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", metavar="REGEX", help="of these alone")
    parser.add_argument("--candidates", type=int, default=24, metavar="N", help="for each product")
    parser.add_argument("--minutes", type=float, default=8, help="then stop, and keep what was found")
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        (case, number), tiles = map(json.loads, args.measure)
        measure(Case(*case), number, [Tile(*tile) for tile in tiles])
        return 0
    if not args.compile_only and not torch.cuda.is_available():
        print("There is no GPU here to measure on; --compile-only needs none.")
        return 1

    start = time.monotonic()
    wanted = products(args.cases)
    tiles_of = {like: candidates(product, args.candidates) for like, (*_, product) in wanted.items()}
    work = [(case, number, tile) for like, (case, number, _) in wanted.items() for tile in tiles_of[like]]
    print(f"{len(wanted)} kinds of products, {len(work)} candidates", flush=True)
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        faults = dict(zip(work, pool.imap(compiled, work, chunksize=4), strict=True))
    print(f"compiled in {time.monotonic() - start:.0f} s; {sum(map(bool, faults.values()))} cannot be", flush=True)
    if args.compile_only:
        for (case, number, tile), fault in faults.items():
            if fault:
                print(f"{case}, product {number}: {tile}: {fault}")
        return 0

    found: dict[str, Tile] = {}
    for like, (case, number, _) in wanted.items():
        if time.monotonic() - start > 60 * args.minutes:
            print("Time is up.")
            break
        tiles = [tile for tile in tiles_of[like] if not faults[case, number, tile]]
        times = dict(measured(case, number, tiles, [sys.executable, "-m", "bench.tune", "--measure"]))
        guess = times.get(tiles_of[like][0])
        best, least = min(((tile, us) for tile, us in times.items() if us is not None), key=lambda pair: pair[1])
        if guess is None or least < CLEARLY * guess:
            found[like] = best
            record(torch.cuda.get_device_name(), found)
        print(f"{like:48} guess {guess or math.nan:9.1f} us   best {least:9.1f} us  {tuple(best)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
