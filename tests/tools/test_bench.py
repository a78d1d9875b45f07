"""The benchmark without a GPU: its cases on small shapes, its timing protocol with a fake clock, its reports."""

import ast
import contextlib
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import __main__ as benchmark
from bench import registry, workers
from bench.registry import CASES, Case, Work
from bench.time import case as measuring
from bench.time import networks, protocol, report, runs
from bench.time.case import Contender, Instance
from bench.time.protocol import Machine, interleaved
from bench.workers import worked_off
from trinn.kernels import ops
from trinn.layers import convert
from trinn.layers.report import rows as layers_of
from trinn.models import LeNet

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("contiguous", "channels_last")


class SetClock:
    """A fake clock: the function `seconds` gives the time of each call. `samples` lists the timed calls."""

    def __init__(self, seconds: Callable[[Any], float] = lambda call: 1e-3) -> None:
        self.seconds_of, self.samples = seconds, list[list[Any]]()

    def seconds(self, calls: Sequence[Any], ahead: bool) -> float:
        self.samples.append(list(calls))
        return sum(map(self.seconds_of, calls))


class Here(Machine):
    """The CPU of this machine as the measuring device."""

    def __init__(self, clock: Any) -> None:
        super().__init__("cpu", clock)

    def graphed(self, step: protocol.Call) -> protocol.Call:
        return step


def small_cases() -> Iterator[Any]:
    """Yield the shrunk cases without duplicates."""
    known = set()
    for case in (case.small() for case in CASES.values()):
        like = repr((case.op, case.make(registry.SIDES["torch"]), case.inputs))
        if like not in known:
            yield pytest.param(case, id=case.name)
        known.add(like)


@pytest.mark.parametrize("case", list(small_cases()))
def test_both_sides_compute_the_same(case: Case) -> None:
    for layout in FORMATS if len(case.inputs[0]) == 4 else FORMATS[:1]:
        ours, torchs = (Instance(case, side, torch.float32, layout, "cpu").results() for side in registry.SIDES)
        checked = measuring.check(ours, torchs, *measuring.exact_results(case, torch.float32, "cpu"))
        assert checked["wrong"] is None and checked["strides"] is None
        assert "output" in checked["errors"] and len(checked["errors"]) >= (2 if case.inputs else 1)


@pytest.mark.parametrize("name", {case.op: name for name, case in CASES.items()}.values())
def test_passes_return_the_checked_results(name: str) -> None:
    """Each call of a pass returns the results that were checked, also when repeated."""
    case = CASES[name].small()
    for side in registry.SIDES:
        results = Instance(case, side, torch.float32, "contiguous", "cpu").results()
        for what in case.works:
            instance = Instance(case, side, torch.float32, "contiguous", "cpu")
            call = instance.call(what)
            first = call()
            if what in ("forward", "inference"):
                assert torch.equal(first, results["output"]) or what == "inference"  # type: ignore[arg-type]
                continue
            second = call()
            wanted = list(instance.wanted(what))
            assert len(wanted) == len(first)  # type: ignore[arg-type]
            for key, gradient, again in zip(wanted, first, second, strict=True):  # type: ignore[call-overload]
                assert torch.equal(gradient, results[key]) and torch.equal(gradient, again), f"{side} {what} {key}"


def test_passes_compute_the_gradients_of_training() -> None:
    """A network's first layer has no input gradient. Other layers have gradients of input, weight and bias."""
    conv1, conv2 = (
        Instance(CASES[name].small(), "torch", torch.float32, "contiguous", "cpu")
        for name in ("AlexNet conv1 b128", "AlexNet conv2 b128")
    )
    assert set(conv1.wanted("backward")) == {"weight", "bias"}
    assert (
        conv1.case.works["wgrad"] == conv1.case.works["backward"]
    )  # without an input gradient, wgrad is the whole backward pass
    assert set(conv2.wanted("backward")) == {"input 0", "weight", "bias"}
    assert set(conv2.wanted("dgrad")) == {"input 0"} and set(conv2.wanted("wgrad")) == {"weight", "bias"}


