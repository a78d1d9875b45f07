"""What this GPU makes of trinn: whether it computes right and how fast, in nine minutes. `make gpu`.

    python -m bench.gpu [--out FOLDER] [--minutes 9]
    python -m bench report FOLDER             the summary again

Each part is a process with a limit of its own, and the next one begins whatever became of it:

    environment   versions, the GPU, and whether one kernel runs
    descriptors   a kernel with tensor descriptors, started by Triton and from the launch cache
    calls         every operator, forward and backward, in each dtype and memory format, against float64
    rates         of copies and products, and those that the tile rules assume
    tests         the tests of TESTS, in that order, as far as time allows
    bench         python -m bench --quick, the most telling rows first, for the time that is left

Kernels that `make gpu-cache` compiled beforehand for this very source are used where there are any (gpu-cache.tar.xz). The
folder, else bench/results/<gpu>/<time>, gets all that is found as it comes: parts.json, log.txt, tests.jsonl, rates.json, the
bench's JSON in a folder of its own, and summary.txt.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from bench import gpu_cache, report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")

CALLS = ("tests/test_every.py",)
# What says most a minute comes first; what needs no GPU is not here. tests/rehearsal.py runs these on a GPU that stands still.
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "cuda", "bounds", "conv2d_tma", "few_channels", "linear", "conv2d", "batchnorm2d", "pool2d", "fused", "relayout",
        "conv_transpose2d", "upsample2d", "relu", "adaptive_pool2d", "max_unpool2d", "pad2d", "lenet", "determinism", "threads",
        "function", "alexnet", "convert", "fuse", "hard_inputs",
    )
)  # fmt: skip
# They ask for a tensor's device, where CPU tensors do not stand for a GPU's.
ON_A_GPU_ALONE = ("tests/test_backend.py",)
# A test that hangs is stopped; a process that ends is replaced, however often; tests are begun in their order.
CONTAINED = (
    "--timeout", "40", "--timeout-method", "thread", "--max-worker-restart", "10000", "--dist", "load", "--maxschedchunk", "1",
)  # fmt: skip

SUMMARY_LINES = 60
GRACE = 5.0  # seconds to end in, for a part that was interrupted


class Part(NamedTuple):
    """A command with the most seconds that it may take; None for all that are left."""

    name: str
    command: list[str]
    seconds: float | None


def pytest_command(out: Path, *arguments: str) -> list[str]:
    """pytest with a process for each core but two, as far as its plugins are there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.contained", "--tb=short"]
    command += ["--results", str(out / "tests.jsonl")]
    if find_spec("xdist") and find_spec("pytest_timeout"):
        processes = max(1, len(os.sched_getaffinity(0)) - 2)
        command += ["-n", str(processes), *CONTAINED]
    return [*command, *arguments]


def parts(out: Path) -> list[Part]:
    python = [sys.executable, "-m"]
    return [
        Part("environment", [*python, "trinn.env"], 30),
        Part("descriptors", [*python, "tests.descriptors", "cuda"], 40),
        Part("calls", pytest_command(out, *CALLS), 70),
        Part("rates", [*python, "bench.rates", "--out", str(out / "rates.json")], 45),
        Part("tests", pytest_command(out, *TESTS, *ON_A_GPU_ALONE), 190),
        Part("bench", [*python, "bench", "--quick", "--out", str(out), "--minutes"], None),
    ]


