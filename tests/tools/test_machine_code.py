"""Compiled code is compared with recorded rows: each number that gets worse is a fault, until it is recorded.

In the loops of convolutions on Hopper, the matrix instruction wgmma may wait for TMA (Hopper's copy engine) only: other loads
and copies in these loops are faults. Executed instructions are counted, and limited for memory-bound operators.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import triton

from bench.compile import ptx, records
from bench.compile.code import SHARED_MEMORY, Instruction, read_loops, stalled, unfed
from bench.compile.ptx import Runs
from bench.compile.records import Row, compared

BEFORE = Row(registers=40, spilled=0, shared=1024, narrow_loads=1, narrow_stores=0, instructions=10.0)


@pytest.fixture(autouse=True)
def one_recorded_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the row BEFORE in a temporary file."""
    monkeypatch.setattr(records, "ROWS", tmp_path / "recorded" / "triton.json")
    assert compared({"a kernel, a case": BEFORE}, record=True) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"registers": 49}, "registers 40 -> 49"),
        ({"spilled": 8}, "spilled 0 -> 8"),
        ({"shared": 1025}, "shared 1024 -> 1025"),
        ({"narrow_loads": 2}, "narrow_loads 1 -> 2"),
        ({"narrow_stores": 1}, "narrow_stores 0 -> 1"),
        ({"instructions": 10.6}, "instructions 10.0 -> 10.6"),
    ],
)
def test_worse(change: dict[str, int], fault: str) -> None:
    row = {"a kernel, a case": BEFORE._replace(**change)}
    assert compared(row, record=False) == [f"a kernel, a case: {fault}"]
    compared(row, record=True)
    assert compared(row, record=False) == []


def test_better_or_within_the_slack() -> None:
    row = BEFORE._replace(registers=44, narrow_loads=0, instructions=10.4, shared=0)
    assert compared({"a kernel, a case": row}, record=False) == []


def test_rows_and_launches_are_the_same() -> None:
    faults = compared({"another": BEFORE}, record=False)
    assert [fault.partition(":")[0] for fault in faults] == ["another", "a kernel, a case"]
    compared({"another": BEFORE}, record=True)
    assert compared({"another": BEFORE}, record=False) == []


# A loop with two stages, without the text after `<` of most types. Each copy is one iteration ahead, and a product may run into
# the next iteration.
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

# The same loop in machine code. The wait for TMA is after the end of the program.
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


def test_loop_with_operands_from_tma() -> None:
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
        (COPY, "", "1 copies precede a loop of 2 copies, with 2 stages"),
        (COPY, COPY + COPY, "3 copies precede a loop of 2 copies, with 2 stages"),
        ("scf.for", "scf.if", "no loop has a product"),
    ],
)
def test_loop_that_waits(line: str, instead: str, fault: str) -> None:
    assert line in TTGIR
    assert fault in " ".join(unfed(read_loops(TTGIR.replace(line, instead)), stages=2))


def test_the_second_of_two_loops_is_read() -> None:
    faults = unfed(read_loops(TTGIR + TTGIR.replace("pendings = 1", "pendings = 0")), stages=2)
    assert list(faults) == ["a loop waits for each of its products"]


def test_loop_with_additions_may_wait() -> None:
    waits = TTGIR.replace("pendings = 1", "pendings = 0")
    adds_up = waits.replace("      %next", "      %sum = arith.addf %acc_0, %wait#0 : tensor<>\n      %next")
    assert list(unfed(read_loops(adds_up), stages=2)) == []
    product = next(line + "\n" for line in TTGIR.splitlines() if "%dot" in line)
    assert list(unfed(read_loops(adds_up.replace(product, 2 * product)), stages=2)) == ["a loop waits for each of its products"]


def test_nested_loop_is_read() -> None:
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
        "an outer loop restarts the loop, and its copies, in each iteration"
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
def test_stalling_machine_code(number: int, name: str, operands: str, fault: str) -> None:
    changed = [i._replace(name=name, operands=operands) if at == number else i for at, i in enumerate(SASS)]
    assert fault in list(stalled(changed))
    assert list(stalled([i for i in SASS if not i.name.startswith("HGMMA")])) == ["no loop has wgmma"]


