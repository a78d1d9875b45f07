"""Properties of compiled kernels: resources, machine code, and the loops that feed Hopper's matrix units."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from bench.compile.ptx import accesses

SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes per program

# Tolerated spill. ptxas may spill one or two values although registers are left, to fit one more program on a multiprocessor.
# If the registers are used up, or the spill is larger, the tile is too large.
PUT_ASIDE = 32  # bytes per thread


class Instruction(NamedTuple):
    """A machine instruction: its address, its name with modifiers, and the text of its operands."""

    address: int
    name: str
    operands: str


class Loop(NamedTuple):
    """A loop with matrix products, in Triton's TTGIR: the last intermediate form with layouts."""

    operations: Counter[str]  # the number of operations by name
    in_registers: int  # products with an operand in registers
    ahead: int  # TMA copies issued before the loop
    pending: int  # least number of products in flight at a wait
    inner: bool  # whether it is inside another loop

    @property
    def adds_up(self) -> bool:
        """Whether an arith.addf outside the matrix units adds each product to its sum: the loop must wait for each product."""
        return self.operations["arith.addf"] == self.operations["ttng.warp_group_dot"] > 0


class Code(NamedTuple):
    """Resource usage of a compiled launch."""

    registers: int
    spilled: int  # bytes of local memory per thread
    shared: int  # bytes
    tensor_core: int  # instructions in the program text
    load: int  # bits of the widest load from global memory


class Driver:
    """A Triton driver for an absent GPU: kernels can be compiled for it."""

    def __init__(self, architecture: str) -> None:
        amd = architecture.startswith("gfx")
        self.target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(architecture[3:]), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def read_cubin(cubin: bytes, ptx: str, shared: int = 0) -> Code:
    """The resource usage of an NVIDIA binary with this PTX."""
    usage = _dumped(cubin, "-res-usage")
    number = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    loads = [8 * size for kind, size in accesses(ptx) if kind == "ld"]
    tensor_core = re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.", ptx)
    return Code(number["REG"], number["STACK"] + number["LOCAL"], shared, len(tensor_core), max(loads, default=0))


def read_amdgcn(text: str, shared: int = 0) -> Code:
    """The resource usage of an AMD program."""
    number = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+): +(\d+)$", text, re.MULTILINE)}
    spilled = max(number["private_segment_fixed_size"], 4 * number["vgpr_spill_count"])
    bits = {"ubyte": 8, "sbyte": 8, "ushort": 16, "sshort": 16, "dword": 32}
    bits |= {f"dwordx{words}": 32 * words for words in (2, 3, 4)}
    loads = [bits[width] for width in re.findall(r"\b(?:global|buffer)_load_(\w+?)(?:_d16\w*)?\b", text) if width in bits]
    return Code(number["vgpr_count"], spilled, shared, len(re.findall(r"\bv_mfma_", text)), max(loads, default=0))


def read_sass(cubin: bytes) -> list[Instruction]:
    """The machine code of an NVIDIA binary, without NOPs: they pad the end of a program."""
    line = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*) *([^;]*);"
    found = re.findall(line, _dumped(cubin, "-sass"), re.MULTILINE)
    return [Instruction(int(at, 16), name, words.strip()) for at, name, words in found if name != "NOP"]


