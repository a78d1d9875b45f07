"""Check correctness and speed of trinn on this GPU in nine minutes: `make gpu`.

    python -m bench.gpu [--out FOLDER] [--minutes 9]
    python -m bench report FOLDER             print the summary again

Each part is a process with its own time limit. A part runs even if an earlier part failed:

    environment   versions, the GPU, and a first kernel
    descriptors   a kernel with tensor descriptors, launched by Triton and from the launch cache
    calls         every operator, forward and backward, in each dtype and memory format, against float64
    tests         the GPU's tests, the most informative first, within the time limit (TESTS in bench/gpu.py)
    bench         python -m bench --quick, the most informative rows first, in the remaining time

The run uses the kernels of gpu-cache.tar.xz if `make gpu-cache` compiled them from the same sources. Results are written
during the run to FOLDER, by default bench/results/<gpu>/<time>: parts.json, log.txt, tests.jsonl, summary.txt, and the
benchmark's JSON in a subfolder.
"""

import argparse
import contextlib
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

from bench import gpu_cache
from bench.time import report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")

CALLS = ("tests/operators/test_calls.py",)
# The most informative tests per minute first, without tests that need no GPU. tests/rehearsal.py runs them on the stub GPU.
FIRST = (
    "kernels/test_cuda", "operators/test_bounds", "operators/test_conv2d_tma", "operators/test_few_channels",
    "operators/test_linear", "operators/test_conv2d", "operators/test_batchnorm2d", "operators/test_pool2d",
    "operators/test_fused", "kernels/test_relayout",
)  # fmt: skip
OPERATORS = tuple(  # every operator with a record, except the one whose tests run in several processes
    f"operators/{path.stem}"
    for path in sorted((ROOT / "tests" / "operators").glob("test_*.py"))
    if path.with_name(path.name.removeprefix("test_")).exists() and path.stem != "test_sync_batchnorm"
)
LAST = (
    "models/test_lenet", "operators/test_determinism", "kernels/test_threads", "torch/test_function", "models/test_alexnet",
    "convert/test_convert", "convert/test_fuse", "operators/test_hard_inputs",
)  # fmt: skip
TESTS = tuple(f"tests/{name}.py" for name in dict.fromkeys((*FIRST, *OPERATORS, *LAST)))
# Tests that need a real GPU: they check a tensor's device, so tests/rehearsal.py, with CPU tensors on a stub GPU, skips them.
ON_A_GPU_ALONE = ("tests/convert/test_backend.py",)
# Stop hanging tests, replace every process that ends, and start tests in order.
CONTAINED = (
    "--timeout", "40", "--timeout-method", "thread", "--max-worker-restart", "10000", "--dist", "load", "--maxschedchunk", "1",
)  # fmt: skip

SUMMARY_LINES = 60
GRACE = 5.0  # seconds for an interrupted part to end


class Part(NamedTuple):
    """A command and its time limit in seconds; None for the remaining time."""

    name: str
    command: list[str]
    seconds: float | None


