"""Convolutions on this GPU: every tile checked, the fastest of each product found, and all timed against torch.

    python -m bench conv                      times those of the registry, with the tiles there are
    python -m bench conv --tune               checks and tunes before, all of it in less than 25 minutes
    python -m bench conv --tune --step check  one step alone: check, tune or sweep, in less than 9 minutes
    python -m bench conv --tune --compile-only 'AlexNet conv3'

    check   every tile that tuning may hand out, on small images against float64; what is wrong, crashes or hangs is struck off
    tune    the tiles that are left, on the products of the registry's convolutions; the winners go to kernels/runtime/tiles/
    sweep   the registry's convolutions, as `python -m bench` measures them, and which of its targets are reached

Each step compiles ahead of time, side by side, and goes on where it was when its time was up, as long as the kernels are the
same. What is known is in conv.json in bench/results/, of which `python -m bench report` prints the table.
"""

import argparse
import functools
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from bench import registry, runs, tune
from bench.registry import CONVS
from bench.report import Result
from bench.tune import Item, kind, named
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import Gemm, GemmTile

STEPS = ("check", "tune", "sweep")
MINUTES = 8.0  # for a step
SWEPT = ("bf16", "fp32", "tf32", "fp16")  # what matters most first: there are targets for two of them
KEPT = 10.0  # seconds between two writings of the file


class Steps:
    """The three steps, each True when all is done and nothing wrong; and what they have in common."""

    def __init__(self, args: argparse.Namespace, commands: Mapping[str, Sequence[str]], result: Result, path: Path) -> None:
        self.args, self.commands, self.result, self.path = args, commands, result, path
        self.gpu, self.architecture = (result["environment"][key] for key in ("gpu", "architecture"))

    @functools.cached_property
    def wanted(self) -> Mapping[tune.Place, Gemm]:
        places = tune.places(CONVS, self.args.names, self.args.arithmetics or tune.ARITHMETICS)
        return tune.products(places, self.architecture)

    def candidates(self, product: Gemm) -> list[GemmTile]:
        return tune.candidates(product, self.args.candidates, self.architecture)

    def configs(self) -> list[Item]:
        """What `check` is about: the tiles of all products, guesses first."""
        several = [(place.arithmetic, kind(p), tile) for place, p in self.wanted.items() for tile in self.candidates(p)]
        guesses = [(place.arithmetic, kind(p), self.candidates(p)[0]) for place, p in self.wanted.items()]
        return [[arithmetic, of, list(tile)] for arithmetic, of, tile in dict.fromkeys([*guesses, *several])]

    def cases(self) -> list[runs.Item]:
        """What `sweep` is about."""
        arithmetics, names = self.args.arithmetics or SWEPT, self.args.names
        fitting = [n for n, case in registry.CASES.items() if case.op in CONVS and registry.fits(n, names)]
        return [["case", name, arithmetic, "eager"] for arithmetic, name in itertools.product(arithmetics, fitting)]

    def check(self, until: float) -> bool:
        self._begin("check", sources(), verdicts={})
        verdicts: dict[str, dict[str, str | None]] = self.result["verdicts"]
        items = self.configs()
        left = [[a, of, tile] for a, of, tile in items if named(GemmTile(*tile)) not in verdicts.get(of, {})]
        print(f"check: {len(items)} tiles, {len(left)} of them to be checked", flush=True)
        for item, fault in self._kept(tune.settled(list(left), self.commands["check"], until)):
            _, of, tile = item
            verdicts.setdefault(of, {})[named(GemmTile(*tile))] = fault
            left.remove(item)
            if fault:
                print(*item, fault, flush=True)
        guesses = {(kind(product), named(self.candidates(product)[0])) for product in self.wanted.values()}
        bad = [(of, tile) for of, tile in sorted(guesses) if verdicts.get(of, {}).get(tile)]
        for guess in bad:
            print("A guess is struck off:", *guess)
        print(f"check: {len(left)} left")
        return not left and not bad

    def tune(self, until: float) -> bool:
        self._begin("tune", sources(), times={})
        times: tune.Times = self.result["times"]
        items = tune.items_of(self.wanted, self.right, times)
        print(f"tune: {len(self.wanted)} kinds of products, {len(items)} candidates", flush=True)
        left = len(items)
        try:
            for item, found in self._kept(tune.settled(items, self.commands["tune"], until)):
                tune.add(times, self.wanted, item, found)
                left -= 1
        finally:
            tune.record(self.gpu, tune.winners(self.wanted.values(), times, self.architecture))
        for line in tune.lines_of(self.wanted.values(), times, self.architecture):
            print(line)
        without = sum(not self.right(product) for product in self.wanted.values())
        print(f"tune: {left} left, and {without} products without a tile that was checked and is right")
        return not left and not without

    def right(self, product: Gemm) -> list[GemmTile]:
        """The candidates that `check` let pass."""
        verdicts = self.result["verdicts"].get(kind(product), {})
        return [tile for tile in self.candidates(product) if verdicts.get(named(tile), "not checked") is None]

    def sweep(self, until: float) -> bool:
        self._begin("sweep", sources(self.gpu), ceilings={}, rows=[], done=[], failed=[], left=[])
        self.result["left"] = [item for item in self.cases() if item not in self.result["done"]]
        for arithmetic, items in itertools.groupby(list(self.result["left"]), key=lambda item: item[2]):
            if time.monotonic() < until:
                compiling = [*self.commands["sweep"], "conv", "--step", "sweep", "--compile-only", "--arithmetics", arithmetic]
                compiling += ["--gpu", self.gpu, "--architecture", self.architecture, "--", *self.args.names]
                measuring = [*self.commands["sweep"], "--measure"]
                runs.fill(self.result, self.path, list(items), compiling, measuring, False, until)
        runs.written(self.result, self.path)
        runs.show(self.result, self.path)
        return runs.is_whole(self.result)

    def compile_only(self, steps: Sequence[str]) -> int:
        if "check" in steps:
            tune.compile_only(self.configs(), self.commands["check"])
        if "tune" in steps:
            tune.compile_only(tune.items_of(self.wanted, self.candidates, {}), self.commands["tune"])
        return runs.compile_only(self.cases(), self.architecture, self.gpu) if "sweep" in steps else 0

    def _begin(self, step: str, state: str, **nothing: Any) -> None:
        """Go on with what is known, unless it is of other kernels."""
        if self.result["of"].get(step) != state:
            self.result |= nothing
            self.result["of"][step] = state

    def _kept(self, found: Iterator[tuple[Item, Any]]) -> Iterator[tuple[Item, Any]]:
        """The same, while the file is written and their number printed now and then."""
        due = time.monotonic() + KEPT
        try:
            for number, one in enumerate(found, 1):
                yield one
                if time.monotonic() > due:
                    print(f"{number:6}", flush=True)
                    runs.written(self.result, self.path)
                    due = time.monotonic() + KEPT
        finally:
            runs.written(self.result, self.path)