def run(part: Part, seconds: float, out: Path) -> dict[str, Any]:
    """Run a part for so many seconds at most, print what it prints, and say how it ended."""
    command = part.command if part.seconds is not None else [*part.command, f"{max(seconds - 15, 5) / 60:.2f}"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    began, log = time.monotonic(), out / "log.txt"
    with log.open("a") as file:
        file.write(f"\n== {part.name}: {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            ended = f"exit status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = "time was up"
        finally:
            stop(process)
    return {"part": part.name, "seconds": round(time.monotonic() - began, 1), "limit": round(seconds), "ended": ended}


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    for how in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            pass


def run_all(of: Sequence[Part], out: Path, seconds: float) -> bool:
    """Run the parts in so many seconds at most; whether all of them ended well."""
    until, ended = time.monotonic() + seconds, []
    for part in of:
        left = until - time.monotonic() - GRACE
        most = left if part.seconds is None else min(part.seconds, left)
        none = {"part": part.name, "seconds": 0.0, "limit": 0, "ended": "time was up"}
        row = run(part, most, out) if most > GRACE else none
        ended.append(row)
        print(f"{row['part']:12} {row['seconds']:6.1f} s of {row['limit']:4}  {row['ended']}", flush=True)
        (out / "parts.json").write_text(json.dumps(ended, indent=1) + "\n")
    return all(row["ended"] == "exit status 0" for row in ended)


def summary(out: Path) -> list[str]:
    """What is wrong and what is slow, in no more than SUMMARY_LINES lines."""
    lines = [*_of_parts(out), "", *_of_tests(out, 12), "", *_of_rates(out), "", *_of_bench(out)]
    return lines[:SUMMARY_LINES]


def _of_parts(out: Path) -> Iterator[str]:
    log = (out / "log.txt").read_text() if (out / "log.txt").exists() else ""
    wanted = ("trinn ", "torch ", "Triton ", "driver ", "GPU ", "a kernel ")
    yield from (line for line in log.partition("== descriptors")[0].splitlines() if line.startswith(wanted))
    for row in json.loads((out / "parts.json").read_text()) if (out / "parts.json").exists() else ():
        if row["ended"] != "exit status 0":
            yield f"{row['part']}: {row['ended']}, after {row['seconds']:.0f} s of {row['limit']}"


def _of_tests(out: Path, most: int) -> Iterator[str]:
    """How many tests passed, and the errors by how many tests have them."""
    text = (out / "tests.jsonl").read_text() if (out / "tests.jsonl").exists() else ""
    rows = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]  # whole lines: the last may have been cut off
    last = {row["test"]: row for row in rows}
    last |= {row["test"]: row for row in rows if row["outcome"] == "failed"}
    counts = Counter(row["outcome"] for row in last.values())
    kernels: Counter[str] = Counter()
    for row in rows:
        kernels.update(row["kernels"])
    yield (
        f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped; kernels: "
        f"{kernels['compiled']} compiled, {kernels['found']} found in the cache"
    )
    failed: dict[str, list[dict[str, Any]]] = {}
    for row in last.values():
        if row["outcome"] == "failed":
            failed.setdefault(row["test"].split("[")[0].removeprefix("tests/"), []).append(row)
    for test, members in sorted(failed.items(), key=lambda item: -len(item[1]))[:most]:
        words = " ".join(members[0]["error"].split())
        yield f"  {len(members):4} x {test}: {words}"[:180]
    if len(failed) > most:
        yield f"  and {len(failed) - most} other tests: tests.jsonl"


def _of_rates(out: Path) -> Iterator[str]:
    from bench import rates

    path = out / "rates.json"
    yield from rates.lines_of(json.loads(path.read_text())) if path.exists() else ("rates: not measured",)


def _of_bench(out: Path) -> Iterator[str]:
    """What is wrong, what is the slowest against torch, and against what no one can avoid."""
    paths = sorted(out.glob("*/*-quick.json"))
    if not paths:
        yield "bench: not measured"
        return
    result = report.read(paths[-1])
    found = report.comparisons(result)
    wrong = [c for c in found if any(checked["wrong"] for checked in c.row["checked"].values())]
    timed = [c for c in found if c.ours and c.torchs]
    yield (
        f"bench: {len(timed)} comparisons, {len(wrong)} of something wrong, {len(result['failed'])} failed, "
        f"{len(result['left'])} not made; {report.geomean([c.ratio for c in timed]):.2f} times as fast as torch, in the mean"
    )
    for c in wrong[:5]:
        yield f"  {' '.join(c.words)}: {next(report.remarks(c.row))}"[:180]
    for failure in result["failed"][:2]:
        yield f"  {' '.join(failure['item'])}: {failure['why']}"[:180]
    yield "slowest against torch:"
    for c in sorted(timed, key=lambda c: c.ratio)[:5]:
        yield f"  {c.ratio:5.2f} x torch  {' '.join(c.words)}"
    floors = [(c.ours["median"] / c.floor, c) for c in timed if c.floor and c.ours]
    yield "furthest from what no one can avoid:"
    for times, c in sorted(floors, key=lambda pair: -pair[0])[:5]:
        yield f"  {times:5.1f} x the floor  {' '.join(c.words)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together; default: %(default)s")
    args = parser.parse_args(arguments)
    until = time.monotonic() + 60 * args.minutes

    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here: PYTHON=... names a Python whose torch sees one.", file=sys.stderr)
        return 1
    gpu = torch.cuda.get_device_name().lower().replace(" ", "-")
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M")
    out = (args.out or RESULTS / gpu / stamp).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for file in ("tests.jsonl", "rates.json", "log.txt"):  # of an earlier run, to which this one would add
        (out / file).unlink(missing_ok=True)
    print(f"into {out}", flush=True)
    print(gpu_cache.unpacked(), flush=True)
    well = run_all(parts(out), out, until - time.monotonic())
    lines = summary(out)
    (out / "summary.txt").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