def test_wgmma_waits_for_the_wgmma_before() -> None:
    wait = Instruction(0x38, "WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
    assert list(stalled([*SASS[:4], wait, *SASS[4:]])) == []  # one wait per iteration, for two wgmma
    serial = [*SASS[:4], wait, SASS[4], wait, *SASS[6:]]
    assert list(stalled(serial)) == ["ptxas serialises wgmma"]
    adds_up = [*serial[:6], Instruction(0x58, "FADD", "R2, R2, R24"), *serial[6:]]
    assert list(stalled(adds_up, awaited=2)) == []
    assert list(stalled(adds_up, awaited=1)) == list(stalled(serial, awaited=2)) == list(stalled(serial))


def test_loops_of_tma_convolutions_wait_for_tma_only(tmp_path: Path) -> None:
    """With default tiles and with tiles from a file, the loops of the TMA kernels have no fault."""
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
    command = [sys.executable, "-m", "tests.support.loops", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]]
    found, measured = json.loads(done.stdout)
    by_tma, others = ([launch for launch in found if launch["tma"] == tma] for tma in (True, False))
    assert [launch["kernel"] for launch in by_tma] == [
        "_conv2d_gather_tma_kernel",
        "_conv2d_gather_tma_kernel",
        "_conv2d_wgrad_tma_kernel",
    ]
    for launch in by_tma:
        (loop,) = launch["loops"]
        copies = loop["operations"]["ttng.async_tma_copy_global_to_local"]
        assert loop["operations"]["ttng.warp_group_dot"] == 1 and loop["in_registers"] == 0 < loop["pending"]
        assert copies == 2 and loop["ahead"] == copies * (launch["stages"] - 1)
        assert {"HGMMA", "UTMALDG"} <= set(launch["instructions"]) and "HMMA" not in launch["instructions"]
        assert launch["waits"] == launch["reported"] == [] and launch["spilled"] == 0
        assert launch["shared"] <= SHARED_MEMORY["sm_90"]
    # The pointer kernels' loops wait for loads, and `waits` detects this.
    assert len(others) == 3 and all(launch["waits"] and not launch["reported"] for launch in others)

    assert {case.partition(",")[0] for case, _ in measured} == {"NVIDIA H200"}
    assert [tile.partition(" box")[0] for case, tile in measured if "fp16" in case] == ["128x64 w4 s5"] * 2
    assert [tile for case, tile in measured if "tf32" in case] == [
        "64x32x32 w4 s3 taps 3", "64x64x32 w4 s3 taps 1"
    ]  # fmt: skip


# A loop whose trip count is the program's number plus the argument.
PTX = """\
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .u64 .ptr .global .align 1 kernel_param_2
)
.reqntid 128
{
	.reg .pred 	%p<3>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b32 	%r1, [kernel_param_1];
	mov.u32 	%r2, %ctaid.x;
	add.s32 	%r3, %r1, %r2;
	setp.lt.s32 	%p1, %r3, 1;
	@%p1 bra 	$L__BB0_3;
	mov.b32 	%r4, 0;
$L__BB0_2:                              // a comment
	.loc	1 52 28
	// begin inline asm
	mov.u32 %r5, 0x0;
	@%p2 ld.global.b32 { %r5 }, [ %rd1 + 0 ];
	// end inline asm
	add.s32 	%r4, %r4, 1;
	setp.lt.s32 	%p2, %r4, %r3;
	@%p2 bra 	$L__BB0_2;
$L__BB0_3:
	@%p2 st.global.b32 [ %rd1 + 0 ], { %r5 };
	ret;
}
"""


@pytest.mark.parametrize("trips", [0, 1, 7])
def test_instructions_of_a_loop(trips: int) -> None:
    """5 instructions are outside the loop, and 4 in it; `mov` and loads of parameters do not count."""
    found = Runs(PTX, 1, [None, trips]).total()
    assert found.instructions == 5 + 4 * trips and not found.of_data
    assert found.loaded == Counter({4: 4 * trips}) and found.stored == Counter({4: 4})
    of_all = Runs(PTX, 5, [None, trips]).total()  # programs 0 to 4
    assert of_all.instructions == pytest.approx(5 + 4 * (trips + 2)) and of_all.loaded[4] == pytest.approx(4 * (trips + 2))