@pytest.mark.parametrize("what", ["dgrad", "wgrad", "backward"])
def test_each_backward_pass_launches_its_kernels(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """dgrad and wgrad, half a backward pass each, launch one kernel; backward launches both."""
    call = Instance(CASES["AlexNet conv2 b128"].small(), "ours", torch.float32, "contiguous", "cpu").call(what)
    passes: list[str] = []

    def recording(name: str, launcher: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def launch(*args: object) -> Tensor:
            passes.append(name)
            return launcher(*args)

        return launch

    for name in ("conv2d_dgrad", "conv2d_wgrad"):
        monkeypatch.setattr(ops, name, recording(name, getattr(ops, name)))
    call()
    assert passes == [f"conv2d_{part}" for part in ("dgrad", "wgrad") if what in (part, "backward")]


def test_shrunk_and_quick_cases() -> None:
    """Shrinking keeps names, operators and passes. The cases of --quick exist, with their dtypes and precisions."""
    for name, case in CASES.items():
        small = case.small()
        assert (small.name, small.op, small.first, list(small.works)) == (name, case.op, case.first, list(case.works))
        assert sum(math.prod(shape) for shape in small.inputs) < 3000
    for name, arithmetics in registry.QUICK.items():
        assert set(arithmetics) <= set(CASES[name].arithmetics), name
    assert set(networks.QUICK) <= set(networks.MODELS)
    compiled = [item for item in runs.items_of([], True, ["bf16"]) if item[3] == "compiled"]
    assert all(kind == "model" or CASES[name].fused for kind, name, *_ in compiled) and len(compiled) > 3
    assert [item[1:] for item in runs.items_of(["^linear$", "^LeNet b128$"], True, ["bf16"])] == [
        ["AlexNet linear1 b128", "bf16", "eager"], ["LeNet linear1 b128", "bf16", "eager"], ["LeNet b128", "bf16", "eager"],
    ]  # fmt: skip


def test_tuning_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runs, "environment", dict)
    monkeypatch.setattr(benchmark.tune, "main", log.append)
    monkeypatch.setattr(runs, "run", lambda *_: len(log))
    assert benchmark.main(["conv", "--tune", "--arithmetics", "bf16"]) == 1
    assert log == [["--arithmetics", "bf16", "--", "conv"]]


@pytest.mark.parametrize(
    ("name", "what", "work"),
    [
        # 128 x 64 x 55 x 55 outputs with 3 x 11 x 11 products each
        ("AlexNet conv1 b128", "forward", Work(128 * 3 * 224**2 + 64 * 364 + 128 * 64 * 55**2, 2 * 128 * 64 * 55**2 * 363)),
        ("ResNet stage 2 3x3 stride 2", "dgrad", Work(64 * 128 * (56**2 + 28**2) + 128**2 * 9, 2 * 64 * 128 * 28**2 * 1152)),
        ("depthwise 3x3 128x56", "forward", Work(2 * 64 * 128 * 56**2 + 128 * 9, 2 * 64 * 128 * 56**2 * 9)),
        # each of the 4 x 4 inputs is multiplied by 4 x 4 taps
        ("DCGAN 1024-512", "forward", Work(128 * (1024 * 16 + 512 * 64) + 2**23, 2 * 128 * 1024 * 16 * 512 * 16)),
        ("ResNet stem pool", "backward", Work(64 * 64 * (112**2 + 56**2), codes=64 * 64 * 56**2)),
        ("bilinear 64x128", "forward", Work(5 * 16 * 64 * 128**2)),
        ("ResNet batch norm 256x56", "training", Work(8 * 64 * 256 * 56**2)),
        ("ResNet linear", "backward", Work(64 * 1000 + 2 * 64 * 2048 + 2 * 2048 * 1000 + 1000, 4 * 64 * 2048 * 1000)),
    ],
)  # fmt: skip
def test_work_by_hand(name: str, what: str, work: Work) -> None:
    assert CASES[name].works[what] == work
    assert CASES["ResNet stem pool"].works["forward"].bytes(2) == 2 * 64 * 64 * (112**2 + 56**2) + 64 * 64 * 56**2


def test_contenders_are_interleaved() -> None:
    """Each round times all contenders and starts with another one; times are medians and quartiles."""
    clock = SetClock(lambda call: {"a1": 1e-3, "a2": 3e-3, "b": 4e-3}[call.name])
    contenders = {"a": [_named("a1"), _named("a2")], "b": [_named("b")]}
    times = interleaved(contenders, clock, rounds=4, least=7e-3)
    samples = [" ".join(call.name for call in sample) for sample in clock.samples]
    assert samples[:2] == ["a1 a2 a1", "b b b"]  # calibration: 7 ms take four calls of a, or two of b
    assert samples[2:] == ["a2 a1 a2 a1", "b b", "b b", "a2 a1 a2 a1", "a2 a1 a2 a1", "b b", "b b", "a2 a1 a2 a1"]
    assert times["a"] == pytest.approx((2e-3, 2e-3, 2e-3)) and times["b"] == pytest.approx((4e-3, 4e-3, 4e-3))


def test_quartiles() -> None:
    """Five samples of 1 to 5 seconds, after the calibration."""
    seconds = iter([1.0, 1.0, 1.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    times = interleaved({"a": [_named("a")]}, SetClock(lambda call: next(seconds)), rounds=5)
    assert times["a"]._asdict() == {"low": 2.0, "median": 3.0, "high": 4.0}


def _named(name: str) -> Any:
    def call() -> None:
        return None

    call.name = name  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("late", [0, 2, 99])
def test_a_sample_is_discarded_if_the_gpu_did_not_wait(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the GPU woke up before all calls were queued, its next sleep is twice as long. The tenth failure raises."""
    log: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def query(self) -> bool:
            return sum(isinstance(entry, int) for entry in log) <= late

        def elapsed_time(self, end: "Event") -> float:
            return 2.0  # milliseconds

    fake = SimpleNamespace(Event=Event, _sleep=log.append, synchronize=lambda: None)
    monkeypatch.setattr(protocol, "torch", SimpleNamespace(cuda=fake))
    clock, call = protocol.EventClock(), lambda: log.append("call")
    if late == 99:
        with pytest.raises(RuntimeError, match="its time on the GPU is unknown"):
            clock.seconds([call], ahead=True)
        return
    assert clock.seconds([call, call], ahead=True) == 2e-3
    assert log == [x for i in range(late + 1) for x in ((1 << 20) << i, "record", "call", "call", "record")]
    log.clear()
    assert clock.seconds([call], ahead=False) == 2e-3 and log == ["record", "call", "record"]


def test_measurements_read_no_cpu_clock() -> None:
    """Times in results come from a Clock. Only time limits use time.monotonic, and only launch_path.py times Python."""
    limits = {"bench/time/runs", "bench/tune/__main__"}
    measuring = {"bench/__main__", "bench/registry", "bench/shapes", "bench/test_registry"}
    for path in (ROOT / "bench").rglob("*.py"):
        name, nodes = str(path.relative_to(ROOT).with_suffix("")), list(ast.walk(ast.parse(path.read_text())))
        attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        imported = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        if name != "bench/launch_path":
            assert not imported & {"timeit", "triton.testing"} and not {a for a in attributes if "triton.testing" in a}, path
        read = {a for a in attributes if a.startswith("time.") and "time" in imported}
        if name in limits:
            assert read == {"time.monotonic"}, path
        elif name in measuring or name.startswith(("bench/time/", "bench/tune/")):
            assert not read, path


def test_rotated_inputs_exceed_the_cache() -> None:
    machine = Machine("cpu", SetClock(), cache=50_000_000)
    assert machine.sets(1_000_000_000) == 2 and machine.sets(50_000_000) == 3
    assert machine.sets(10_000_000) == 11 and machine.sets(1) == protocol.MOST_SETS
    case, ours = CASES["ResNet ReLU 256x56"].small(), Contender("ours", "eager", "contiguous")
    calls: list[Any] = measuring.calls_of(case, ours, "forward", torch.float32, "cpu", 3)
    assert len({float(call.args[0].detach().sum()) for call in calls}) == 3


def test_rows_of_a_case() -> None:
    clock = SetClock()
    case = CASES["ResNet stage 2 3x3 stride 2"].small()
    found = list(measuring.rows_of(case, "fp32", Here(clock), ["forward", "backward"], rounds=3))
    assert [row["pass"] for row in found] == ["forward", "backward"]
    for row in found:
        json.dumps(row)
        contenders = {(t["side"], t["layout"]) for t in row["times"]}
        assert contenders == {(side, layout) for side in registry.SIDES for layout in FORMATS} and not row["failed"]
        assert all(t["median"] == pytest.approx(1e-3) for t in row["times"])
        assert (row["bytes"], row["flops"]) == (case.works[row["pass"]].bytes(4), case.works[row["pass"]].flops)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conv2d(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            y = super().forward(input)
            return y * 1.001 if input.is_contiguous() else y

    monkeypatch.setitem(registry.SIDES, "ours", SimpleNamespace(Conv2d=Conv2d))
    (row,) = measuring.rows_of(CASES["ResNet stage 1 1x1 64-64"].small(), "fp32", Here(SetClock()), ["forward"], rounds=3)
    assert "output is off by" in row["checked"]["contiguous"]["wrong"] and row["checked"]["channels_last"]["wrong"] is None
    assert [(t["side"], t["layout"]) for t in row["times"]] == [("ours", "channels_last"), *(("torch", f) for f in FORMATS)]
    assert any("WRONG in contiguous" in line for line in report.lines_of(_result([row])))


def test_results_that_change_while_timed_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is right in the check, and has different bits after three calls."""
    calls = 0

    class ReLU(nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return super().forward(input) * (1 if calls < 4 else 1 + 1e-6)

    monkeypatch.setitem(registry.SIDES, "ours", SimpleNamespace(ReLU=ReLU))
    (row,) = measuring.rows_of(CASES["ResNet ReLU 256x56"].small(), "fp32", Here(SetClock()), ["forward"], rounds=3)
    assert all(c["wrong"] == "output, input 0: bits differ from the checked run" for c in row["checked"].values())
    assert {t["side"] for t in row["times"]} == {"torch"}


def test_failures_are_reported_and_other_contenders_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(torch, "compile", fails)
    case = CASES["ResNet batch norm, ReLU 128x28"].small()
    found = list(measuring.rows_of(case, "fp32", Here(SetClock()), ["training"], "compiled", rounds=3))
    assert found[0]["failed"] == {f"torch compiled {layout}": "RuntimeError: out of memory" for layout in FORMATS}
    assert {t["side"] for t in found[0]["times"]} == {"ours"}


def test_nan_is_wrong() -> None:
    nan, one = torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 1.0])
    assert not measuring.errors_of(nan, one, one.double()).right and measuring.errors_of(one, one, one.double()).right
    assert not measuring.errors_of(one * 1.1, one, one.double()).right
    assert not measuring.errors_of(one.double(), one, one.double()).right  # the dtype differs from torch's


def test_truncation_to_tf32_is_timed_and_marked() -> None:
    """An error that truncation to TF32 explains passes and is marked. A larger error is wrong."""
    exact, rounded, truncated = (torch.full((2,), value, dtype=torch.float64) for value in (1.0, 1.0002, 1.0006))
    results = [{"output": t} for t in (truncated.float(), rounded.float(), exact, truncated)]
    checked = measuring.check(*results)
    assert checked["wrong"] is None and checked["truncated"] == ["output"]
    assert measuring.check(*results[:3])["wrong"] is not None
    assert measuring.check({"output": truncated.float() + 1e-3}, *results[1:])["wrong"] is not None
    (line,) = report.remarks({"checked": {"contiguous": checked}, "failed": {}})
    assert "truncation" in line and "output" in line


SMALL_MODELS = {
    "LeNet": networks.Model(lambda: LeNet(nn=nn), 2, (1, 32, 32), 10),
    "ResNet": networks.Model(lambda: networks.ResNet((1, 1), 2, 5), 2, (3, 24, 24), 5),
}


@pytest.mark.parametrize("name", ["LeNet", pytest.param("ResNet", marks=pytest.mark.long)])
def test_rows_of_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # conftest's small tiles
    model = SMALL_MODELS[name]
    found = list(networks.rows_of(name, model, "fp32", Here(SetClock()), rounds=3))
    assert [row["pass"] for row in found] == list(networks.PASSES)
    for row in found:
        json.dumps(row)
        assert not row["failed"] and [checked["wrong"] for checked in row["checked"].values()] == [None, None]
        assert len(row["times"]) == 2 * 2 * 2  # sides, modes, memory formats


def test_resnet_50_has_torchvisions_size() -> None:
    with torch.device("meta"):
        network = networks.ResNet()
    assert sum(p.numel() for p in network.parameters()) == 25_557_032  # torchvision's
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_our_networks_are_fused() -> None:
    """All batch norms of ResNet-50 are fused: with a ReLU, or without one in a shortcut and at the end of a block."""
    run = networks.Run(networks.MODELS["ResNet-50 b64"], "ours", torch.bfloat16, "channels_last", "meta")
    run.step("training", "eager", Here(SetClock()))()
    assert not [module for module in run.network.modules() if type(module) in convert.OURS]
    fused = Counter(row.fused.count(",") + 1 for row in layers_of(run.network) if row.kind == "BatchNorm2d" and row.fused)
    assert fused == {2: 1 + 2 * 16, 1: 4 + 16}
    assert not any(p.grad is None for p in run.network.parameters())


CHILD = """
import json, os, sys, time
for item in map(json.loads, sys.stdin):
    print(json.dumps({"at": item}), flush=True)
    if item == "crashes": print("so it goes", file=sys.stderr); os._exit(9)
    if item == "hangs": time.sleep(60)
    print("not a line of ours", flush=True)
    print(json.dumps({"part": "half of " + item}), flush=True)
    print(json.dumps({"of": item, "result": item.upper()}), flush=True)
    if item == "breaks": os._exit(3)
"""


def test_work_continues_after_crashes() -> None:
    items = ["one", "crashes", "breaks", "two", "hangs", "three"]
    found = list(worked_off(items, [sys.executable, "-c", CHILD], lambda item: 1.0 if item == "hangs" else 60.0))
    done = [item for item in items if item not in ("crashes", "hangs")]
    assert [f for f in found if f[1]] == [(i, r, None) for i in done for r in (f"half of {i}", i.upper())]
    assert [f for f in found if f[2]] == [
        ("crashes", None, "crashed, exit status 9: so it goes"),
        ("hangs", None, "took more than 1 s"),
    ]


def test_work_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is killed in the middle of an item."""
    now, popen, wait = 0.0, subprocess.Popen, workers._next
    started: list[Any] = []
    waits: list[float] = []

    def start(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, **options))
        return started[-1]

    def next_line(lines: Any, patience: float) -> Any:
        waits.append(patience)
        return wait(lines, patience)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(workers, "_next", next_line)
    found = []
    for item, result, fault in worked_off(["one", "hangs", "two"], [sys.executable, "-c", CHILD], lambda item: 60.0, 30.0):
        found.append((item, result, fault))
        now = 30.0 if result == "ONE" else 0.0
    assert found == [("one", "half of one", None), ("one", "ONE", None)]
    assert waits[:3] == [30.0] * 3 and set(waits[3:]) == {0.0}
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_no_line_is_read_after_the_time_limit() -> None:
    """A slow caller always finds a line waiting. It must stop at the time limit nevertheless."""
    lines: queue.Queue[str] = queue.Queue()
    lines.put('{"at": 1}\n')
    assert workers._next(lines, 0.0) is None and workers._next(lines, -1.0) is None
    assert workers._next(lines, 1.0) == {"at": 1}


PARALLEL = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from bench.workers import do_side_by_side
def do(item):
    if item == 7: os._exit(9)
    if item == 9: raise ValueError("no such thing")
    if item == "starts": return subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid
    return 2 * item
do_side_by_side(do)
"""


def test_parallel_work_continues_after_crashes() -> None:
    """Results are in order, also with more items than `at_once`. A process that dies loses only its item."""
    command = [sys.executable, "-c", PARALLEL]
    found = list(worked_off(range(40), command, lambda item: 1.0 if item == 7 else 60.0, at_once=16))
    assert [f[0] for f in found] == list(range(40))
    assert found.pop(9)[1] == "ValueError: no such thing" and found.pop(7) == (7, None, "took more than 1 s")
    assert all(result == 2 * item for item, result, _ in found)


def test_child_processes_of_workers_are_killed() -> None:
    ((_, process, _),) = worked_off(["starts"], [sys.executable, "-c", PARALLEL], lambda item: 60.0)
    with contextlib.suppress(ProcessLookupError):  # the process has already ended
        ended, _, _ = select.select([os.pidfd_open(process)], [], [], 60.0)
        assert ended


def _row(name: str, ours: float, torchs: float, **more: Any) -> dict[str, Any]:
    """Return a row with these times in seconds for contiguous tensors; channels_last takes 25 % longer on both sides."""
    spread = {"low": 0.9, "high": 1.1}
    mode, against = more.get("mode", "eager"), more.get("against", "eager")
    times = [
        {"side": side, "mode": m, "layout": layout, "median": t * f} | {key: t * f * by for key, by in spread.items()}
        for side, m, t in (("ours", mode if against == "eager" else "eager", ours), ("torch", mode, torchs))
        for layout, f in zip(FORMATS, (1.0, 1.25), strict=True)
    ]
    return {
        "name": name, "op": "relu", "pass": "forward", "arithmetic": "bf16", "against": "eager", "bytes": 3_000_000_000,
        "flops": 0, "sets": 2, "times": times, "failed": {},
        "checked": {layout: {"errors": {}, "wrong": None, "strides": None} for layout in FORMATS},
    } | {key: value for key, value in more.items() if key != "mode"}  # fmt: skip


def _result(found: list[dict[str, Any]]) -> report.Result:
    ceilings = {"copy": 3e12, "product": {"bf16": 500e12}}
    return {"environment": {"gpu": "NVIDIA H200"}, "ceilings": ceilings, "rows": found, "failed": [], "left": []}


def test_report() -> None:
    """Ratios compare the faster format of each side. The floor is the larger of those for bytes and operations."""
    found = [
        _row("one", 1.25e-3, 2.5e-3),
        _row("two", 4e-3, 2e-3),
        _row("three", 1e-3, 3e-3, op="conv2d", flops=10**12, bytes=10**6),
        _row("LeNet b128", 1e-3, 1.6e-3, op="model", mode="graphed", bytes=0, **{"pass": "training"}),
    ]
    result = _result(found)
    one, two, three, eager, graphed = report.comparisons(result)
    assert one.ratio == 2.0 and one.floor == pytest.approx(1e-3) and two.ratio == 0.5
    assert three.floor == pytest.approx(2e-3) and graphed.floor is None
    assert eager.ours is None and math.isnan(eager.ratio) and graphed.ratio == pytest.approx(1.6)
    text = "\n".join(report.lines_of(result))
    assert "measured here: 3.00 TB/s in a copy; 500 TFLOP/s in bf16 in a matrix product" in text
    (line,) = (line for line in text.splitlines() if line.startswith("one "))
    assert line.split()[1:] == ["forward", "bf16", "eager", "1250.0n", "10", "80", "2500.0n", "10", "2.00"]
    assert report.geomean([0.5, 2.0, 8.0]) == pytest.approx(2.0) and report.geomean([0.0, 2.0]) == 0.0
    (line,) = (line for line in text.splitlines() if line.startswith("relu "))
    assert line.split() == ["relu", "forward", "eager", "two", "forward", "bf16", "2/2", "1.00", "0.50"]


def test_stored_results_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Every committed result has a report and a summary, with the number of its comparisons."""
    paths = list((ROOT / "bench" / "results").rglob("*-quick.json"))
    for path in paths:
        assert benchmark.main(["report", str(path)]) == 0
        found = report.comparisons(report.read(path))
        lines = capsys.readouterr().out.splitlines()
        assert found and all(any(line.startswith(f"{c.row['name']} ") for line in lines) for c in found)
        timed = [c for c in found if c.ours and c.torchs]
        assert benchmark.main(["report", str(path.parents[1])]) == 0
        assert f"bench: {len(timed)} comparisons, " in capsys.readouterr().out
    assert paths


def test_other_files_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    for name in ("a.json", "b.json"):
        with pytest.raises(SystemExit):
            benchmark.main(["report", str(tmp_path / name)])
        assert name in capsys.readouterr().err


FAKE = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
if "--measure" in sys.argv:
    for item in map(json.loads, sys.stdin):
        print(json.dumps({{"at": item}}), flush=True)
        kind, name, arithmetic, against = item
        if kind == "ceilings":
            part = {{"copy": 3e12, "product": {{}}}}
        else:
            part = {{"name": name, "op": "relu", "pass": "forward", "arithmetic": arithmetic, "against": against, "bytes": 3e9,
                    "flops": 0, "sets": 2, "checked": {{}}, "failed": {{}}, "times": []}}
        if name.endswith("2048x7"): sys.exit("a bad kernel")
        print(json.dumps({{"part": part}}), flush=True)
        print(json.dumps({{"of": item, "result": None}}), flush=True)
else:
    assert sys.argv[1] == "--compile-only" and sys.argv[2:4] == ["--gpu", "NVIDIA H200"]
"""


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Crashes are listed, and the other rows are measured."""
    args: Any = SimpleNamespace(names=["batch norm .*x7"], quick=False, arithmetics=["bf16", "fp32"], minutes=1.0, out=tmp_path)
    environment = {"gpu": "NVIDIA H200", "architecture": "sm_90", "date": "2026-01-02T03:04:05"}
    assert runs.run(args, [sys.executable, "-c", FAKE], environment) == 1
    result = report.read(tmp_path / "nvidia-h200" / "20260102T0304.json")
    assert result["ceilings"]["copy"] == 3e12 and result["left"] == []
    assert [(row["name"][-6:], row["arithmetic"]) for row in result["rows"]] == [(" 512x7", "bf16"), (" 512x7", "fp32")]
    assert [failure["item"][1:3] for failure in result["failed"]] == [["ResNet batch norm 2048x7", a] for a in ("bf16", "fp32")]
    assert "a bad kernel" in capsys.readouterr().out


def test_complete_runs() -> None:
    """A failed contender of torch does not make a run incomplete."""
    row = _row("one", 1e-3, 1e-3)
    assert runs.is_whole(_result([row, row | {"failed": {"torch compiled contiguous": "why"}}]))
    wrong: dict[str, Any] = {"contiguous": {"errors": {}, "wrong": "output is off", "strides": None}}
    others: tuple[dict[str, Any], ...] = {"failed": {"ours eager contiguous": "why"}}, {"checked": wrong}
    for other in others:
        assert not runs.is_whole(_result([row, row | other]))
    for key in ("failed", "left"):
        assert not runs.is_whole(_result([row]) | {key: [["case"]]})


def test_an_error_ends_only_its_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def rows_of(case: Case, *args: Any) -> Iterator[dict[str, Any]]:
        yield {"name": case.name}
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(runs, "rows_of", rows_of)
    items = [["case", "ResNet ReLU 256x56", "bf16", "eager"], ["case", "ResNet stem", "bf16", "eager"]]
    monkeypatch.setattr(sys, "stdin", map(json.dumps, items))
    runs.measure(Here(SetClock()), quick=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        line
        for item in items
        for line in ({"at": item}, {"part": {"name": item[1]}}, {"of": item, "result": "ValueError: no such thing"})
    ]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--quick"]) == 1
    assert capsys.readouterr() == ("", "No GPU found. --compile-only works without one.\n")


def test_compile_only() -> None:
    command = [sys.executable, "-m", "bench", "--compile-only", "--arithmetics", "bf16", "--", "^LeNet (pool1|linear1) b128$"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " of 2 cases and 0 networks compiled for sm_90 in " in done.stdout and done.stdout.endswith(", 0 faults\n")
    assert int(done.stdout.split()[0]) >= 6  # pooling and linear, forward and backward