def pytest_command(out: Path, *arguments: str) -> list[str]:
    """Return the pytest command. With pytest-xdist and pytest-timeout it uses all cores but two."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.contained", "--tb=short"]
    command += ["--results", str(out / "tests.jsonl")]
    if find_spec("xdist") and find_spec("pytest_timeout"):
        processes = max(1, len(os.sched_getaffinity(0)) - 2)
        command += ["-n", str(processes), *CONTAINED]
    return [*command, *arguments]


def parts(out: Path) -> list[Part]:
    python = [sys.executable, "-m"]
    return [
        Part("environment", [*python, "trinn.env"], 30),
        Part("descriptors", [*python, "tests.support.descriptors", "cuda"], 40),
        Part("calls", pytest_command(out, *CALLS), 70),
        Part("tests", pytest_command(out, *TESTS, *ON_A_GPU_ALONE), 190),
        Part("bench", [*python, "bench", "--quick", "--out", str(out), "--minutes"], None),
    ]


def run(part: Part, seconds: float, out: Path) -> dict[str, Any]:
    """Run a part for at most `seconds`, log its output, and return how it ended."""
    # The benchmark ends 15 s before its limit, so that it can write its result.
    command = part.command if part.seconds is not None else [*part.command, f"{max(seconds - 15, 5) / 60:.2f}"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with (out / "log.txt").open("a") as file:
        print(f"\n== {part.name}:", *command, file=file, flush=True)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            ended = f"exit status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = "timed out"
        finally:
            for how in (signal.SIGINT, signal.SIGKILL):  # to the part and its child processes
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, how)
                    process.wait(GRACE)
    return {"part": part.name, "seconds": round(time.monotonic() - began, 1), "limit": round(seconds), "ended": ended}


def run_all(of: Sequence[Part], out: Path, seconds: float) -> bool:
    """Run the parts within `seconds`. Return whether all succeeded."""
    until, ended = time.monotonic() + seconds, []
    for part in of:
        left = until - time.monotonic() - GRACE
        most = left if part.seconds is None else min(part.seconds, left)
        none = {"part": part.name, "seconds": 0.0, "limit": 0, "ended": "not started: no time left"}
        row = run(part, most, out) if most > GRACE else none
        ended.append(row)
        print(f"{row['part']:12} {row['seconds']:6.1f} s of {row['limit']:4}  {row['ended']}", flush=True)
        (out / "parts.json").write_text(json.dumps(ended, indent=1) + "\n")
    return all(row["ended"] == "exit status 0" for row in ended)


def summary(out: Path) -> list[str]:
    """Summarise failures and slow operators in at most SUMMARY_LINES lines."""
    return [*_of_parts(out), "", *_of_tests(out, 12), "", *_of_bench(out)][:SUMMARY_LINES]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _of_parts(out: Path) -> Iterator[str]:
    """Yield the environment, and the parts that failed."""
    wanted = ("trinn ", "torch ", "Triton ", "driver ", "GPU ", "a kernel ")
    log = _read(out / "log.txt").partition("== descriptors")[0]
    yield from (line for line in log.splitlines() if line.startswith(wanted))
    for row in json.loads(_read(out / "parts.json") or "[]"):
        if row["ended"] != "exit status 0":
            yield f"{row['part']}: {row['ended']}, after {row['seconds']:.0f} s of {row['limit']}"


def _of_tests(out: Path, most: int) -> Iterator[str]:
    """Yield the number of passed tests, and the failures grouped by test, the most frequent first."""
    lines = _read(out / "tests.jsonl").rpartition("\n")[0].splitlines()  # without an incomplete last line
    rows = [json.loads(line) for line in lines]
    last = {row["test"]: row for row in sorted(rows, key=lambda row: row["outcome"] == "failed")}  # a failure counts most
    outcomes = Counter(row["outcome"] for row in last.values())
    kernels = sum((Counter[str](row["kernels"]) for row in rows), Counter[str]())
    yield (
        f"tests: {outcomes['passed']} passed, {outcomes['failed']} failed, {outcomes['skipped']} skipped; kernels: "
        f"{kernels['compiled']} compiled, {kernels['found']} found in the cache"
    )
    failed = [row for row in last.values() if row["outcome"] == "failed"]
    tests = Counter(row["test"].split("[")[0] for row in failed)
    errors = {row["test"].split("[")[0]: " ".join(row["error"].split()) for row in reversed(failed)}
    for test, count in tests.most_common(most):
        yield f"  {count:4} x {test.removeprefix('tests/')}: {errors[test]}"[:180]
    if len(tests) > most:
        yield f"  and {len(tests) - most} other tests: see tests.jsonl"


def _of_bench(out: Path) -> Iterator[str]:
    """Yield wrong rows, the rows slowest relative to torch, and the rows furthest from the floor."""
    paths = sorted(out.glob("*/*-quick.json"))
    if not paths:
        yield "bench: not measured"
        return
    result = report.read(paths[-1])
    found = report.comparisons(result)
    wrong, timed = [c for c in found if c.wrong], [c for c in found if c.ours and c.torchs]
    yield (
        f"bench: {len(timed)} comparisons, {len(wrong)} wrong, {len(result['failed'])} failed, {len(result['left'])} missing; "
        f"geometric mean speedup over torch: {report.geomean([c.ratio for c in timed]):.2f}"
    )
    yield from report.ceilings(result)
    for c in wrong[:5]:
        yield f"  {' '.join(c.words)}: {next(report.remarks(c.row))}"[:180]
    for failure in result["failed"][:2]:
        yield f"  {' '.join(failure['item'])}: {failure['why']}"[:180]
    yield "slowest relative to torch:"
    for c in sorted(timed, key=lambda c: c.ratio)[:5]:
        yield f"  {c.ratio:5.2f} x torch  {' '.join(c.words)}"
    yield "furthest from the floor, the minimum time for the bytes and operations:"
    floors = [(c.ours["median"] / c.floor, c) for c in timed if c.floor and c.ours]
    for times, c in sorted(floors, key=lambda pair: -pair[0])[:5]:
        yield f"  {times:5.1f} x the floor  {' '.join(c.words)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for results; default: bench/results/<gpu>/<time>")
    parser.add_argument("--minutes", type=float, default=9.0, help="total time limit; default: %(default)s")
    args = parser.parse_args(arguments)
    until = time.monotonic() + 60 * args.minutes

    import torch

    if not torch.cuda.is_available():
        print("No GPU found. Set PYTHON=... to a Python whose torch supports this GPU.", file=sys.stderr)
        return 1
    gpu = torch.cuda.get_device_name().lower().replace(" ", "-")
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M")
    out = (args.out or RESULTS / gpu / stamp).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for file in ("tests.jsonl", "log.txt"):  # these files are opened in append mode
        (out / file).unlink(missing_ok=True)
    print(f"results: {out}", flush=True)
    print(gpu_cache.unpacked(), flush=True)
    well = run_all(parts(out), out, until - time.monotonic())
    lines = summary(out)
    (out / "summary.txt").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
