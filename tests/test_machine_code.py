"""Compiled code is held to what is on record: each way of getting worse is a fault, and recording ends it.

And Hopper's matrix units are held to wait for nothing but the copy engine: each other thing in their loops is a fault.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from bench import machine_code
from bench.machine_code import SHARED_MEMORY, Instruction, Row, held, read_loops, stalled, unfed

BEFORE = Row(registers=40, spilled=0, shared=1024, wide_loads=3, loads=4, wide_stores=1, stores=1, instructions=10.0)


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "ROWS", tmp_path / "compiled" / "triton.json")
    assert held({"a kernel, a case": BEFORE}, record=True) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"registers": 49}, "registers 40 -> 49"),
        ({"spilled": 8}, "spilled 0 -> 8"),
        ({"shared": 1025}, "shared 1024 -> 1025"),
        ({"wide_loads": 2}, "loads of less than 16 bytes 1 -> 2"),
        ({"stores": 2}, "stores of less than 16 bytes 0 -> 1"),
        ({"instructions": 10.6}, "instructions 10.0 -> 10.6"),
    ],
)
def test_worse(change: dict[str, int], fault: str) -> None:
    row = {"a kernel, a case": BEFORE._replace(**change)}
    assert held(row, record=False) == [f"a kernel, a case: {fault}"]
    held(row, record=True)
    assert held(row, record=False) == []


def test_better_or_nearly_the_same() -> None:
    row = BEFORE._replace(registers=44, wide_loads=4, instructions=10.4, shared=0)
    assert held({"a kernel, a case": row}, record=False) == []


def test_rows_and_launches_are_the_same() -> None:
    faults = held({"another": BEFORE}, record=False)
    assert [fault.partition(":")[0] for fault in faults] == ["another", "a kernel, a case"]
    held({"another": BEFORE}, record=True)
    assert held({"another": BEFORE}, record=False) == []


# A loop in two stages, but for what follows a type's `<`: each copy is one turn ahead, and a product may run on for a turn.
TTGIR = """\
  tt.func public @kernel() {
    %cst = arith.constant dense<0.0> : tensor<128x128xf32, #mma>
    ttng.async_tma_copy_global_to_local %x[%0, %1] %a, %bar, %p : !tt.tensordesc<>, !ttg.memdesc<> -> !ttg.memdesc<>
    ttng.async_tma_copy_global_to_local %w[%0, %1] %b, %bar, %p : !tt.tensordesc<>, !ttg.memdesc<> -> !ttg.memdesc<>
    %acc:2 = scf.for %i = %c0 to %n step %c1 iter_args(%acc_0 = %cst, %at = %c0) -> (tensor<128x128xf32, #mma>, i32)  : i32 {
      ttng.wait_barrier %bar, %phase : !ttg.memdesc<>
      %view = ttg.memdesc_index %a[%at] : !ttg.memdesc<> -> !ttg.memdesc<>
      %view_1 = ttg.memdesc_trans %b {order = array<i32: 1, 0>} : !ttg.memdesc<> -> !ttg.memdesc<>
      %dot = ttng.warp_group_dot %view, %view_1, %acc_0 {isAsync = true} : !ttg.memdesc<> * !ttg.memdesc<> -> tensor<>
      %wait:3 = ttng.warp_group_dot_wait %dot, %view, %view_1 {pendings = 1 : i32} : tensor<>, !ttg.memdesc<>, !ttg.memdesc<>
      %next = arith.addi %at, %c1 : i32
      ttng.barrier_expect %bar, 32768, %p : !ttg.memdesc<>
      ttng.async_tma_copy_global_to_local %x[%0, %next] %a, %bar, %p : !tt.tensordesc<>, !ttg.memdesc<> -> !ttg.memdesc<>
      ttng.async_tma_copy_global_to_local %w[%0, %next] %b, %bar, %p : !tt.tensordesc<>, !ttg.memdesc<> -> !ttg.memdesc<>
      scf.yield %wait#0, %next : tensor<128x128xf32, #mma>, i32
    }
    %out = ttg.convert_layout %acc#0 : tensor<> -> tensor<>
    tt.store %y, %out : tensor<>
"""
COPY = next(line + "\n" for line in TTGIR.splitlines() if "%w[%0, %1]" in line)

# The same in machine code, with the wait for the copy engine behind the end of the program.
SASS = [
    Instruction(0x00, "UTMALDG.2D", "[UR8], [UR4]"),
    Instruction(0x10, "SYNCS.PHASECHK.TRANS64.TRYWAIT", "P0, [UR11], R6"),
    Instruction(0x20, "BRA", "0xb0"),
    Instruction(0x30, "HGMMA.64x64x16.F32", "R24, gdesc[UR36].tnspB, R24"),
    Instruction(0x40, "HGMMA.64x64x16.F32", "R24, gdesc[UR28].tnspB, R24, gsb0"),
    Instruction(0x50, "WARPGROUP.DEPBAR.LE", "gsb0, 0x1"),
    Instruction(0x60, "UTMALDG.2D", "[UR8], [UR4]"),
    Instruction(0x70, "BRA", "0x10"),
    Instruction(0x80, "WARPGROUP.DEPBAR.LE", "gsb0, 0x0"),
    Instruction(0x90, "STS.128", "[R2], R24"),
    Instruction(0xA0, "EXIT", ""),
    Instruction(0xB0, "BRA", "0xb0"),
    Instruction(0xC0, "BRA", "0x30"),
]


def test_a_loop_that_is_fed() -> None:
    (loop,) = read_loops(TTGIR)
    assert loop.operations["ttng.warp_group_dot"] == loop.pending == 1 and loop.in_registers == 0
    assert loop.ahead == loop.operations["ttng.async_tma_copy_global_to_local"] == 2
    assert list(unfed([loop], stages=2)) == list(stalled(SASS)) == []


@pytest.mark.parametrize(
    ("line", "instead", "fault"),
    [
        ("      %next", "      %r = ttg.local_load %view : !ttg.memdesc<> -> tensor<>\n      %next", "has ttg.local_load"),
        ("      %next", "      %r = ttg.convert_layout %q : tensor<> -> tensor<>\n      %next", "has ttg.convert_layout"),
        ("      %next", "      %r = ttg.local_alloc %q : (tensor<>) -> !ttg.memdesc<>\n      %next", "has ttg.local_alloc"),
        ("      %next", "      ttg.local_store %q, %a : tensor<> -> !ttg.memdesc<>\n      %next", "has ttg.local_store"),
        ("      %next", "      %r, %s = tt.load %q : tensor<>\n      %next", "has tt.load"),
        ("ttng.warp_group_dot %", "tt.dot %", "has tt.dot"),
        ("} : !ttg.memdesc<> * !ttg", "} : tensor<> * !ttg", "an operand of a product passes through registers"),
        ("pendings = 1", "pendings = 0", "a loop waits for each of its products"),
        (COPY, "", "1 copies are ahead of a loop of 2, in 2 stages"),
        (COPY, COPY + COPY, "3 copies are ahead of a loop of 2, in 2 stages"),
        ("scf.for", "scf.if", "no loop multiplies"),
    ],
)
def test_a_loop_that_is_not_fed(line: str, instead: str, fault: str) -> None:
    assert line in TTGIR
    assert fault in " ".join(unfed(read_loops(TTGIR.replace(line, instead)), stages=2))


def test_the_second_of_two_loops_is_read() -> None:
    faults = unfed(read_loops(TTGIR + TTGIR.replace("pendings = 1", "pendings = 0")), stages=2)
    assert list(faults) == ["a loop waits for each of its products"]


def test_a_loop_that_adds_products_up_waits_for_them() -> None:
    waits = TTGIR.replace("pendings = 1", "pendings = 0")
    adds_up = waits.replace("      %next", "      %sum = arith.addf %acc_0, %wait#0 : tensor<>\n      %next")
    assert list(unfed(read_loops(adds_up), stages=2)) == []
    product = next(line + "\n" for line in TTGIR.splitlines() if "%dot" in line)
    assert list(unfed(read_loops(adds_up.replace(product, 2 * product)), stages=2)) == ["a loop waits for each of its products"]


def test_a_loop_in_another_is_read() -> None:
    head, rest = TTGIR.split("\n", 1)
    body, tail = rest.split("    %out", 1)
    nested = [
        head,
        "    scf.for %j = %c0 to %n step %c1 {",
        *(f"  {line}" for line in body.splitlines()),
        "    }",
        f"    %out{tail}",
    ]
    assert list(unfed(read_loops("\n".join(nested)), stages=2)) == [
        "the copies of a loop run dry whenever it begins again, in another"
    ]


@pytest.mark.parametrize(
    ("number", "name", "operands", "fault"),
    [
        (3, "HGMMA.64x64x16.F32", "R24, R4, gdesc[UR28], R24", "wgmma has an operand in registers"),
        (3, "LDSM.16.M88.4", "R4, [R2]", "a loop with wgmma has LDSM.16.M88.4"),
        (3, "STL.64", "[R1], R4", "a loop with wgmma has STL.64"),
        (6, "LDGSTS.E.128", "[R2], [R4]", "a loop with wgmma has LDGSTS.E.128"),
        (5, "MUFU.RCP", "R4, R5", "a loop with wgmma has MUFU.RCP"),
        (6, "IADD3", "R2, R3, R4", "a loop with wgmma has no UTMALDG"),
    ],
)
def test_machine_code_that_stalls(number: int, name: str, operands: str, fault: str) -> None:
    changed = [i._replace(name=name, operands=operands) if at == number else i for at, i in enumerate(SASS)]
    assert fault in list(stalled(changed))
    assert list(stalled([i for i in SASS if not i.name.startswith("HGMMA")])) == ["no loop has wgmma"]


def test_wgmma_waits_for_the_wgmma_before() -> None:
    wait = Instruction(0x38, "WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
    assert list(stalled([*SASS[:4], wait, *SASS[4:]])) == []  # once in a turn, for two of them
    serial = [*SASS[:4], wait, SASS[4], wait, *SASS[6:]]
    assert list(stalled(serial)) == ["ptxas has wgmma wait for one another"]
    adds_up = [*serial[:6], Instruction(0x58, "FADD", "R2, R2, R24"), *serial[6:]]
    assert list(stalled(adds_up, awaited=2)) == []
    assert list(stalled(adds_up, awaited=1)) == list(stalled(serial, awaited=2)) == list(stalled(serial))


def test_convolutions_in_boxes_are_fed(tmp_path: Path) -> None:
    tiles = {
        "tma conv2d float16 ieee 128 4096 1024": [128, 64, 64, 4, 5],
        "tma wgrad float32 tf32 128 256 4096": [64, 96, 32, 4, 3],
    }
    about = {
        "gpu": "NVIDIA H200",
        "triton": triton.__version__,
        "tiles": tiles | {"linear float16 ieee 16 16 16": [16, 16, 16, 4, 3]},
    }
    (tmp_path / "nvidia_h200.json").write_text(json.dumps(about))
    command = [sys.executable, "-m", "tests.loops", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]]
    found, measured = json.loads(done.stdout)
    boxes, others = ([launch for launch in found if launch["in boxes"] == in_boxes] for in_boxes in (True, False))
    assert [launch["kernel"].split(".")[1] for launch in boxes] == ["_gather_kernel", "_gather_kernel", "_wgrad_kernel"]
    for launch in boxes:
        (loop,) = launch["loops"]
        copies = loop["operations"]["ttng.async_tma_copy_global_to_local"]
        assert loop["operations"]["ttng.warp_group_dot"] == 1 and loop["in registers"] == 0 < loop["pending"]
        assert copies == 2 and loop["ahead"] == copies * (launch["stages"] - 1)
        assert {"HGMMA", "UTMALDG"} <= set(launch["instructions"]) and "HMMA" not in launch["instructions"]
        assert launch["waits"] == launch["reported"] == [] and launch["spilled"] == 0
        assert launch["shared"] <= SHARED_MEMORY["sm_90"]
    # What reads through pointers is not fed so, and would be seen.
    assert len(others) == 3 and all(launch["waits"] and not launch["reported"] for launch in others)

    assert {case.partition(",")[0] for case, _ in measured} == {"NVIDIA H200"}
    assert [tile.partition(" box")[0] for case, tile in measured if "fp16" in case] == ["128x64 w4 s5"] * 2
    assert [tile for case, tile in measured if "tf32" in case] == [
        "64x32x32 w4 s3 taps 3", "64x64x32 w4 s3 taps 1"
    ]  # fmt: skip
