"""Run the benchmark: compile its items, measure them in processes that may crash, and save the result after every row."""

import argparse
import datetime
import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from bench import registry
from bench.time import networks, report
from bench.time.case import rows_of
from bench.time.protocol import Machine
from bench.workers import do_in_turn, worked_off

RESULTS = Path(__file__).parents[1] / "results"
MINUTES = {True: 7.5, False: 28.0}  # time limit with and without --quick

Item = list[str]  # "case" or "model", name, arithmetic, and torch's mode ("eager" or "compiled")
CEILINGS: Item = ["ceilings", "", "", "eager"]  # the peak rates of the GPU


def items_of(names: Sequence[str], quick: bool, arithmetics: Sequence[str]) -> list[Item]:
    """Return the items of the matching cases and networks, the most informative first.

    torch.compile is last because it compiles the longest.
    """
    cases = registry.QUICK if quick else {name: case.arithmetics for name, case in registry.CASES.items()}
    of_networks = networks.QUICK if quick else {name: model.arithmetics for name, model in networks.MODELS.items()}

    def fitting(kind: str, of: Mapping[str, Sequence[str]]) -> list[Item]:
        op = {name: registry.CASES[name].op if kind == "case" else "model" for name in of}
        matching = [name for name in of if registry.fits(name, names) or registry.fits(op[name], names)]
        return [[kind, name, a] for name in matching for a in of[name] if a in arithmetics]

    every = [*fitting("case", cases), *fitting("model", of_networks)]
    compiled = [
        [kind, name, a] for kind, name, a in every
        if a == "bf16" and (registry.CASES[name].fused if kind == "case" else not quick or name == "AlexNet b128")
    ]  # fmt: skip
    return [[*item, "eager"] for item in every] + [[*item, "compiled"] for item in compiled]


def run(args: argparse.Namespace, command: Sequence[str], environment: dict[str, Any]) -> int:
    """Compile, measure, write and print. Return the exit status. `command` runs `python -m bench`."""
    start = time.monotonic()
    until = start + 60 * (args.minutes or MINUTES[args.quick])
    left = items_of(args.names, args.quick, args.arithmetics)
    if not left:
        print("No case or network matches these names and arithmetics.", file=sys.stderr)
        return 2
    result: report.Result = {"environment": environment, "ceilings": {}, "rows": [], "failed": [], "left": left}
    quick = ["--quick"] * args.quick
    stamp = re.sub(r"\W", "", environment["date"][:16])
    path = (args.out or RESULTS) / environment["gpu"].lower().replace(" ", "-") / f"{stamp}{'-quick' * args.quick}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1))
        part.replace(path)  # at once: an interrupted run leaves a whole file

    compiling = [*command, "--compile-only", "--gpu", environment["gpu"], "--architecture", environment["architecture"], *quick]
    try:
        subprocess.run([*compiling, "--arithmetics", *args.arithmetics, "--", *args.names], timeout=until - start)
    except subprocess.TimeoutExpired:
        print("Compilation used up the time limit.", file=sys.stderr)
    patience = {"eager": 90.0, "compiled": 150.0 if args.quick else 480.0}  # seconds per row
    items = [CEILINGS, *left]
    try:
        for item, found, why in worked_off(items, [*command, *quick, "--measure"], lambda item: patience[item[-1]], until):
            if isinstance(found, dict) and item == CEILINGS:
                result["ceilings"] = found
            elif isinstance(found, dict):
                result["rows"].append(found)
            else:
                why = why or found
                if why:
                    result["failed"].append({"item": item, "why": why})
                if item in left:
                    left.remove(item)
                print(f"{time.monotonic() - start:6.0f} s  {len(left):4} left ", *filter(None, (*item, why)), flush=True)
            save()
    except RuntimeError as error:
        result["failed"].append({"item": left[:1], "why": str(error)})
    save()
    print("", *report.lines_of(result), "", path, sep="\n")
    return 0 if is_whole(result) else 1


def measure(machine: Machine, quick: bool) -> None:
    """Measure the items of this worker process. A GPU error may end it."""
    do_in_turn(functools.partial(measured, machine=machine, quick=quick), machine.wait)


def measured(item: Item, machine: Machine, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of an item, or the ceilings (peak rates of this GPU)."""
    kind, name, arithmetic, against = item
    if kind == "ceilings":
        yield {"copy": machine.copy_rate(), "product": {a: machine.product_rate(a) for a in registry.PRODUCTS}}
    elif kind == "model":
        yield from networks.rows_of(name, networks.MODELS[name], arithmetic, machine, against)
    else:
        case = registry.CASES[name]
        yield from rows_of(case, arithmetic, machine, [p for p in case.works if not (quick and p in registry.SPLIT)], against)


def environment() -> dict[str, Any]:
    """Describe the machine: GPU, driver, versions, commit, date, flags."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": _said("git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "flags": {"cudnn.benchmark": True, "float32": "tf32: TF32 allowed on both sides; fp32: on neither"},
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def is_whole(result: report.Result) -> bool:
    """Return whether all items were measured and none of ours was wrong or failed."""
    rows = result["rows"]
    wrong = any(checked["wrong"] for row in rows for checked in row["checked"].values())
    failed = any(contender.startswith("ours") for row in rows for contender in row["failed"])
    return not (wrong or failed or result["failed"] or result["left"])


def compile_only(items: Sequence[Item], architecture: str, gpu: str) -> int:
    """Compile the kernels of the items. Return 1 if a kernel has a fault or there are no kernels."""
    from bench.compile import ahead

    start = time.monotonic()
    wanted: dict[str, dict[str, list[str]]] = {"case": {}, "model": {}}
    for kind, name, arithmetic, against in items:
        if against == "eager":
            wanted[kind].setdefault(name, []).append(arithmetic)
    jobs = ahead.jobs_of(wanted["case"], wanted["model"], architecture, gpu)
    faults = [(job, fault) for job, fault in ahead.faults(jobs) if fault]
    for job, fault in faults:
        print("FAULT", "  ".join(job.words), fault)
    print(
        f"{len(jobs)} kernels of {len(wanted['case'])} cases and {len(wanted['model'])} networks compiled for {architecture} "
        f"in {time.monotonic() - start:.0f} s, {len(faults)} faults"
    )
    return 1 if faults or not jobs else 0
