"""What compiled programs say of themselves, and whether it is worse than what bench/compiled/ holds them to."""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes for a program
ROWS = Path(__file__).with_name("compiled") / f"triton-{triton.__version__}.json"


class Program(NamedTuple):
    """The instructions of a program's text, and among them those for global memory; wide ones move 16 bytes."""

    instructions: int
    wide_loads: int
    loads: int
    wide_stores: int
    stores: int


class Code(NamedTuple):
    """What a launch compiled to."""

    registers: int
    spilled: int  # bytes of local memory a thread has
    shared: int  # bytes
    tensor_core: int  # instructions in the program text
    load: int  # bits of the widest load from global memory
    program: Program | None = None


class Row(NamedTuple):
    """What bench/compiled/ holds a launch to; instructions are those of the program for each element of a thread."""

    registers: int
    spilled: int
    shared: int
    wide_loads: int
    loads: int
    wide_stores: int
    stores: int
    instructions: float


class Driver:
    """A GPU that is not there, for Triton to compile for."""

    def __init__(self, architecture: str) -> None:
        amd = architecture.startswith("gfx")
        self.target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(architecture[3:]), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def read_cubin(cubin: bytes, ptx: str) -> Code:
    """An NVIDIA binary and its assembly, but for shared memory."""
    usage = _dumped(cubin, "-res-usage")
    number = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    loads = [int(lanes or 1) * int(bits) for lanes, bits in re.findall(r"\bld\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\b", ptx)]
    loads += [8 * int(size, 0) for size in re.findall(r"\bcp\.async\.c[ag]\.\S+ [^;]*?\], *\[[^;]*?\], (\w+)", ptx)]
    tensor_core = re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.", ptx)
    return Code(number["REG"], number["STACK"] + number["LOCAL"], 0, len(tensor_core), max(loads, default=0))


def read_sass(cubin: bytes) -> Program:
    """The machine code of an NVIDIA binary. Instructions that only fill the end of a program do not count."""
    text = _dumped(cubin, "-sass")
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", text, re.MULTILINE)
    counts = Counter(name for name in names if name != "NOP")
    loads = {name: count for name, count in counts.items() if re.match(r"LDG(STS)?\b", name)}
    stores = {name: count for name, count in counts.items() if re.match(r"STG\b", name)}
    wide = [sum(count for name, count in kind.items() if ".128" in name) for kind in (loads, stores)]
    return Program(counts.total(), wide[0], sum(loads.values()), wide[1], sum(stores.values()))


def read_amdgcn(text: str) -> Code:
    """An AMD program, but for shared memory."""
    number = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+): +(\d+)$", text, re.MULTILINE)}
    spilled = max(number["private_segment_fixed_size"], 4 * number["vgpr_spill_count"])
    bits = {"ubyte": 8, "sbyte": 8, "ushort": 16, "sshort": 16, "dword": 32}
    bits |= {f"dwordx{words}": 32 * words for words in (2, 3, 4)}
    loads = [bits[width] for width in re.findall(r"\b(?:global|buffer)_load_(\w+?)(?:_d16\w*)?\b", text) if width in bits]
    return Code(number["vgpr_count"], spilled, 0, len(re.findall(r"\bv_mfma_", text)), max(loads, default=0))


def _dumped(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def held(rows: dict[str, Row], record: bool) -> list[str]:
    """How the rows fall behind those on record, or nothing once they are on record themselves."""
    if record:
        lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
        ROWS.parent.mkdir(exist_ok=True)
        ROWS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return []
    known = recorded()
    faults = [f"{name}: {way}" for name, row in rows.items() if name in known for way in worse(row, known[name])]
    faults += [f"{name}: has no row in {ROWS.name}; --record writes it" for name in rows if name not in known]
    return faults + [f"{name}: has a row in {ROWS.name}, but is not there" for name in known if name not in rows]


def recorded() -> dict[str, Row]:
    return {name: Row(*row) for name, row in json.loads(ROWS.read_text()).items()} if ROWS.exists() else {}


def worse(row: Row, than: Row) -> Iterator[str]:
    """In which ways. ptxas may move a register or two, and an instruction in twenty, for no reason."""
    names = {"spilled": 0, "shared": 0, "registers": 4 + than.registers // 10, "instructions": than.instructions / 20}
    for name, slack in names.items():
        if getattr(row, name) > getattr(than, name) + slack:
            yield f"{name} {getattr(than, name)} -> {getattr(row, name)}"
    for name in ("loads", "stores"):
        narrow, before = (getattr(r, name) - getattr(r, f"wide_{name}") for r in (row, than))
        if narrow > before:
            yield f"{name} of less than 16 bytes {before} -> {narrow}"