def _dumped(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_loops(ttgir: str) -> list[Loop]:
    """The innermost loops with matrix products."""
    loops, passed, outer = [], 0, 0
    lines = ttgir.splitlines()
    for first, line in enumerate(lines):
        if not re.search(r"\bscf\.for\b", line):
            continue
        end = line[: len(line) - len(line.lstrip())] + "}"
        last = next(at for at in range(first, len(lines)) if lines[at].startswith(end))
        body = lines[first + 1 : last]
        products = [line for line in body if re.search(r"\b(?:tt\.dot|ttng\.warp_group_dot)\b", line)]
        if any("scf.for" in line for line in body):
            outer = max(outer, last)
        elif products:
            ahead = _operations(lines[passed:first])["ttng.async_tma_copy_global_to_local"]
            in_registers = sum(line.count("!ttg.memdesc<") != 2 for line in products)
            pending = [int(n) for n in re.findall(r"\bpendings = (\d+)", "\n".join(body))]
            loops.append(Loop(_operations(body), in_registers, ahead, min(pending, default=0), first < outer))
            passed = last
    return loops


def _operations(lines: Sequence[str]) -> Counter[str]:
    return Counter(found[1] for line in lines if (found := re.match(r"\s*(?:%.*? = )?(\w+\.\w+)", line)))


# The TTGIR operations allowed in a loop whose products read operands from TMA, besides integer arithmetic.
FED = {
    *(f"ttg.memdesc_{view}" for view in ("index", "trans", "reshape")),
    *(f"ttng.{name}" for name in ("async_tma_copy_global_to_local", "barrier_expect", "wait_barrier")),
    *(f"ttng.warp_group_dot{wait}" for wait in ("", "_wait")),
}


def waits(ttgir: str, stages: int, instructions: Sequence[Instruction]) -> tuple[str, ...]:
    """Faults: why Hopper's matrix units would wait for anything other than TMA, in a kernel with both."""
    loops = read_loops(ttgir)
    awaited = max((loop.operations["ttng.warp_group_dot"] for loop in loops if loop.adds_up), default=0)
    return tuple(dict.fromkeys([*unfed(loops, stages), *stalled(instructions, awaited)]))


def unfed(loops: Sequence[Loop], stages: int) -> Iterator[str]:
    """Faults of loops in TTGIR. A loop must multiply operands straight from the shared memory that TMA filled iterations ahead.

    Copies must be `stages - 1` iterations ahead. One product must still run while the next begins, except in a loop that adds
    the products itself.
    """
    if not loops:
        yield "no loop has a product"
    for loop in loops:
        copies = loop.operations["ttng.async_tma_copy_global_to_local"]
        strange = [name for name in loop.operations if name.startswith(("tt.", "ttg.", "ttng.")) and name not in FED]
        if strange:
            yield f"a loop with products has {', '.join(sorted(strange))}"
        if loop.in_registers:
            yield "an operand of a product passes through registers"
        if copies == 0 or loop.ahead != copies * (stages - 1):
            yield f"{loop.ahead} copies precede a loop of {copies} copies, with {stages} stages"
        if loop.pending == 0 and not loop.adds_up:
            yield "a loop waits for each of its products"
        if loop.inner:
            yield "an outer loop restarts the loop, and its copies, in each iteration"


def stalled(instructions: Sequence[Instruction], awaited: int = 0) -> Iterator[str]:
    """Faults in ptxas's code between products: moved operands, or a wait after each wgmma.

    Args:
        awaited: the number of waits allowed in a loop that adds products itself: one per product, which is several wgmma.
    """
    branches = [(int(i.operands.split()[-1], 16), i.address) for i in instructions if i.name == "BRA"]
    products = [i.address for i in instructions if i.name.startswith("HGMMA.")]
    around = [[(last - first, first, last) for first, last in branches if first <= product < last] for product in products]
    loops = {min(spans) for spans in around if spans}
    if not loops:
        yield "no loop has wgmma"
    for _, first, last in sorted(loops):
        body = [i for i in instructions if first <= i.address <= last]
        # MUFU is the first instruction of a division.
        strange = {i.name for i in body if re.match(r"(?:LD|LDG|LDGSTS|LDL|LDS|LDSM|ST|STG|STL|STS|STSM|HMMA|MUFU)\b", i.name)}
        if strange:
            yield f"a loop with wgmma has {', '.join(sorted(strange))}"
        if not any(i.name.startswith("UTMALDG.") for i in body):
            yield "a loop with wgmma has no UTMALDG"
        if any(i.name.startswith("HGMMA.") and not re.match(r"\w+, gdesc\[", i.operands) for i in body):
            yield "wgmma has an operand in registers"
        waits = [i.operands.split()[-1] for i in body if i.name == "WARPGROUP.DEPBAR.LE"]
        adds_up = any(i.name == "FADD" for i in body) and waits.count("0x0") <= awaited
        if not adds_up and waits.count("0x0") >= sum(i.name.startswith("HGMMA.") for i in body):
            yield "ptxas serialises wgmma"
