"""Check the tiles of matrix products on this GPU and find the fastest: `python -m bench.tune`, at most 16 minutes.

    python -m bench.tune                    the products of all cases of the benchmark
    python -m bench.tune conv               only the cases with a matching name or operator
    python -m bench.tune --compile-only     compile the candidates for an H100 or H200, without a GPU

The candidates of a product are its default tile, chosen by the rules of kernels/runtime/tuning.py, and the tiles most similar
to it. All cores compile candidates ahead of time. One process compares each with float64 on small cases (check.py), then times
it on the product. A wrong, crashing or hanging tile is rejected, and a new process continues with the next one. At the real
size, all candidates of a product must compute the same result. The fastest tiles are written to kernels/runtime/tiles/, where
tuning.py reads them. A product keeps its default tile unless a right candidate is clearly faster.

Times and faults are stored in bench/results/<gpu>/tiles.json. After a time limit the next run continues there, if the kernels
have not changed.
"""

import sys

if "--compile-only" in sys.argv:
    from bench.compile import without_gpu  # noqa: F401  # before triton

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from bench import registry
from bench.time import runs
from bench.time.protocol import Machine, interleaved, using
from bench.tune import tiles
from bench.tune.check import Judge, results_of
from bench.tune.tiles import Call, GemmTile, Place, Times, call_of, calls_of, compiling, kind, named, tiles_by
from bench.workers import MANY, do_in_turn, do_side_by_side, worked_off
from trinn.kernels.runtime import tuning

ROUNDS = 9  # samples per candidate
CANDIDATES = 24  # per product
PATIENCE = 60.0  # seconds per candidate, including the start of its process
# Tolerance of a result at the real size, relative to its norm. float32 may use TF32.
CLOSE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 2e-3}
ARITHMETICS = ("bf16", "tf32", "fp32", "fp16")  # most important first

Item = list[Any]  # a Place and a tile, as JSON: the input of a worker process


def of_item(item: Item) -> tuple[Place, GemmTile]:
    *place, tile = item
    return Place(*place), GemmTile(*tile)


def compiled(item: Item, architecture: str) -> str | None:
    """Compile a candidate, for its product and for the small cases. Return its faults, or None."""
    place, tile = of_item(item)
    call = call_of(place, architecture)
    with using(place.arithmetic), compiling(architecture) as faults, tiles_by(lambda *_: tile) as requested:
        call.run()
    if requested[-1].key != call.product.key:
        return "the launcher selects another kernel for this tile"
    return "; ".join(faults) or _compiled_small(place.arithmetic, kind(call.product), tile, architecture)


@functools.cache
def _compiled_small(arithmetic: str, wanted: str, tile: GemmTile, architecture: str) -> str | None:
    with compiling(architecture) as faults:
        for _ in results_of(arithmetic, wanted, tile, "meta", architecture):
            pass
    return "; ".join(faults) or None


