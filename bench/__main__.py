"""Benchmark trinn's operators and networks against torch + cuDNN on this GPU.

    python -m bench                       full benchmark, both memory formats; at most 28 minutes
    python -m bench --quick               the most informative cases; less than 8 minutes
    python -m bench 'AlexNet conv' ResNet --arithmetics bf16     only the cases and networks with these words in their name
    python -m bench conv --tune           convolutions only; first `python -m bench.tune`: check the tiles and find the fastest
    python -m bench --compile-only        compile all kernels of the benchmark for an H100 or H200; needs no GPU
    python -m bench report RESULT.json    print the table of an earlier run
    python -m bench report FOLDER         print the summary of a run of `make gpu`

Every result is compared with float64 on the same inputs before it is timed; WRONG results are not timed. torch runs in both
memory formats with cudnn.benchmark on and the same float32 flags, and its faster format is compared with trinn's faster format.
Fused layers and networks are also compared with torch.compile. In eager mode, `trinn.convert(network, fuse=...)` converts
torch's network to trinn's. In the comparison with torch.compile, trinn's side is torch.compile with trinn's backend. An
arithmetic is a dtype with a precision: bf16, fp16, tf32 or fp32. Results are written as JSON to bench/results/ during the run.
"""

import sys

if "--compile-only" in sys.argv:
    from bench.compile import without_gpu  # noqa: F401  # before triton

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import gpu, registry
from bench.time import report, runs
from bench.time.protocol import Machine
from bench.tune import __main__ as tune


def print_report(arguments: Sequence[str]) -> int:
    """Print the table of an earlier run."""
    parser = argparse.ArgumentParser(prog="python -m bench report")
    parser.add_argument("result", type=Path, help="RESULT.json, or the folder of a run of `make gpu`")
    path = parser.parse_args(arguments).result
    try:
        print(*(gpu.summary(path) if path.is_dir() else report.lines_of(report.read(path))), sep="\n")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["report"]:
        return print_report(arguments[1:])
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
    parser.add_argument("--out", type=Path, help="folder for results; default: bench/results")
    parser.add_argument("--architecture", default="sm_90", help="for --compile-only: the target; default: %(default)s")
    parser.add_argument("--gpu", default="", metavar="NAME", help="for --compile-only: use the tiles tuned for this GPU")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.compile_only:
        return runs.compile_only(runs.items_of(args.names, args.quick, args.arithmetics), args.architecture, args.gpu)
    if not torch.cuda.is_available():
        print("No GPU found. --compile-only works without one.", file=sys.stderr)
        return 1
    if args.measure:
        runs.measure(Machine.gpu(), args.quick)
        return 0
    if args.tune:
        tune.main(["--arithmetics", *args.arithmetics, "--", *args.names])
    return runs.run(args, [sys.executable, "-m", "bench"], runs.environment())


if __name__ == "__main__":
    sys.exit(main())
