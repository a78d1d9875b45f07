"""`python -m bench conv` without a GPU: its steps in the interpreter on a small convolution, time limits, compilation."""

import itertools
import json
import queue
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import conv, registry, tune, workers
from bench.time import report
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import GemmTile

ROOT = Path(__file__).resolve().parents[2]
NAME = "AlexNet conv3 b128"
ENVIRONMENT = {"gpu": "NVIDIA H200", "architecture": "interpreter", "date": "2026-01-02T03:04:05"}

# Worker of the steps check, tune and sweep, on the CPU. Tiles with 5 stages do not compile, tiles with 4 stages crash, wgrad
# tiles with 3 stages are wrong, and large tiles are fast.
CHILD = f"""
import json, os, sys
if "--compile-only" in sys.argv:
    if "--items" in sys.argv:
        for item in map(json.loads, sys.stdin):
            print(json.dumps({{"at": item}}), flush=True)
            print(json.dumps({{"of": item, "result": "no room" if item[-1][4] == 5 else None}}), flush=True)
    sys.exit()
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, {str(ROOT)!r})
from argparse import Namespace
from bench import every_tile, registry, tune, workers
from bench.time import runs
from tests.tools.test_bench import Here, SetClock
from trinn.kernels.conv2d import pointer
from trinn.kernels import reduce
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.settings import settings

small = registry.CASES[{NAME!r}].small()
registry.CASES[small.name], every_tile.SMALL = small, {{small.name: (small, "contiguous")}}

def gemm_tile(product, device):
    global stages
    stages = tuning.gemm_tile(product, device).stages
    if stages == 4: os._exit(9)
    return tuning.gemm_tile(product, device)

def seconds(call):
    tile = settings.tile_of(None, "")
    return 1.0 / (tile.n * tile.k * tile.warps)

pointer.gemm_tile = gemm_tile
pointer.sum_partials = lambda partials, dw: reduce.sum_partials(partials, dw).mul_(1.01 if stages == 3 else 1)
Here.copy_rate = Here.product_rate = lambda self, *_: 1e12
args = Namespace(compile_only=False, architecture="interpreter")
if sys.argv[1] == "check": every_tile.work(args, lambda: Here(SetClock()))
if sys.argv[1] == "tune": tune.work(args, lambda: Here(SetClock(seconds)))
if sys.argv[1] == "sweep": runs.measure(workers.given(), Here(SetClock()), False)
"""
KINDS = ("conv2d float32 ieee scattered", "wgrad float32 ieee scattered")


def commands(child: str) -> dict[str, list[str]]:
    return {step: [sys.executable, "-c", child, step, *["--items"] * (step != "sweep")] for step in conv.STEPS}


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """Arguments for one small convolution, with a few tiles per product."""
    monkeypatch.setitem(registry.CASES, NAME, registry.CASES[NAME].small())
    monkeypatch.setattr(tuning, "TILES", tmp_path / "tiles")
    tune.candidates.cache_clear()
    yield Namespace(names=[f"^{NAME}$"], arithmetics=["fp32"], candidates=6, minutes=5.0, out=tmp_path)
    tune.candidates.cache_clear()


