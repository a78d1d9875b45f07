"""Mutation tests: `make mutants` breaks the sources in one place at a time, and `make test` must fail.

Each mutant replaces a line of the sources in a scratch copy. The tests of its operator run first, and the whole suite only if
they pass. A mutant is caught if a test fails there but passes in an unmodified copy, or if a test hangs or crashes.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests import evidence
from tests.support.record import Mutant, records

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 1200  # seconds
HANGS, CRASHES = "a test hangs", "a test crashes"
# Mutants of code that several operators share. The records of the operators have the others.
SHARED = [
    # index arithmetic
    Mutant("the tap is off by one", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + (tap + 1) * AXIS.dilation", "conv2d"),
    Mutant("dilation is ignored", "kernels/device/indexing.py", "- AXIS.padding + tap * AXIS.dilation", "- AXIS.padding + tap", "pool2d"),
    Mutant("padding is added instead of subtracted", "kernels/device/indexing.py", "small * AXIS.stride - AXIS.padding +", "small * AXIS.stride + AXIS.padding +", "conv2d"),
    Mutant("the pixel after the last is inside the image", "kernels/device/indexing.py", "(position < size)", "(position <= size)", "conv2d"),
    Mutant("a strided gradient uses the wrong phase", "kernels/device/indexing.py", "shifted % AXIS.stride) // AXIS.gcd * AXIS.inverse", "shifted % AXIS.stride) // AXIS.gcd", "conv2d"),
    Mutant("one tap of a pixel is missing", "kernels/device/indexing.py", "hits = cdiv(AXIS.taps - tap, AXIS.tap_step)", "hits = (AXIS.taps - tap) // AXIS.tap_step", "conv2d"),
    Mutant("pixels without taps get one", "kernels/device/indexing.py", "tl.where(shifted % AXIS.gcd == 0, hits, 0)", "hits", "conv2d pool2d"),
    Mutant("rows and columns are swapped", "kernels/device/indexing.py", "return row // height, row % height, pixel % width", "return row // height, pixel % width, row % height", "conv2d"),
    Mutant("the largest number of taps is rounded down", "kernels/device/indexing.py", "return -(-self.taps // self.tap_step)", "return self.taps // self.tap_step", "pool2d"),
    Mutant("TMA: the last tap inside the image is skipped", "kernels/device/indexing.py", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first + 1, 0)", "    first = tl.maximum(first, 0)\n    return first, tl.maximum(tl.minimum(last, taps - 1) - first, 0)", "conv2d_tma"),
    Mutant("TMA: taps outside the image for the first pixel of a tile are skipped", "kernels/device/indexing.py", "first, last = -floor_div(start + reach, STEP), floor_div(size - 1 - start, STEP)", "first, last = -floor_div(start, STEP), floor_div(size - 1 - start, STEP)", "conv2d_tma"),
    Mutant("TMA: dgrad skips taps outside the image for the first pixel of a tile", "kernels/device/indexing.py", "floor_div(start + reach, -STEP)", "floor_div(start, -STEP)", "conv2d_tma"),
    Mutant("TMA wgrad: the first pixel depends on the first tap", "kernels/device/indexing.py", "first = -floor_div(last_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "first = -floor_div(first_tap * AXIS.dilation - AXIS.padding, AXIS.stride)", "conv2d_tma"),
    Mutant("TMA wgrad: the last pixel depends on the last tap", "kernels/device/indexing.py", "last = floor_div(big_size - 1 + AXIS.padding - first_tap * AXIS.dilation, AXIS.stride)", "last = floor_div(big_size - 1 + AXIS.padding - last_tap * AXIS.dilation, AXIS.stride)", "conv2d_tma"),
    Mutant("a digit of a counter passes its end", "kernels/device/indexing.py", "    over = digit >= end", "    over = digit > end", "conv2d_tma"),
    Mutant("a digit of a counter restarts from 0", "kernels/device/indexing.py", "return tl.where(over, first, digit), tl.where(over, 1, 0)", "return tl.where(over, 0, digit), tl.where(over, 1, 0)", "conv2d_tma"),
    Mutant("division rounds towards zero", "kernels/device/indexing.py", "return a // b - (a % b < 0)", "return a // b", "conv2d_tma"),
    # precision and epilogues
    Mutant("the bias is added twice", "kernels/device/epilogue.py", "acc += _load(bias + channel", "acc += 2 * _load(bias + channel", "conv2d"),
    Mutant("sums are rounded to the input's dtype", "kernels/device/precision.py", "return acc + product if APART else product", "return (acc + product if APART else product).to(tl.float16).to(acc.dtype)", "conv2d linear"),
    Mutant("TF32 is used although forbidden", "kernels/device/precision.py", 'return "tf32" if allowed == "tf32" else "tf32x3"', 'return "tf32"', "precision"),
    Mutant("bf16 terms: the product of the second terms is missing", "kernels/device/precision.py", "CROSS_PAIRS = 5", "CROSS_PAIRS = 4", "conv2d_tma"),
    Mutant("bf16 terms: one product is computed twice and another is missing", "kernels/device/precision.py", "(0b01_00_10_00_01 >> 2 * number) & 3", "(0b01_00_10_00_00 >> 2 * number) & 3", "conv2d_tma"),
    Mutant("statistics of no pixels are NaN", "kernels/device/epilogue.py", "tl.maximum(tl.sum(in_result.to(tl.int32), axis=0), 1)", "tl.sum(in_result.to(tl.int32), axis=0)", "conv2d_tma"),
    Mutant("the activation is missing", "kernels/device/epilogue.py", "return activate(z, load_slopes(slopes, slope_stride, channel, exists, z.dtype), ACTIVATION)", "return z", "fused"),
    Mutant("every channel has the first channel's scale", "kernels/device/epilogue.py", "_load(scale + channel,", "_load(scale + channel * 0,", "fused"),
    Mutant("missing pixels count in the variance", "kernels/device/epilogue.py", "deviation = tl.where(in_result[:, None], value - mean[None, :], 0.0)", "deviation = value - mean[None, :]", "fused"),
    Mutant("pooling in a tile selects the last of equal values", "kernels/device/epilogue.py", "first_best = tl.min(tl.where(value == best[:, None, :], row, ROWS), axis=1)", "first_best = tl.max(tl.where(value == best[:, None, :], row, -1), axis=1)", "fused"),
    Mutant("pooling in a tile selects the first row for NaN", "kernels/device/epilogue.py", "last_nan = tl.max(tl.where(value != value, row, -1), axis=1)", "last_nan = 0 * tl.max(tl.where(value != value, row, -1), axis=1)", "fused"),
    Mutant("max pooling ignores NaN", "kernels/device/precision.py", "return (value > best) | (value != value)", "return value > best", "pool2d"),
    Mutant("max pooling selects the last of equal values", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value >= best) | (value != value)", "pool2d"),
    Mutant("max pooling selects the first of two NaN", "kernels/device/precision.py", "return (value > best) | (value != value)", "return (value > best) | ((value != value) & (best == best))", "pool2d"),
    Mutant("average pooling: large integers are converted to float32", "kernels/device/precision.py", "DTYPE.is_int() and value.dtype.is_floating()", "DTYPE.is_int()", "pool2d"),
    Mutant("uint8 results are truncated instead of rounded", "kernels/device/precision.py", "value = tl.floor(value + 0.5)", "value = tl.floor(value)", "upsample2d"),
    # columns of an image
    Mutant("a column past the last is read", "kernels/device/columns.py", "place, c = tl.minimum(place, places - 1), tl.minimum(c, channels - 1)", "c = tl.minimum(c, channels - 1)", "columns"),
    Mutant("columns: the last row of each split is missing", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = tl.minimum(first + rows_per_split - 1, height) - first", "columns pool2d"),
    Mutant("columns: the last split continues past the last row", "kernels/device/columns.py", "steps = tl.minimum(first + rows_per_split, height) - first", "steps = rows_per_split", "columns pool2d"),
    Mutant("columns: every split begins with the first row", "kernels/device/columns.py", "splits - 1) * rows_per_split", "splits - 1) * 0", "columns pool2d"),
    Mutant("columns: image and column are swapped", "kernels/device/columns.py", "n, col = place // width, place % width\n        else:", "n, col = place % width, place // width\n        else:", "columns pool2d"),
    Mutant("columns: channels and images are merged although not contiguous", "kernels/device/columns.py", "strides and all(s[0] == c * s[1] for s in strides)", "strides", "columns pool2d"),
    Mutant("columns: taps count as always inside the image although some are not", "kernels/device/columns.py", "min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)", "axis.taps", "columns pool2d"),
    # sums of splits, gradients of biases, means of planes
    Mutant("partial sums: the first block is missing", "kernels/reduce.py", "for start in range(0, splits, SPLITS):", "for start in range(SPLITS, splits, SPLITS):", "conv2d linear"),
    Mutant("partial sums have 16 bits", "kernels/reduce.py", "    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32\n", "    dtype = total.dtype\n", "conv2d linear"),
    Mutant("the bias's gradient lacks its last block", "kernels/reduce.py", "acc += widen(values[i]).to(ACCUMULATOR)", "acc += tl.where(row + TILE.rows * TILE.ahead < last, widen(values[i]).to(ACCUMULATOR), 0.0)", "conv2d linear"),
    Mutant("the last pixel of a plane is missing", "kernels/device/planes.py", "tl.minimum((split + 1) * grid.pixels_per_split, grid.pixels)", "tl.minimum((split + 1) * grid.pixels_per_split, grid.pixels - 1)", "plane_mean"),
    Mutant("planes are padded to a power of two", "kernels/reduce.py", "tl.reshape(column * pixels + row,", "tl.reshape(column * TILE.pixels + row,", "plane_mean"),
    # tensors and launches
    Mutant("launch cache: the key lacks alignment", "kernels/runtime/launch_cache.py", "arg.stride(), arg.data_ptr() % 16, arg", "arg.stride(), arg", "launch_cache"),
    Mutant("launch cache: the key lacks strides", "kernels/runtime/launch_cache.py", "arg.shape, arg.stride(), ", "arg.shape, ", "launch_cache"),
    Mutant("launch cache: the key lacks precision", "kernels/runtime/launch_cache.py", "float32 = float32 or dtype is torch.float32", "float32 = False", "launch_cache"),
    Mutant("launch cache: a cached call skips Triton's launch hooks", "kernels/runtime/triton_internals.py", "getattr(before, \"calls\", before) or ", "", "launch_cache"),
    Mutant("launch cache: a tensor of unknown origin is cached", "kernels/runtime/launch_cache.py", "if t is tensor), numbers.get(storage))", "if t is tensor), numbers.get(storage, 0))", "launch_cache"),
    Mutant("launchers: a strided vector is read as a contiguous one", "kernels/copy.py", "if vector is None or vector.is_contiguous():", "if True:", "plan"),
    Mutant("launchers: an operator starts its kernels twice", "kernels/runtime/launch.py", "        plan = make_plan(launcher, args, options)", "        start_plan(make_plan(launcher, args, options))\n        plan = make_plan(launcher, args, options)", "interpreted"),
    Mutant("offsets always have 32 bits", "kernels/runtime/layout.py", "return tl.int64 if settings.int64_offsets or exceeds_int32(*tensors) else tl.int32", "return tl.int32", "large_tensors"),
    Mutant("channels_last is not recognised", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return False", "conv2d pool2d"),
    Mutant("channels_last is chosen only if all tensors have it", "kernels/runtime/layout.py", "return any(_has_channels_last_strides(t) for t in tensors)", "return all(_has_channels_last_strides(t) for t in tensors)", "conv2d"),
    Mutant("images of one pixel count as channels_last", "kernels/runtime/layout.py", "if tensor.stride(axis) < least or (axis == 0 and least == tensor.stride(1)):", "if tensor.stride(axis) < least:", "upsample2d"),
    Mutant("axes are merged although not contiguous", "kernels/runtime/layout.py", "if merged and strides == [merged[-1][0] * stride for stride in merged[-1][1]]:", "if merged:", "activation"),
    Mutant("an in-place write is not reported to autograd", "kernels/runtime/op.py", "torch.autograd.graph.increment_version(args[place])", "pass", "activation"),
    # layers
    Mutant("padding='same': the odd pixel is at the near edge", "layers/window.py", "return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)", "return (total[0] - total[0] // 2, total[1] - total[1] // 2), (total[0] // 2, total[1] // 2)", "conv2d"),
    Mutant("autocast casts float64 too", "layers/function.py", "t.is_floating_point() and t.dtype != torch.float64 else t", "t.is_floating_point() else t", "autocast"),
    Mutant("function transforms get the eager form of a Function", "layers/function.py", "if _is_transformed():", "if False:", "function"),
    Mutant("calls move past writes to their operands", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is None:", "backend"),
    Mutant("calls move out of autocast", "layers/backend.py", "if effects is None or node not in nodes and any(effects.meets(other) for other in moved):", "if effects is not None and node not in nodes and any(effects.meets(other) for other in moved):", "backend"),
    Mutant("values with other users are fused", "layers/backend.py", "while len(nodes[-1].users) == 1 and", "while nodes[-1].users and", "backend"),
    Mutant("an in-place sum on shared memory is fused", "layers/backend.py", "node.op.startswith(\"call\") and len(node.users) == 1 for node in same", "len(node.users) == 1 for node in [value]", "backend"),
    Mutant("sums with different strides are fused", "layers/backend.py", "self._alike(user, value, True)", "self._alike(user, value)", "backend"),
    Mutant("a replaced call keeps torch's strides", "layers/backend.py", "        node.meta |= meta\n", "", "backend"),
]  # fmt: skip
MUTANTS = [*SHARED, *(mutant for record in records().values() for mutant in record.mutants)]


class Outcome(NamedTuple):
    """`caught` names the test that failed, if any."""

    mutant: Mutant
    caught: str | None
    seconds: float


def mutated(mutant: Mutant) -> str:
    """The file with the mutation."""
    source = (ROOT / mutant.file).read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the old text occurs {source.count(mutant.old)} times in {mutant.file}")
    return source.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> Outcome:
    """Run the tests on a mutant."""
    start = time.monotonic()
    with copy_of_the_tree() as copy:
        (copy / mutant.file).write_text(mutated(mutant))
        caught = first_failure(copy, *map(path_of_test, mutant.tests.split())) or first_failure(copy)
    if caught not in (None, HANGS, CRASHES) and fails_unmodified(caught):
        raise RuntimeError(f"{mutant.name}: {caught} fails in an unmodified copy too")
    return Outcome(mutant, caught, time.monotonic() - start)


@contextlib.contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "trinn"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out"), symlinks=True)
        yield copy


@functools.cache
def fails_unmodified(test: str) -> bool:
    with copy_of_the_tree() as copy:
        return first_failure(copy, f"tests/{test}") is not None


def path_of_test(name: str) -> str:
    """The path of the file `test_<name>.py`, which is in one of the folders of tests/."""
    (path,) = ROOT.glob(f"tests/*/test_{name}.py")
    return str(path.relative_to(ROOT))


def first_failure(folder: Path, *tests: str) -> str | None:
    """The file and name of the first failure among these tests, or among all tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return HANGS
    if done.returncode == 0:
        return None
    if -done.returncode in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):  # after a write outside of a tensor
        return CRASHES
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ends with {done.returncode}:\n{done.stdout[-2000:]}")
    return failed[1]


def recorded() -> dict[str, list[Any]]:
    """The recorded row of each mutant, by name."""
    path = evidence.DOCS / "evidence" / "mutants.json"
    return {row[0]: row for row in json.loads(path.read_text())["mutants"]} if path.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run mutants whose name and file match this regular expression")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--record", action="store_true", help="record the results; rows of other mutants are kept")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if re.search(options.only, f"{mutant.name} {mutant.file}")]
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, chosen):
            outcomes.append(outcome)
            verdict = f"caught by {outcome.caught}" if outcome.caught else "NOT CAUGHT"
            print(f"{outcome.mutant.name:52} {outcome.mutant.file:28} {outcome.seconds:5.0f} s  {verdict}", flush=True)
    missed = [outcome for outcome in outcomes if not outcome.caught]
    print(f"\n{len(outcomes) - len(missed)} of {len(outcomes)} mutants caught")
    if options.record:
        known = recorded() | {o.mutant.name: [o.mutant.name, o.mutant.file, o.caught, round(o.seconds)] for o in outcomes}
        evidence.record("mutants", {"mutants": [known[mutant.name] for mutant in MUTANTS if mutant.name in known]})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
