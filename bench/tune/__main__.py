"""Check the tiles of matrix products on this GPU and find the fastest: `python -m bench.tune`, at most 16 minutes.

    python -m bench.tune                    the products of all cases of the benchmark
    python -m bench.tune conv               only the cases with a matching name or operator

The candidates of a product are its default tile, chosen by the rules of kernels/runtime/tuning.py, and the tiles most similar
to it. All cores compile candidates ahead of time. One process checks each (check.py), then times it on the product. A wrong,
crashing or hanging tile is rejected, and a new process continues with the next one. The fastest tiles are written to
kernels/runtime/tiles/, where tuning.py reads them. A product keeps its default tile unless a right candidate is clearly faster.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from bench.time import runs
from bench.tune import tiles
from bench.tune.tiles import Found, GemmTile, Item, Place, kind, of_item
from bench.workers import MANY, worked_off

CANDIDATES = 24  # per product
PATIENCE = 60.0  # seconds per candidate, including the start of its process
ARITHMETICS = ("bf16", "tf32", "fp32", "fp16")  # most important first


def settled(
    items: Iterable[Item], command: Sequence[str], until: float, known: Callable[[Item], str | None] = lambda item: None
) -> Iterator[tuple[Item, Any]]:
    """Compile and run items. Yield (item, microseconds or fault).

    Processes of `command --compile-only` compile the items, while a process of `command` runs the compiled ones. An item that
    does not compile, or has a `known` fault, does not run.
    """
    rejected: list[tuple[Item, str]] = []

    def compiled() -> Iterator[Item]:
        for item, fault, why in worked_off(items, [*command, "--compile-only"], lambda _: PATIENCE, until, MANY):
            if fault := why or fault or known(item):
                rejected.append((item, fault))
            else:
                yield item

    for item, found, why in worked_off(compiled(), command, lambda _: PATIENCE, until):
        yield item, why or found
        while rejected:
            yield rejected.pop()
    yield from rejected


def run(args: argparse.Namespace, command: Sequence[str], gpu: str, architecture: str) -> int:
    """Check, time and record. Return 0 if all candidates have a result and no default tile is wrong."""
    until = time.monotonic() + 60 * args.minutes
    wanted = tiles.products(args.names, args.arithmetics, architecture)
    chosen = {place: tiles.candidates(product, architecture)[:CANDIDATES] for place, product in wanted.items()}
    items = [[*place, list(tile)] for place, several in chosen.items() for tile in several]
    left = len(items)
    print(f"{len(wanted)} products, {left} candidates", flush=True)
    found: dict[Place, Found] = {place: {} for place in wanted}
    faults: dict[tuple[str, GemmTile], str] = {}  # of tiles that are wrong or end a process, for all products of a kind

    def kind_and_tile(item: Item) -> tuple[str, GemmTile]:
        place, tile = of_item(item)
        return kind(wanted[place]), tile

    try:
        for item, result in settled(items, command, until, lambda item: faults.get(kind_and_tile(item))):
            place, tile = of_item(item)
            found[place][tile] = result
            left -= 1
            if str(result).startswith(("WRONG", "crashed", "took more")):
                faults[kind_and_tile(item)] = result
            if isinstance(result, str) or left % 100 == 0:
                print(f"{left:6} left ", *item, result, flush=True)
    finally:
        tiles.record(gpu, {wanted[p].key: tiles.winner(found[p], chosen[p][0]) for p in wanted if tiles.right(found[p])})
    bad = sum([report(product.key, chosen[place][0], found[place]) for place, product in wanted.items()])
    print(f"{left} candidates left, {bad} default tiles rejected")
    return 1 if left or bad else 0


def report(key: str, default: GemmTile, found: Found) -> bool:
    """Print the best tile of a product. Return whether the default tile is rejected."""
    times = tiles.right(found)
    if times:
        best = next(iter(times))
        print(f"{key:48} default {times.get(default, math.nan):9.1f} us   best {times[best]:9.1f} us  {named(best)}")
    rejected = default in found and default not in times
    if rejected:
        print(f"{key:48} THE DEFAULT TILE IS REJECTED: {named(default)}: {found[default]}")
    return rejected


def named(tile: GemmTile) -> str:
    return f"{tile.m}x{tile.n}x{tile.k} w{tile.warps} s{tile.stages}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions for names and operators; default: all")
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS, metavar="NAME",
                        help=f"{', '.join(ARITHMETICS)}; default: all")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=16, help="time limit; default: %(default)s")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No GPU found.", file=sys.stderr)
        return 1
    gpu, architecture = (runs.environment()[name] for name in ("gpu", "architecture"))
    return run(args, [sys.executable, "-m", "bench.tune.check", architecture], gpu, architecture)


if __name__ == "__main__":
    sys.exit(main())