@pytest.mark.long
def test_all_steps(args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong and crashing tiles are rejected and not timed; the fastest of the others is stored; then the sweep measures."""
    assert conv.run(args, conv.STEPS, commands(CHILD), ENVIRONMENT) == 0
    result = report.read(args.out / "nvidia-h200" / "conv.json")
    verdicts = {kind: result["verdicts"][kind] for kind in KINDS}
    assert result["verdicts"] == verdicts
    for kind, tiles in verdicts.items():
        assert [tile for tile, fault in tiles.items() if fault == "no room"] == ["16x16x16 w4 s5"]
        assert [tile for tile, fault in tiles.items() if (fault or "").startswith("crashed")] == ["16x16x16 w4 s4"]
        wrong = [tile for tile, fault in tiles.items() if (fault or "").startswith(f"WRONG, {NAME}: weight is off by")]
        assert wrong == (["16x16x16 w4 s3"] if kind == KINDS[1] else [])
    timed = {tile for times in result["times"].values() for tile in times}
    assert timed == {"16x16x16 w1 s1", "16x16x16 w4 s2", "16x16x16 w4 s3", "16x16x32 w4 s2", "16x32x16 w4 s2"}
    for like, times in result["times"].items():
        right = {tile for tile, fault in verdicts[like.rsplit(" ", 3)[0]].items() if fault is None}
        assert set(times) <= right and all(isinstance(us, float) for us in times.values())

    kept = json.loads(tune.path_of("NVIDIA H200").read_text())["tiles"]
    fastest = {"conv2d": GemmTile(16, 16, 32, 4, 2), "wgrad": GemmTile(16, 32, 16, 4, 2)}
    assert {(like.split()[0], GemmTile(*tile)) for like, tile in kept.items()} == set(fastest.items()) and len(kept) == 3
    assert [row["pass"] for row in result["rows"]] == ["forward", "backward", "dgrad", "wgrad"]
    assert all(len(row["times"]) == 4 and row["name"] == NAME for row in result["rows"]) and not result["left"]
    out = capsys.readouterr().out
    assert "pass  1.00      >= 1.00 x torch: every convolution, float32 without TF32; 4 measured" in out

    assert conv.run(args, conv.STEPS, commands("raise SystemExit('nothing is left to do')"), ENVIRONMENT) == 0
    assert "check: 12 tiles, 0 unchecked" in capsys.readouterr().out


# Worker that passes and times every tile immediately.
QUICK_CHILD = """
import json, sys
for item in map(json.loads, sys.stdin):
    print(json.dumps({"at": item}), flush=True)
    found = None if "--compile-only" in sys.argv or sys.argv[1] == "check" else 10.0
    print(json.dumps({"of": item, "result": found}), flush=True)
"""


@pytest.mark.parametrize("step", ["check", "tune"])
def test_a_step_stops_at_its_time_limit_and_resumes(
    step: str, args: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if step == "tune":
        assert conv.run(args, ["check"], commands(QUICK_CHILD), ENVIRONMENT) == 0
    now = itertools.count(step=10 * 60)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(now))  # each reading of the clock is ten minutes later
        args.minutes = 10 * 60
        assert conv.run(args, [step], commands(QUICK_CHILD), ENVIRONMENT) == 1
    path = args.out / "nvidia-h200" / "conv.json"

    def done() -> dict[str, dict[str, Any]]:
        return report.read(path)["verdicts" if step == "check" else "times"]

    half = done()
    many = sum(map(len, half.values()))
    of = 12 if step == "check" else 18
    assert 0 < many < of and f"{step}: {of - many} left" in capsys.readouterr().out
    args.minutes = 1.0
    assert conv.run(args, [step], commands(QUICK_CHILD.replace("10.0", "20.0")), ENVIRONMENT) == 0
    assert sum(map(len, done().values())) == of
    for key, found in half.items():
        assert done()[key].items() >= found.items()  # not done again


def test_no_line_is_read_after_the_time_limit() -> None:
    """A slow caller always finds a line waiting. It must stop at the time limit nevertheless."""
    lines: queue.Queue[str] = queue.Queue()
    lines.put('{"at": 1}\n')
    assert workers._next(lines, 0.0) is None and workers._next(lines, -1.0) is None
    assert workers._next(lines, 1.0) == {"at": 1}


def test_changed_kernels_are_checked_again(args: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts are reset if the kernels or Triton change; the sweep's times are also reset if the stored tiles change."""
    steps = conv.Steps(args, {}, {"environment": ENVIRONMENT, "of": {}, "verdicts": {}}, args.out)
    before = conv.sources(), conv.sources("NVIDIA H200")
    tune.record("NVIDIA H200", {"a product": GemmTile(16, 16, 16, 4, 2)})
    assert conv.sources() == before[0] and conv.sources("NVIDIA H200") != before[1]
    steps._begin("check", before[0], verdicts={})
    steps.result["verdicts"]["conv2d"] = {}
    steps._begin("check", before[0], verdicts={})
    assert steps.result["verdicts"]
    monkeypatch.setattr(conv, "triton", Namespace(__version__="1.0.0"))
    steps._begin("check", conv.sources(), verdicts={})
    assert not steps.result["verdicts"]


def test_a_wrong_default_tile_fails(args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` fails, and `tune` replaces the wrong default tile even by a slower tile."""
    wrong = QUICK_CHILD.replace("found = None if", "found = 'WRONG' if item[-1][3] == 1 else None if")
    assert conv.run(args, ["check", "tune"], commands(wrong), ENVIRONMENT) == 1
    out = capsys.readouterr().out
    assert (
        out.count("A default tile was rejected: ") == 2
        and "A default tile was rejected: conv2d float32 ieee scattered 16x16x16 w1 s1" in out
    )
    assert len(json.loads(tune.path_of("NVIDIA H200").read_text())["tiles"]) == 3


def test_tuning_requires_checked_tiles(args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert conv.run(args, ["tune"], commands("raise SystemExit('is not called')"), ENVIRONMENT) == 1
    assert "; 3 products have no tile that passed the check" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(conv.torch.cuda, "is_available", lambda: False)
    assert conv.main(["--tune"]) == 1
    assert capsys.readouterr() == ("", "No GPU found. --compile-only works without one.\n")


def test_compile_only() -> None:
    """Compiles one convolution: its default tiles with the small cases, its candidates, and its benchmark case."""
    command = [sys.executable, "-m", "bench", "conv", "--tune", "--compile-only", "--arithmetics", "bf16", "--candidates", "1"]
    done = subprocess.run([*command, "--", "^LeNet conv1 b128$"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check, candidates, case = done.stdout.splitlines()
    assert check.startswith("2 candidates compiled in ") and check.endswith(" s, 0 failed")
    assert candidates.startswith("2 candidates compiled in ") and candidates.endswith(" s, 0 failed")
    assert " of 1 cases and 0 networks compiled for sm_90 in " in case and case.endswith(", 0 faults")