class Timer:
    """Check and time candidates, in microseconds. Calls and expected result are kept between candidates of one product."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture, self.judge = machine, architecture, Judge(machine, architecture)
        self.place: Place | None = None

    def __call__(self, item: Item) -> float | str:
        place, tile = of_item(item)
        if fault := self.judge(place.arithmetic, kind(call_of(place, self.architecture).product), tile):
            return fault
        if place != self.place:
            self.place, self.calls = None, self._calls(place)
        with using(place.arithmetic), tiles_by(lambda *_: tile):
            got = _outputs(self.calls[0])
            if self.place is None:  # the first candidate: the default tile, unless it was rejected
                self.place, self.expected = place, got
            close = CLOSE[self.calls[0].product.dtype]
            if any(not (g - e).norm() <= close * e.norm() for g, e in zip(got, self.expected, strict=True)):
                return "result differs from the first candidate's"
            timed = interleaved({tile: [call.run for call in self.calls]}, self.machine.clock, rounds=ROUNDS)
        return 1e6 * timed[tile].median

    def _calls(self, place: Place) -> list[Call]:
        """Return the call with several sets of tensors, to rotate."""

        def call(seed: int) -> Call:
            case, device = registry.CASES[place.name], self.machine.device
            return calls_of(case, place.arithmetic, place.layout, device, self.architecture, seed)[place.number]

        first = call(0)
        sets = self.machine.sets(sum(arg.nbytes for arg in first.run.args if isinstance(arg, Tensor)))
        return [first, *map(call, range(1, sets))]


def _outputs(call: Call) -> list[Tensor]:
    result = call.run()
    return [t.float() for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]


def settled(
    items: Iterable[Item], command: Sequence[str], until: float, known: Callable[[Item], str | None] = lambda item: None
) -> Iterator[tuple[Item, Any]]:
    """Compile and run items. Yield (item, result).

    Processes of `command --compile-only` compile the items, while a process of `command` runs the compiled ones. The result of
    an item that fails to compile, crashes or hangs is the error message. An item with a `known` fault does not run.
    """
    rejected: list[tuple[Item, str]] = []

    def compilable() -> Iterator[Item]:
        for item, fault in compilations(items, command, until):
            if fault := fault or known(item):
                rejected.append((item, fault))
            else:
                yield item

    for item, found, why in worked_off(compilable(), command, lambda _: PATIENCE, until):
        yield item, why or found
        while rejected:
            yield rejected.pop()
    yield from rejected


def compilations(items: Iterable[Item], command: Sequence[str], until: float = math.inf) -> Iterator[tuple[Item, str | None]]:
    """Compile items in worker processes. Yield (item, fault or None)."""
    for item, fault, why in worked_off(items, [*command, "--compile-only"], lambda _: PATIENCE, until, MANY):
        yield item, why or fault


def sources() -> str:
    """Return a hash of the kernels and the versions of Triton and torch."""
    texts = [file.read_bytes() for file in sorted(Path(tuning.__file__).parents[1].rglob("*.py"))]
    return hashlib.sha256(b"".join([*texts, triton.__version__.encode(), torch.__version__.encode()])).hexdigest()[:12]


def run(args: argparse.Namespace, command: Sequence[str], environment: dict[str, Any]) -> int:
    """Check, time and record. Return 0 if all candidates have a result and no default tile is wrong."""
    until, (gpu, architecture) = time.monotonic() + 60 * args.minutes, (environment[key] for key in ("gpu", "architecture"))
    wanted = tiles.products(args.names, args.arithmetics, architecture)
    path = runs.folder_of(environment, args.out) / "tiles.json"
    known = json.loads(path.read_text()) if path.exists() and not args.compile_only else {}
    times: Times = known["times"] if known.get("sources") == sources() else {}
    items = [
        [*place, list(tile)] for place, product in wanted.items()
        for tile in tiles.candidates(product, args.candidates, architecture) if named(tile) not in times.get(product.key, {})
    ]  # fmt: skip
    print(f"{len(wanted)} products, {len(items)} candidates without a time", flush=True)
    if args.compile_only:
        faults = [(item, fault) for item, fault in compilations(items, command) if fault]
        print(*(f"{' '.join(map(str, item))}: {fault}" for item, fault in faults), sep="\n")
        print(f"{len(items)} candidates compiled, {len(faults)} failed")
        return 0

    def known_fault(item: Item) -> str | None:
        """Return why this tile is wrong or ends a process, if another product of the kind has shown it."""
        place, tile = of_item(item)
        found = (str(of.get(named(tile))) for key, of in times.items() if key.rsplit(" ", 3)[0] == kind(wanted[place]))
        return next((fault for fault in found if fault.startswith(("WRONG", "crashed", "took more"))), None)

    left = len(items)
    try:
        for item, found in settled(items, command, until, known_fault):
            place, tile = of_item(item)
            times.setdefault(wanted[place].key, {})[named(tile)] = found
            left -= 1
            if isinstance(found, str) or left % 100 == 0:
                print(f"{left:6} left ", *item, found, flush=True)
                runs.written({"environment": environment, "sources": sources(), "times": times}, path)
    finally:
        runs.written({"environment": environment, "sources": sources(), "times": times}, path)
        tiles.record(gpu, tiles.winners(wanted.values(), times, architecture))
    bad = 0
    for product in wanted.values():
        of, default = tiles.measured(product, times), tuning.default_tile(product, architecture)
        if of:
            best = next(iter(of))
            print(f"{product.key:48} default {of.get(default, math.nan):9.1f} us   best {of[best]:9.1f} us  {named(best)}")
        if isinstance(fault := times.get(product.key, {}).get(named(default)), str):
            print(f"{product.key:48} THE DEFAULT TILE IS REJECTED: {named(default)}: {fault}")
            bad += 1
    print(f"{left} candidates left, {bad} default tiles rejected")
    return 1 if left or bad else 0


def work(args: argparse.Namespace, machine: Callable[[], Machine] = Machine.gpu) -> None:
    """Process the items of the input, in a worker process."""
    if args.compile_only:
        do_side_by_side(functools.partial(compiled, architecture=args.architecture))
    else:
        timer = Timer(machine(), args.architecture)
        do_in_turn(timer, timer.machine.wait)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions for names and operators; default: all")
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS, metavar="NAME",
                        help=f"{', '.join(ARITHMETICS)}; default: all")  # fmt: skip
    parser.add_argument("--candidates", type=int, default=CANDIDATES, metavar="N", help="per product; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=16, help="time limit; default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for results; default: bench/results")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; time nothing")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only: the target; default: %(default)s")
    parser.add_argument("--items", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.items:
        work(args)
        return 0
    if args.compile_only:
        environment = {"gpu": "", "architecture": args.architecture}
    elif torch.cuda.is_available():
        environment = runs.environment()
    else:
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "bench.tune", "--items", "--architecture", environment["architecture"]]
    return run(args, command, environment)


if __name__ == "__main__":
    sys.exit(main())