@pytest.mark.parametrize(
    ("operation", "instructions", "loaded"),
    [
        ("mov.b32 %r6, %r5", 0, {}),
        ("fma.rn.f32 %r6, %r5, %r5, %r5", 1, {}),
        ("div.s32 %r6, %r5, %r4", 20, {}),
        ("div.full.f32 %r6, %r5, %r4", 1, {}),
        ("ld.shared.v4.b32 { %r6, %r7, %r8, %r9 }, [ %r4 + 0 ]", 1, {}),
        ("@%p2 ld.global.L1::evict_last.v4.b32 { %r6, %r7, %r8, %r9 }, [ %rd1 + 0 ]", 1, {16: 16}),
        ("ld.volatile.global.v2.b64 { %rd6, %rd7 }, [ %rd1 + 0 ]", 1, {16: 16}),
        ("ld.global.b16 { %rs6 }, [ %rd1 + 0 ]", 1, {2: 2}),
        ("cp.async.ca.shared.global [ %r4 + 0 ], [ %rd1 + 0 ], 0x8, %r5", 1, {8: 8}),
        ("cp.async.commit_group", 1, {}),
        (
            "// begin inline asm\n{\n	.reg .pred %p;\n	fence.proxy.async;\n}\n	// end inline asm\n	fence.proxy.async",
            2,
            {},
        ),
    ],
)
def test_instructions_and_accesses_of_an_operation(operation: str, instructions: int, loaded: dict[int, int]) -> None:
    before = Runs(PTX, 1, [None, 3]).total()
    text = PTX.replace("	add.s32 	%r4, ", f"	{operation};\n	add.s32 	%r4, ")
    found = Runs(text, 1, [None, 3]).total()
    assert found.instructions - before.instructions == 3 * instructions
    assert found.loaded - before.loaded == Counter({width: 3 * size for width, size in loaded.items()})
    assert ptx.accesses(text) - ptx.accesses(PTX) == Counter({("ld", width): 1 for width in loaded})


def test_instructions_that_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="parameters"):
        Runs(PTX, 1, [None, 1, None, None])
    endless = PTX.replace("add.s32 	%r4, %r4, 1", "add.s32 	%r4, %r4, 0")
    monkeypatch.setattr(ptx, "MOST_STEPS", 1000)
    with pytest.raises(ValueError, match="does not end"):
        Runs(endless, 1, [None, 1])
    of_data = PTX.replace("%p2, %r4, %r3", "%p2, %r5, %r3")
    leaves = of_data.replace("@%p2 bra 	$L__BB0_2;", "@!%p2 bra 	$L__BB0_3;\n	bra.uni 	$L__BB0_2;")
    nested = leaves.replace("$L__BB0_3:", "$L__BB0_3:\n	@%p1 bra 	$L__BB0_2;")
    for text in of_data, leaves, nested:  # the inner loop ends where it can
        found = Runs(text, 1, [None, 9]).total()
        assert found.of_data and found.loaded == Counter({4: 4})


COUNTED = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import json, torch, triton, triton.language as tl
from bench.compile.code import Driver
from bench.compile.ptx import executed


@triton.jit
def rows(x, y, height, parts, STEP: tl.constexpr):
    lane = tl.arange(0, 512)
    per = (height + parts - 1) // parts
    first = tl.program_id(0) % parts * per
    total = tl.full((512,), 0.0, tl.float32)
    for row in range(first, tl.minimum(first + per, height), STEP):
        total += tl.load(x + row * 512 + lane)
    tl.store(y + tl.program_id(0) * 512 + lane, total)


@triton.jit
def halves(x, y, height, scale):
    lane = tl.arange(0, 512)
    before, value = -1, tl.full((512,), 0.0, tl.float32)
    for row in range(height):
        source = tl.floor((row + 0.5) * scale).to(tl.int32)
        if source != before:
            value = tl.load(x + source * 512 + lane)
            before = source
        tl.store(y + row * 512 + lane, value)


@triton.jit
def nested(x, y, height, width):
    lane = tl.arange(0, 512)
    for row in range(height):
        total = tl.full((512,), 0.0, tl.float32)
        for column in range(row, width):
            total += tl.load(x + column * 512 + lane)
        tl.store(y + row * 512 + lane, total)