def sources(gpu: str = "") -> str:
    """What tells the kernels, Triton and torch of one time from those of another; with a GPU's name, its tiles too."""
    files = [*Path(tuning.__file__).parents[1].rglob("*.py"), *([tune.path_of(gpu)] if gpu else [])]
    texts = [file.read_bytes() for file in sorted(files) if file.exists()]
    return hashlib.sha256(b"".join([*texts, triton.__version__.encode(), torch.__version__.encode()])).hexdigest()[:12]


def run(
    args: argparse.Namespace, steps: Sequence[str], commands: Mapping[str, Sequence[str]], environment: dict[str, Any]
) -> int:
    """The steps that are asked for, each by a command that does what it is given in a process of its own."""
    path = runs.folder_of(environment, args.out) / "conv.json"
    result: Result = {"of": {}, "verdicts": {}, "times": {}}
    result |= runs.begun(environment, path if path.exists() else None)
    result["environment"] = environment
    all_steps, whole = Steps(args, commands, result, path), True
    for step in steps:
        start = time.monotonic()
        whole = getattr(all_steps, step)(start + 60 * args.minutes) and whole
        print(f"{step}: {time.monotonic() - start:.0f} s\n", flush=True)
    return 0 if whole else 1


def commands(architecture: str) -> dict[str, list[str]]:
    """The modules whose processes do the work of a step."""
    python = [sys.executable, "-m"]
    workers = {step: [*python, f"bench.{name}", "--items", "--architecture", architecture]
               for step, name in (("check", "every_tile"), ("tune", "tune"))}  # fmt: skip
    return workers | {"sweep": [*python, "bench"]}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench conv", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions: of what has one in its name")
    parser.add_argument("--tune", action="store_true", help="check and tune too")
    parser.add_argument("--step", choices=STEPS, help="this one alone")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="then a step stops, and the next begins")
    parser.add_argument("--arithmetics", nargs="+", choices=tune.ARITHMETICS, metavar="NAME")
    parser.add_argument("--candidates", type=int, default=tune.CANDIDATES, metavar="N", help="tiles for each product")
    parser.add_argument("--out", type=Path, help="a folder for results, instead of bench/results")
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU, and runs nothing")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only")
    parser.add_argument("--gpu", default="", metavar="NAME", help="for --compile-only: with the tiles measured on that one")
    args = parser.parse_args(arguments)
    steps = [args.step] if args.step else STEPS if args.tune else STEPS[-1:]
    if args.compile_only:
        environment = {"gpu": args.gpu, "architecture": args.architecture}
        return Steps(args, commands(args.architecture), {"environment": environment}, Path()).compile_only(steps)
    if not torch.cuda.is_available():
        print("There is no GPU here to time on; --compile-only needs none.", file=sys.stderr)
        return 1
    environment = runs.environment()
    return run(args, steps, commands(environment["architecture"]), environment)
