"""Fill a result: compile its items, measure them in processes that may crash, and save the file after every row."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from bench import registry
from bench.time import networks, report
from bench.time.case import rows_of
from bench.time.protocol import Machine
from bench.workers import say, words, worked_off

RESULTS = Path(__file__).parents[1] / "results"

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


def begun(environment: dict[str, Any], path: Path | None = None) -> report.Result:
    """Return an empty result, or the finished items of an earlier one."""
    result: report.Result = {"environment": environment, "ceilings": {}, "rows": [], "done": [], "failed": [], "left": []}
    if path is not None:
        result |= report.read(path)
        # Without the rows of an item that was unfinished at the time limit.
        result["rows"] = [
            row for row in result["rows"]
            if ["model" if row["op"] == "model" else "case", row["name"], row["arithmetic"], row["against"]] in result["done"]
        ]  # fmt: skip
    return result


def folder_of(environment: dict[str, Any], out: Path | None) -> Path:
    """Return the results folder of the GPU; create it if needed."""
    folder = (out or RESULTS) / environment["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fill(
    result: report.Result, path: Path, compiling: Sequence[str], measuring: Sequence[str], quick: bool, until: float
) -> None:  # fmt: skip
    """Compile the kernels of the items in result["left"] with one command, then measure them in processes of another command.

    Finished items move to result["done"].
    """
    start, left = time.monotonic(), result["left"]
    try:
        subprocess.run(compiling, timeout=until - start)
    except subprocess.TimeoutExpired:
        print("Compilation used up the time limit.", file=sys.stderr)
    patience = {"eager": 90.0, "compiled": 150.0 if quick else 480.0}  # seconds per row
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


def measure(items: Iterable[Item], machine: Machine, quick: bool) -> None:
    """Measure the items in order. A GPU error may end this process."""
    for item in items:
        say(at=item)
        error = None
        try:
            for part in measured(item, machine, quick):
                say(part=part)
        except Exception as raised:  # a case may raise anything; report it and go on
            error = words(raised)
        say(of=item, result=error)
        machine.wait()


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


def written(result: report.Result, path: Path) -> None:
    """Write a result to its file, atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)


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