@triton.jit
def of_data(x, y):
    lane = tl.arange(0, 512)
    for row in range(tl.load(y).to(tl.int32)):
        tl.store(x + row * 512 + lane, lane.to(tl.float32))


triton.runtime.driver.set_active(Driver("sm_90"))
x, found = torch.empty(2**20, device="meta"), []
for kernel, programs, args, constants in (
    (rows, 3, (x, x, 13, 3), {"STEP": 1}), (rows, 6, (x, x, 100, 3), {"STEP": 2}), (rows, 3000, (x, x, 13, 3), {"STEP": 1}),
    (halves, 1, (x, x, 20, 0.5), {}), (nested, 1, (x, x, 10, 10), {}), (of_data, 1, (x, x), {}),
):
    done = executed(kernel.warmup(*args, grid=(1,), num_warps=4, **constants), programs, args)
    found.append([done.loaded[16] / 16, done.stored[16] / 16, done.of_data])
print(json.dumps(found))
"""


def test_instructions_of_compiled_kernels(tmp_path: Path) -> None:
    """Loads and stores of a thread follow from the source's loops: trip counts depend on the program, loads on branches."""
    (tmp_path / "counted.py").write_text(COUNTED)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{root}".lstrip(":")}
    command = [sys.executable, str(tmp_path / "counted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole, strided, sampled, halves, nested, of_data = json.loads(done.stdout)
    assert whole == [pytest.approx(13 / 3), pytest.approx(1), False]  # 5, 5 and 3 rows
    assert strided == [pytest.approx((17 + 17 + 16) / 3), pytest.approx(1), False]  # 34, 34 and 32 rows, every second
    assert sampled[0] == pytest.approx(13 / 3, rel=0.02) and sampled[1:] == whole[1:]
    assert halves == [10, 20, False] and nested == [55, 10, False]
    assert of_data[1:] == [1, True]


LIMITS = """
from bench.compile import without_gpu
import json
from bench.compile import limits
from bench.compile.code import Code
from bench.compile.launches import Job
from bench.compile.ptx import Executed
from collections import Counter

held = limits.Held(Job("sm_90", "", None, None, 1, (), {}), 64, 10.0, 16, 8)
done = Executed(10.0, Counter({16: 64, 4: 16}), Counter({8: 8, 2: 2}), False)
found = limits.Found(Code(32, 0, 0, 0, 128), done, 10.0)
worse = [
    found, "does not compile", found._replace(instructions=10.5), found._replace(code=found.code._replace(spilled=40)),
    found._replace(executed=done._replace(loaded=Counter({16: 12, 4: 16}))),
    found._replace(executed=done._replace(stored=Counter({2: 2}))), found._replace(executed=done._replace(of_data=True)),
]
print(json.dumps([list(limits.faults_of(held, code)) for code in worse]))
case = "case {}, bf16, contiguous, forward"
limits.held_launches = lambda pattern: [held._replace(job=held.job._replace(case=case.format(i)), most=9 + i) for i in range(3)]
limits.found_of = lambda held: found
print(json.dumps(limits.check()))
"""


def test_limits() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", LIMITS], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *table, last = done.stdout.splitlines()
    assert json.loads(first) == [
        [], ["does not compile"], ["10.5 instructions per element, at most 10 allowed"], ["spills 40 bytes per thread"],
        ["57% of the bytes are read in accesses of less than 16 bytes"],
        ["100% of the bytes are written in accesses of less than 8 bytes"],
        ["the number of executed instructions is uncertain"],
    ]  # fmt: skip
    assert [line.split()[-1] for line in table[1:]] == ["MISSED", "10", "11"]  # 10 instructions, at most 9, 10 and 11
    assert json.loads(last) == [3, ["case 0, bf16, contiguous, forward: 10.0 instructions per element, at most 9 allowed"]]


def test_launches_are_held_to_limits() -> None:
    """Each launch has a line: forward and backward, in three dtypes and precisions, and two memory formats."""
    command = [sys.executable, "-m", "bench.compile.report", "--limits", "--cases", "^LeNet pool1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("LeNet pool1 b1024") for line in lines) == 12
    assert lines[-1].startswith("12 compiled with Triton") and lines[-1].endswith(", 0 faults")
