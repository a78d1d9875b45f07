"""Benchmark trinn's operators and networks against torch + cuDNN on this GPU.

    python -m bench                       full benchmark, both memory formats; at most 28 minutes
    python -m bench --quick               the most informative cases; less than 8 minutes
    python -m bench 'AlexNet conv' ResNet --arithmetics bf16     only the cases and networks with these words in their name
    python -m bench conv --tune           convolutions only; first `python -m bench.tune`: check the tiles and find the fastest
    python -m bench --compile-only        compile all kernels of the benchmark for an H100 or H200; needs no GPU
    python -m bench report RESULT.json    print the table of an earlier run
    python -m bench report FOLDER         print the summary of a run of `make gpu`
    python -m bench plot RESULT.json      plot an earlier run, into a folder beside it or into --out

Every result is compared with float64 on the same inputs before it is timed; WRONG results are not timed. torch runs in both
memory formats with cudnn.benchmark on and the same float32 flags, and its faster format is compared with trinn's faster format.
Fused layers and networks are also compared with torch.compile. In eager mode, `trinn.convert(network, fuse=...)` converts
torch's network to trinn's. In the comparison with torch.compile, trinn's side is torch.compile with trinn's backend. An
arithmetic is a dtype with a precision: bf16, fp16, tf32 or fp32. Results are written as JSON to bench/results/ during the run;
`--resume` continues an interrupted run.
"""

import sys

if "--compile-only" in sys.argv:
    from bench.compile import without_gpu  # noqa: F401  # before triton

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import gpu, registry, workers
from bench.time import report, runs
from bench.time.protocol import Machine
from bench.tune import __main__ as tune

MINUTES = {True: 7.5, False: 28.0}  # time limit with and without --quick


def run(args: argparse.Namespace, command: Sequence[str], environment: dict[str, Any]) -> int:
    """Compile, measure, write and print. Return the exit status. `command` runs this module."""
    start = time.monotonic()
    items = runs.items_of(args.names, args.quick, args.arithmetics)
    if not items:
        print("No case or network matches these names and arithmetics.", file=sys.stderr)
        return 2
    result = runs.begun(environment, args.resume)
    stamp = re.sub(r"\W", "", environment["date"][:16])
    path = args.resume or runs.folder_of(environment, args.out) / f"{stamp}{'-quick' if args.quick else ''}.json"
    result["left"] = [item for item in items if item not in result["done"]]
    quick = ["--quick"] * args.quick
    compiling = [*command, "--compile-only", "--gpu", environment["gpu"], "--architecture", environment["architecture"], *quick]
    compiling += ["--arithmetics", *args.arithmetics, "--", *args.names]
    until = start + 60 * (args.minutes or MINUTES[args.quick])
    runs.fill(result, path, compiling, [*command, *quick, "--measure"], args.quick, until)
    print("", *report.lines_of(result), "", path, sep="\n")
    return 0 if runs.is_whole(result) else 1


def read_again(kind: str, arguments: Sequence[str]) -> int:
    """Print the table of an earlier run, or draw its plots."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {kind}")
    parser.add_argument("result", type=Path, help="RESULT.json; for a report also the folder of a run of `make gpu`")
    parser.add_argument("--out", type=Path, help="folder for plots; default: beside the result, with its name")
    args = parser.parse_args(arguments)
    try:
        if args.result.is_dir():
            lines: Any = gpu.summary(args.result)
        elif kind == "report":
            lines = report.lines_of(report.read(args.result))
        else:
            lines = report.plots_of(report.read(args.result), args.out or args.result.with_suffix(""))
        print(*lines, sep="\n")
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
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="regular expressions; only cases and networks with a matching name or operator")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the most informative cases, in less than 8 minutes")
    parser.add_argument("--tune", action="store_true", help="check and tune the tiles first: at most 16 minutes more")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; time nothing")
    parser.add_argument("--arithmetics", nargs="+", choices=registry.PRODUCTS, default=registry.PRODUCTS, metavar="NAME",
                        help="bf16, fp16, tf32, fp32; default: all")  # fmt: skip
    parser.add_argument("--minutes", type=float, help="time limit; default: 7.5 for --quick, else 28")
    parser.add_argument("--resume", type=Path, metavar="RESULT.json", help="continue this run: add the missing rows")
    parser.add_argument("--out", type=Path, help="folder for results; default: bench/results")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only: the target; default: %(default)s")
    parser.add_argument("--gpu", default="", metavar="NAME", help="for --compile-only: use the tiles tuned for this GPU")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not (args.compile_only or torch.cuda.is_available()):
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    if args.measure:
        runs.measure(workers.given(), Machine.gpu(), args.quick)
        return 0
    if args.tune:
        options = ["--compile-only", "--architecture", args.architecture] if args.compile_only else []
        options += ["--out", str(args.out)] if args.out else []
        tune.main([*options, "--arithmetics", *args.arithmetics, "--", *args.names])
    if args.compile_only:
        return runs.compile_only(runs.items_of(args.names, args.quick, args.arithmetics), args.architecture, args.gpu)
    return run(args, [sys.executable, "-m", "bench"], runs.environment())


if __name__ == "__main__":
    sys.exit(main())
