"""bench/time/rates.py: its TMA copies are right and compile to the intended instructions, and the rates are reported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.time import rates
from bench.time.protocol import Machine
from trinn.kernels.runtime.interpreter import INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cpu" if INTERPRETED else "cuda"
# The product axes have at least 16 elements, so that the kernels also compile on a GPU.
SMALL = {"SOURCE": (4, 4, 8, 16), "COPIES": 4, "BOX": (1, 4, 8, 16)}


@pytest.mark.parametrize("box", [(1, 4, 8, 16), (4, 2, 4, 16)], ids=str)
def test_boxes_are_copied(box: tuple[int, ...]) -> None:
    programs, steps = 3, 5  # more copies than TMA boxes (blocks moved by one TMA copy)
    source = torch.randn(4, 4, 8, 16).mul(8).round().to(DEVICE, torch.half)
    sums = torch.empty(programs, 32, device=DEVICE)
    rates.copy_boxes(source, torch.ones(rates.ROWS, 16, dtype=torch.half, device=DEVICE), sums, box, steps)
    images, rows, columns, _ = box
    boxes = [
        source[n : n + images, h : h + rows, w : w + columns].float().sum(-1).flatten()
        for n in range(0, 4, images)
        for h in range(0, 4, rows)
        for w in range(0, 8, columns)
    ]
    for program in range(programs):
        wanted = [boxes[(step * programs + program) % len(boxes)] for step in range(steps)]
        assert torch.equal(sums[program], torch.stack(wanted).sum(0))


COMPILED = """
import json
from bench.compile import without_gpu
import triton
from bench.compile.code import Driver, read_cubin, read_loops
from bench.time import rates
from trinn.kernels.runtime.launch import intercepted

triton.runtime.driver.set_active(Driver("sm_90"))
found = []
with intercepted(lambda k, _, args, named: found.append(k.warmup(*args, grid=(1,), **named)), "sm_90"):
    rates.copy_boxes(*rates.tensors("meta", 1), rates.BOX, rates.COPIES)
(binary,) = found
(loop,) = read_loops(binary.asm["ttgir"])
spilled = read_cubin(binary.asm["cubin"], binary.asm["ptx"]).spilled
print(json.dumps(loop._asdict() | {"spilled": spilled, "shared": binary.metadata.shared}))
"""


def test_copies_compile_as_intended() -> None:
    """Pipelined TMA copies into shared memory, and products that read them there, without registers in between."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loop = json.loads(done.stdout)
    # Each iteration starts one copy, and the loop prologue starts more. One other copy loads the ones.
    assert loop["operations"]["ttng.async_tma_copy_global_to_local"] == 1 and loop["ahead"] == rates.STAGES
    assert loop["operations"]["ttng.warp_group_dot"] == 1 and loop["in_registers"] == 0 < loop["pending"]
    assert not {"ttg.local_load", "ttg.local_alloc", "ttg.convert_layout", "tt.load"} & set(loop["operations"])
    assert loop["spilled"] == 0 and rates.PROGRAMS * (loop["shared"] + 1024) <= 228 << 10


class FakeMachine(Machine):
    """A machine with 1 ms per call."""

    def __init__(self) -> None:
        super().__init__(DEVICE, self)

    def seconds(self, calls: Sequence[Any], ahead: bool) -> float:
        return 1e-3 * len(calls)

    def copy_rate(self, bytes: int = 0) -> float:
        return 4e12

    def product_rate(self, arithmetic: str, size: int = 0) -> float:
        return {"bf16": 800e12, "fp16": 640e12, "tf32": 400e12, "fp32": 50e12}[arithmetic]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(rates, name, value)


@pytest.mark.skipif(not INTERPRETED, reason="expects the interpreter: one multiprocessor, no machine code")
def test_rates(small: None) -> None:
    found = rates.rates(FakeMachine())
    assert json.loads(json.dumps(found)) == found
    assert found["multiprocessors"] == 1
    by_name = {rate["name"]: rate for rate in found["rates"]}
    assert len(by_name) == len(found["rates"]) == 1 + 4 + 1
    assert by_name["memory copy"]["value"] == 4e12 and by_name["memory copy"]["assumed"] is None
    assert by_name["bf16 products"]["per_multiprocessor"] == 800e3
    assert [by_name[f"{a} products"]["assumed"] for a in ("bf16", "tf32", "fp32")] == [
        pytest.approx(6000), pytest.approx(3000), None
    ]  # fmt: skip
    copy, copied = by_name["L2 to shared memory"], rates.PROGRAMS * 4 * 32 * 16 * 2  # bytes in a millisecond
    assert copy["value"] == pytest.approx(copied * 1e3) and copy["unit"] == "bytes/s"
    assert copy["assumed"] == pytest.approx(50)
    table = list(rates.lines_of(found))
    assert len(table) == 1 + len(by_name) and all(name in line for name, line in zip(by_name, table[1:], strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="replaces interpreted kernels")
def test_wrong_results_are_not_timed(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = rates.copy_boxes
    monkeypatch.setattr(rates, "copy_boxes", lambda *args: right(*args[:-1], args[-1] - 1))  # one step too few
    with pytest.raises(RuntimeError, match="the result is wrong"):
        rates.rates(FakeMachine())


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rates.main([]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "No GPU" in err
