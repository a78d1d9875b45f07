"""The yardstick: times our operators and networks against torch's on this GPU.

    python -m bench                       all of it, ours against torch in both memory formats, for 28 minutes at most
    python -m bench --quick               the most telling of it, in less than 8 minutes
    python -m bench 'AlexNet conv' ResNet --arithmetics bf16
    python -m bench --compile-only        compiles what would be timed, for an H100 or H200, without a GPU
    python -m bench report RESULT.json    the table of an earlier run
    python -m bench plot RESULT.json      its plots, beside it or in --out

What is timed was first compared with float64 on the same numbers; what is WRONG is not timed. The rival is torch in the better
of its two memory formats, with cuDNN's benchmark on and the same flags for float32; torch.compile too for joined layers and
networks. Our networks are torch's after `trinn.convert(network, fuse=True)`. The JSON goes to bench/results/, as it comes, and
plots beside it where there is matplotlib; `--resume` goes on with one.
"""

import os
import sys

if "--compile-only" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported

import argparse
import datetime
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import models, registry, report
from bench.rows import rows_of, words
from bench.timing import Machine
from bench.workers import say, worked_off

RESULTS = Path(__file__).with_name("results")
MINUTES = {True: 7.5, False: 28.0}  # whether quick

Item = list[str]  # "case" or "model", its name, the arithmetic, and what it is measured against
CEILINGS: Item = ["ceilings", "", "", "eager"]


def items_of(names: Sequence[str], quick: bool, arithmetics: Sequence[str]) -> list[Item]:
    """What is to be measured, the most telling first; torch.compile comes last, since it takes the longest to compile."""

    def fits(name: str) -> bool:
        return not names or any(re.search(pattern, name) for pattern in names)

    cases = registry.QUICK if quick else {name: case.arithmetics for name, case in registry.CASES.items()}
    networks = models.QUICK if quick else {name: model.arithmetics for name, model in models.MODELS.items()}
    of_cases = [["case", name, a] for name, several in cases.items() for a in several if fits(name) and a in arithmetics]
    of_networks = [["model", name, a] for name, several in networks.items() for a in several if fits(name) and a in arithmetics]
    fused = [item for item in of_cases if registry.CASES[item[1]].fused and item[2] == "bf16"]
    compiled = [item for item in of_networks if item[2] == "bf16" and not (quick and item[1] != "AlexNet b128")]
    return [
        *([*item, "eager"] for item in (*of_cases, *of_networks)),
        *([*item, "compiled"] for item in (*fused, *compiled)),
    ]  # fmt: skip


def item_of(row: dict[str, Any]) -> Item:
    """The item that a row is of."""
    return ["model" if row["op"] == "model" else "case", row["name"], row["arithmetic"], row["against"]]


def measure(items: Sequence[Item], machine: Machine, quick: bool) -> None:
    """Measure one item after the other, in a process that an error on the GPU may end."""
    for item in items:
        say(at=item)
        error = None
        try:
            for part in measured(item, machine, quick):
                say(part=part)
        except Exception as raised:  # whatever a case may raise is about that case
            error = words(raised)
        say(of=item, result=error)
        if machine.device == "cuda":
            torch.cuda.synchronize()  # raises where nothing more can be done on the GPU


def measured(item: Item, machine: Machine, quick: bool) -> Iterator[dict[str, Any]]:
    """The rows of an item, or the ceilings."""
    kind, name, arithmetic, against = item
    if kind == "ceilings":
        products = {a: machine.product_rate(a) for a in registry.PRODUCTS}
        yield {"copy": machine.copy_rate(), "product": products}
    elif kind == "model":
        yield from models.rows_of(name, models.MODELS[name], arithmetic, machine, against)
    else:
        case = registry.CASES[name]
        yield from rows_of(case, arithmetic, machine, [p for p in case.works if not (quick and p in registry.SPLIT)], against)


def environment() -> dict[str, Any]:
    """What a reader must know of the machine."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": __import__("triton").__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": _said("git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "flags": {"cudnn.benchmark": True, "float32": "tf32: TF32 allowed to both sides; fp32: to none"},
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def written(result: report.Result, path: Path) -> None:
    """Put a result into its file, whole at any time."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)


