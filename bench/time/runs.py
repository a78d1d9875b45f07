"""Fill a result: compile its items, measure them in processes that may crash, and save the file after every row."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import registry
from bench.time import networks, report
from bench.time.case import rows_of
from bench.time.protocol import Machine
from bench.workers import say, words, worked_off

RESULTS = Path(__file__).parents[1] / "results"

Item = list[str]  # "case" or "model", name, arithmetic, and torch's mode ("eager" or "compiled")
CEILINGS: Item = ["ceilings", "", "", "eager"]  # the peak rates of the GPU


def item_of(row: dict[str, Any]) -> Item:
    """Return the item of a row."""
    return ["model" if row["op"] == "model" else "case", row["name"], row["arithmetic"], row["against"]]


def begun(environment: dict[str, Any], path: Path | None = None) -> report.Result:
    """Return an empty result, or the finished items of an earlier one."""
    result: report.Result = {"environment": environment, "ceilings": {}, "rows": [], "done": [], "failed": [], "left": []}
    if path is not None:
        result |= report.read(path)
        result["rows"] = [row for row in result["rows"] if item_of(row) in result["done"]]
    return result


def folder_of(environment: dict[str, Any], out: Path | None) -> Path:
    """Return the results folder of the GPU; create it if needed."""
    folder = (out or RESULTS) / environment["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fill(
    result: report.Result, path: Path, items: Sequence[Item], compiling: Sequence[str], measuring: Sequence[str],
    quick: bool, until: float,
) -> None:  # fmt: skip
    """Compile the kernels of the items with one command, then measure the items in processes of another command.

    `items` are a subset of result["left"]; finished items move to result["done"].
    """
    start, left = time.monotonic(), result["left"]
    try:
        subprocess.run(compiling, timeout=until - start)
    except subprocess.TimeoutExpired:
        print("Compilation used up the time limit.", file=sys.stderr)
    patience = {"eager": 90.0, "compiled": 150.0 if quick else 480.0}  # seconds per row
    first: list[Item] = [] if result["ceilings"] else [CEILINGS]
    try:
        for item, found, why in worked_off([*first, *items], measuring, lambda item: patience[item[-1]], until):
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
        products = {a: machine.product_rate(a) for a in registry.PRODUCTS}
        yield {"copy": machine.copy_rate(), "product": products, "issue": machine.issue_rate()}
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
        "triton": __import__("triton").__version__,
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


def show(result: report.Result, path: Path | None = None) -> None:
    """Print the table. With the path of a result just written, also draw its plots."""
    for line in report.lines_of(result):
        print(line)
    if path is not None:
        print(f"\n{path}")
        try:
            print(*report.plots_of(result, path.with_suffix("")), sep="\n")
        except ImportError as error:
            print(f"{error}: run `python -m bench plot` where matplotlib is installed")


def compile_only(items: Sequence[Item], architecture: str, gpu: str) -> int:
    """Compile the kernels of the items. Return 1 if a kernel has a fault or there are no kernels."""
    from bench import ahead

    start = time.monotonic()
    cases: dict[str, list[str]] = {}
    networks: dict[str, list[str]] = {}
    for kind, name, arithmetic, against in items:
        if against == "eager":
            (cases if kind == "case" else networks).setdefault(name, []).append(arithmetic)
    jobs = ahead.jobs_of(cases, networks, architecture, gpu)
    faults = [(job, fault) for job, fault in ahead.compiled(jobs) if fault]
    for job, fault in faults:
        print("FAULT", "  ".join(job.words), fault)
    counted = ahead.counted(cases)
    print(
        f"{len(jobs)} kernels of {len(cases)} cases and {len(networks)} networks compiled for {architecture} "
        f"in {time.monotonic() - start:.0f} s, instructions of {counted} passes counted, {len(faults)} faults"
    )
    return 1 if faults or not jobs else 0
