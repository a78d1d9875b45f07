"""A result as it comes: its items are compiled, measured in processes that may crash, and are in its file at any time."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import models, registry, report
from bench.rows import rows_of
from bench.timing import Machine
from bench.workers import say, words, worked_off

RESULTS = Path(__file__).with_name("results")

Item = list[str]  # "case" or "model", its name, the arithmetic, and what it is measured against
CEILINGS: Item = ["ceilings", "", "", "eager"]


def item_of(row: dict[str, Any]) -> Item:
    """The item that a row is of."""
    return ["model" if row["op"] == "model" else "case", row["name"], row["arithmetic"], row["against"]]


def begun(environment: dict[str, Any], path: Path | None = None) -> report.Result:
    """A result without anything in it, or what is done of an earlier one."""
    result: report.Result = {"environment": environment, "ceilings": {}, "rows": [], "done": [], "failed": [], "left": []}
    if path is not None:
        result |= report.read(path)
        result["rows"] = [row for row in result["rows"] if item_of(row) in result["done"]]
    return result


def folder_of(environment: dict[str, Any], out: Path | None) -> Path:
    """Where results of that GPU are, which is made."""
    folder = (out or RESULTS) / environment["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fill(
    result: report.Result, path: Path, items: Sequence[Item], compiling: Sequence[str], measuring: Sequence[str],
    quick: bool, until: float,
) -> None:  # fmt: skip
    """Compile what these items launch, by a command; then have a process of another command `measure` them.

    They are among what is "left" in the result, where those that get done are not any more.
    """
    start, left = time.monotonic(), result["left"]
    try:
        subprocess.run(compiling, timeout=until - start)
    except subprocess.TimeoutExpired:
        print("Compiling took all the time.", file=sys.stderr)
    patience = {"eager": 90.0, "compiled": 150.0 if quick else 480.0}  # seconds for a row
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
        machine.wait()


def measured(item: Item, machine: Machine, quick: bool) -> Iterator[dict[str, Any]]:
    """The rows of an item, or the ceilings."""
    kind, name, arithmetic, against = item
    if kind == "ceilings":
        products = {a: machine.product_rate(a) for a in registry.PRODUCTS}
        yield {"copy": machine.copy_rate(), "product": products, "issue": machine.issue_rate()}
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


def is_whole(result: report.Result) -> bool:
    """Whether all was measured, nothing of ours was wrong and nothing of ours failed."""
    rows = result["rows"]
    wrong = any(checked["wrong"] for row in rows for checked in row["checked"].values())
    failed = any(contender.startswith("ours") for row in rows for contender in row["failed"])
    return not (wrong or failed or result["failed"] or result["left"])


def show(result: report.Result, path: Path | None = None) -> None:
    """Print the table, and draw the plots of a result that was just written."""
    for line in report.lines_of(result):
        print(line)
    if path is not None:
        print(f"\n{path}")
        try:
            print(*report.plots_of(result, path.with_suffix("")), sep="\n")
        except ImportError as error:
            print(f"{error}: `python -m bench plot` draws the plots elsewhere")


def compile_only(items: Sequence[Item], architecture: str, gpu: str) -> int:
    """Compile what would be timed."""
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
        f"in {time.monotonic() - start:.0f} s, the instructions of {counted} passes counted, {len(faults)} faults"
    )
    return 1 if faults or not jobs else 0