def run(args: argparse.Namespace, command: Sequence[str], environment: dict[str, Any]) -> int:
    """Compile, measure in processes that may crash, write and print; `command` runs this module."""
    start = time.monotonic()
    until = start + 60 * (args.minutes or MINUTES[args.quick])
    items = items_of(args.names, args.quick, args.arithmetics)
    if not items:
        print("Nothing has such a name and arithmetic.", file=sys.stderr)
        return 2
    result: report.Result = {"environment": environment, "ceilings": {}, "rows": [], "done": [], "failed": [], "left": []}
    if args.resume:
        result |= report.read(args.resume)
        result["rows"] = [row for row in result["rows"] if item_of(row) in result["done"]]
    folder = (args.out or RESULTS) / environment["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    stamp = re.sub(r"\W", "", environment["date"][:16])
    path = args.resume or folder / f"{stamp}{'-quick' if args.quick else ''}.json"
    left = result["left"] = [item for item in items if item not in result["done"]]

    quick = ["--quick"] * args.quick
    compiling = [*command, "--compile-only", "--gpu", environment["gpu"], "--architecture", environment["architecture"], *quick]
    compiling += ["--arithmetics", *args.arithmetics, "--", *args.names]
    try:
        subprocess.run(compiling, timeout=until - time.monotonic())
    except subprocess.TimeoutExpired:
        print("Compiling took all the time.", file=sys.stderr)

    measuring = [*command, *quick, "--measure"]
    patience = {"eager": 90.0, "compiled": 150.0 if args.quick else 480.0}  # seconds for a row
    first: list[Item] = [] if result["ceilings"] else [CEILINGS]
    try:
        for item, found, why in worked_off([*first, *left], measuring, lambda item: patience[item[-1]], until):
            if isinstance(found, dict):
                if item == CEILINGS:
                    result["ceilings"] = found
                else:
                    result["rows"].append(found)
            else:
                why = why or found
                if why:
                    result["failed"].append({"item": item, "why": why})
                if item in left:
                    left.remove(item)
                    result["done"].append(item)
                print(f"{time.monotonic() - start:6.0f} s  {len(left):4} left ", *filter(None, (*item, why)), flush=True)
            written(result, path)
    except RuntimeError as error:
        result["failed"].append({"item": left[:1], "why": str(error)})
    written(result, path)
    print()
    show(result)
    print(f"\n{path}, after {time.monotonic() - start:.0f} s")
    try:
        print(*report.plots_of(result, path.with_suffix("")), sep="\n")
    except ImportError as error:
        print(f"{error}: `python -m bench plot` draws the plots elsewhere")
    return 0 if is_whole(result) else 1


def is_whole(result: report.Result) -> bool:
    """Whether all was measured, nothing of ours was wrong and nothing of ours failed."""
    rows = result["rows"]
    wrong = any(checked["wrong"] for row in rows for checked in row["checked"].values())
    failed = any(contender.startswith("ours") for row in rows for contender in row["failed"])
    return not (wrong or failed or result["failed"] or result["left"])


def show(result: report.Result) -> None:
    for line in report.lines_of(result):
        print(line)


def compile_only(args: argparse.Namespace) -> int:
    """Compile what would be timed."""
    from bench import ahead

    start = time.monotonic()
    cases: dict[str, list[str]] = {}
    networks: dict[str, list[str]] = {}
    for kind, name, arithmetic, against in items_of(args.names, args.quick, args.arithmetics):
        if against == "eager":
            (cases if kind == "case" else networks).setdefault(name, []).append(arithmetic)
    jobs = ahead.jobs_of(cases, networks, args.architecture, args.gpu)
    faults = [(job, fault) for job, fault in ahead.compiled(jobs) if fault]
    for job, fault in faults:
        print("FAULT", "  ".join(job.words), fault)
    print(
        f"{len(jobs)} kernels of {len(cases)} cases and {len(networks)} networks compiled for {args.architecture} "
        f"in {time.monotonic() - start:.0f} s, {len(faults)} faults"
    )
    return 1 if faults or not jobs else 0


def read_again(kind: str, arguments: Sequence[str]) -> int:
    """The table or the plots of an earlier run."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {kind}")
    parser.add_argument("result", type=Path)
    if kind == "plot":
        parser.add_argument("--out", type=Path, help="a folder; else one beside the result, of its name")
    args = parser.parse_args(arguments)
    try:
        result = report.read(args.result)
        if kind == "report":
            show(result)
        else:
            print(*report.plots_of(result, args.out or args.result.with_suffix("")), sep="\n")
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["report"], ["plot"]):
        return read_again(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions: what has one in its name")
    parser.add_argument("--quick", action="store_true", help="the most telling in less than 8 minutes")
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU, and times nothing")
    parser.add_argument("--arithmetics", nargs="+", choices=registry.PRODUCTS, default=registry.PRODUCTS, metavar="NAME")
    parser.add_argument("--minutes", type=float, help="then stop, and report what there is: 7.5 for --quick, else 28")
    parser.add_argument("--resume", type=Path, metavar="RESULT.json", help="measure what is missing there, and add it")
    parser.add_argument("--out", type=Path, help="a folder for results, instead of bench/results")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only")
    parser.add_argument("--gpu", default="", metavar="NAME", help="for --compile-only: with the tiles measured on that one")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.compile_only:
        return compile_only(args)
    if not torch.cuda.is_available():
        print("There is no GPU here to time on; --compile-only needs none.", file=sys.stderr)
        return 1
    if args.measure:
        measure(json.loads(args.measure), Machine.gpu(), args.quick)
        return 0
    return run(args, [sys.executable, "-m", "bench"], environment())


if __name__ == "__main__":
    sys.exit(main())
