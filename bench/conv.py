"""Check, tune and benchmark the tiles of all convolutions on this GPU.

    python -m bench conv                      time the registry's convolutions with the current tiles
    python -m bench conv --tune               check and tune first; less than 25 minutes in total
    python -m bench conv --tune --step check  one step only: check, tune or sweep; less than 9 minutes
    python -m bench conv --tune --compile-only 'AlexNet conv3'

    check   compare every candidate tile with float64 on small images; reject wrong, crashing and hanging tiles
    tune    time the remaining tiles on the registry's convolutions; write the fastest to kernels/runtime/tiles/
    sweep   benchmark the registry's convolutions like `python -m bench`, and print the performance targets of bench/report.py

Each step compiles ahead of time on all cores. A step that reached its time limit resumes in the next run, if the kernels have
not changed. Results are in bench/results/<gpu>/conv.json; `python -m bench report` prints its table.
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

from bench import registry, tune
from bench.registry import CONVS
from bench.time import runs
from bench.time.report import Result
from bench.tune import Item, kind, named
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import Gemm, GemmTile

STEPS = ("check", "tune", "sweep")
MINUTES = 8.0  # per step
SWEPT = ("bf16", "fp32", "tf32", "fp16")  # the two arithmetics with targets first
KEPT = 10.0  # seconds between two saves of conv.json


class Steps:
    """The three steps and their common state. A step returns True if it finished and found no fault."""

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
        """Return the items of `check`: the tiles of all products, default tiles first."""
        several = [(place.arithmetic, kind(p), tile) for place, p in self.wanted.items() for tile in self.candidates(p)]
        defaults = [(place.arithmetic, kind(p), self.candidates(p)[0]) for place, p in self.wanted.items()]
        return [[arithmetic, of, list(tile)] for arithmetic, of, tile in dict.fromkeys([*defaults, *several])]

    def cases(self) -> list[runs.Item]:
        """Return the items of `sweep`."""
        arithmetics, names = self.args.arithmetics or SWEPT, self.args.names
        fitting = [n for n, case in registry.CASES.items() if case.op in CONVS and registry.fits(n, names)]
        return [["case", name, arithmetic, "eager"] for arithmetic, name in itertools.product(arithmetics, fitting)]

    def check(self, until: float) -> bool:
        self._begin("check", sources(), verdicts={})
        verdicts: dict[str, dict[str, str | None]] = self.result["verdicts"]
        items = self.configs()
        left = [[a, of, tile] for a, of, tile in items if named(GemmTile(*tile)) not in verdicts.get(of, {})]
        print(f"check: {len(items)} tiles, {len(left)} unchecked", flush=True)
        for item, fault in self._kept(tune.settled(list(left), self.commands["check"], until)):
            _, of, tile = item
            verdicts.setdefault(of, {})[named(GemmTile(*tile))] = fault
            left.remove(item)
            if fault:
                print(*item, fault, flush=True)
        defaults = {(kind(product), named(self.candidates(product)[0])) for product in self.wanted.values()}
        bad = [(of, tile) for of, tile in sorted(defaults) if verdicts.get(of, {}).get(tile)]
        for default in bad:
            print("A default tile was rejected:", *default)
        print(f"check: {len(left)} left")
        return not left and not bad

    def tune(self, until: float) -> bool:
        self._begin("tune", sources(), times={})
        times: tune.Times = self.result["times"]
        items = tune.items_of(self.wanted, self.right, times)
        print(f"tune: {len(self.wanted)} products, {len(items)} candidates", flush=True)
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
        print(f"tune: {left} left; {without} products have no tile that passed the check")
        return not left and not without

    def right(self, product: Gemm) -> list[GemmTile]:
        """Return the candidates that passed `check`."""
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
        """Keep the known results of a step, or reset them to `nothing` if the kernels have changed."""
        if self.result["of"].get(step) != state:
            self.result |= nothing
            self.result["of"][step] = state

    def _kept(self, found: Iterator[tuple[Item, Any]]) -> Iterator[tuple[Item, Any]]:
        """Yield the items of `found`. Save the file and print their number every KEPT seconds."""
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
    """Return a hash of the kernels and the versions of Triton and torch; with a GPU's name, also of its tiles."""
    files = [*Path(tuning.__file__).parents[1].rglob("*.py"), *([tune.path_of(gpu)] if gpu else [])]
    texts = [file.read_bytes() for file in sorted(files) if file.exists()]
    return hashlib.sha256(b"".join([*texts, triton.__version__.encode(), torch.__version__.encode()])).hexdigest()[:12]


def run(
    args: argparse.Namespace, steps: Sequence[str], commands: Mapping[str, Sequence[str]], environment: dict[str, Any]
) -> int:
    """Run the steps. Their work runs in processes of `commands`."""
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
    """Return the command of each step's worker processes."""
    python = [sys.executable, "-m"]
    workers = {step: [*python, f"bench.{name}", "--items", "--architecture", architecture]
               for step, name in (("check", "every_tile"), ("tune", "tune"))}  # fmt: skip
    return workers | {"sweep": [*python, "bench"]}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench conv", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions for names of cases; default: all")
    parser.add_argument("--tune", action="store_true", help="check and tune first")
    parser.add_argument("--step", choices=STEPS, help="run only this step")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit per step; default: %(default)s")
    parser.add_argument("--arithmetics", nargs="+", choices=tune.ARITHMETICS, metavar="NAME",
                        help=f"{', '.join(tune.ARITHMETICS)}; default: all")  # fmt: skip
    parser.add_argument(
        "--candidates", type=int, default=tune.CANDIDATES, metavar="N", help="tiles per product; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, help="folder for results; default: bench/results")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; run nothing")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only: the target; default: %(default)s")
    parser.add_argument("--gpu", default="", metavar="NAME", help="for --compile-only: use the tiles tuned for this GPU")
    args = parser.parse_args(arguments)
    steps = [args.step] if args.step else STEPS if args.tune else STEPS[-1:]
    if args.compile_only:
        environment = {"gpu": args.gpu, "architecture": args.architecture}
        return Steps(args, commands(args.architecture), {"environment": environment}, Path()).compile_only(steps)
    if not torch.cuda.is_available():
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    environment = runs.environment()
    return run(args, steps, commands(environment["architecture"]), environment)
