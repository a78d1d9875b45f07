"""The number of executed instructions of a launch: the sum of the execution counts of its machine instructions.

ptx.py computes the trip counts of loops: it interprets the PTX for some programs of the launch. ptxas compiles PTX to
machine code and unrolls loops, so this module matches the loops of both. A machine-code loop with n times the loads, stores,
shuffles and barriers of a PTX loop does n of its iterations at once. The count is right if the machine code and the PTX execute
the same total number of these instructions.

An instruction with a false predicate is issued, so it counts. A conditional block counts as often as PTX executes the block
with the same loads, stores, shuffles and barriers. A conditional block without any of them counts as often as the code around
it, an upper bound.
"""

import bisect
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.compile.code import Instruction, read_sass
from bench.compile.control_flow import Events, Graph, Part
from bench.compile.ptx import Runs

MOST_UNROLLED = 16  # PTX iterations in one iteration of machine code
NEAR = 0.4  # largest `_distance` of matching loops; above 0, because ptxas removes repeated loads


class Executed(NamedTuple):
    """The instructions of a thread, on average over the programs of a launch."""

    names: Counter[str]  # executions of each instruction
    doubt: float  # share of the PTX's loads, stores, shuffles and barriers missing from the count
    of_data: bool  # whether branches depend on data

    @property
    def instructions(self) -> float:
        return sum(self.names.values())

    def bytes(self, kind: str) -> Counter[int]:
        """Bytes per thread loaded from ("LDG") or stored to ("STG") global memory, by the width of the access in bytes."""
        found: Counter[int] = Counter()
        for name, count in self.names.items():
            if name.startswith(kind):
                bits = re.search(r"\.[US]?(8|16|64|128)\b", name)
                width = int(bits[1]) // 8 if bits else 4
                found[width] += width * count  # type: ignore[assignment]
        return found


def _jumps(code: Sequence[Instruction]) -> list[tuple[int | None, bool]]:
    """The `jumps` of machine code for Graph. Calls are not followed: only special floating-point values need subroutines."""
    addresses = [instruction.address for instruction in code]
    found: list[tuple[int | None, bool]] = []
    for i in code:
        name = i.name.split(".")[0]
        if name == "BRA":
            target = bisect.bisect_left(addresses, int(i.operands.split()[-1], 16))  # the target may be a removed NOP
            found.append((min(target, len(code) - 1), bool(i.predicate) or "," in i.operands))
        else:
            found.append((None, name not in ("EXIT", "RET") or bool(i.predicate)))
    return found


class _Match:
    """Execution counts for blocks of machine code, from interpreted runs of its PTX."""

    def __init__(self, runs: Runs, graph: Graph) -> None:
        self.runs, self.graph = runs, graph

    def blocks(self, ptx: Part, part: Part, unrolled: int = 1) -> dict[int, float]:
        """Executions of each block per iteration of `part`, if one iteration does `unrolled` iterations of the loop `ptx`."""
        own = dict.fromkeys(part.own & part.certain, 1.0) | self._skipped(ptx, part)
        # Match each loop of machine code with a PTX loop, in program order. ptxas may split a PTX loop into several loops.
        wanted, at, taken = ptx.inner * unrolled, 0, set[int]()
        matched: dict[int, list[tuple[int, Part]]] = {}  # by the number of the PTX loop
        for loop in part.inner:
            fits = [(*self._unrolled(wanted[i], loop), i) for i in range(at, len(wanted))]
            fits = [(off, size, i) for off, size, i in fits if not (i == at and size in taken)]
            off, size, i = min(fits, key=lambda fit: fit[0], default=(math.inf, 0, 0))
            if off > NEAR:
                own |= dict.fromkeys(loop.blocks, 1.0)
                continue
            taken = {size} | (taken if i == at else set())
            at = i
            matched.setdefault(i, []).append((size, loop))
        # Divide the iterations of each PTX loop among its loops and remainder blocks, the most unrolled first.
        for i, loops in matched.items():
            peeled = self._peeled(ptx, part, wanted)
            left = [max(0.0, trips - peeled) for trips in wanted[i].trips]
            pieces: list[tuple[int, Part | int]] = [*loops, *self._remainders(wanted[i], part, loops)]
            pieces.sort(key=lambda piece: -piece[0])
            for size, piece in pieces:
                if isinstance(piece, int):
                    each = [float(trips >= size) for trips in left]
                else:
                    each = [trips // size if piece is not pieces[-1][1] else trips / size for trips in left]
                left = [trips - size * count for trips, count in zip(left, each, strict=True)]
                times = sum(each) / ptx.iterations
                inside = {piece: 1.0} if isinstance(piece, int) else self.blocks(wanted[i], piece, size)
                own |= {b: times * count for b, count in inside.items()}
        return own

    def _unrolled(self, ptx: Part, loop: Part) -> tuple[float, int]:
        """Return (distance, n) for the best n: one iteration of `loop` has about the events of n PTX iterations."""
        wanted, penalty = self.runs.events(ptx), 0.0 if ptx.trips else NEAR / 2  # prefer a loop with trips
        counts = range(1, MOST_UNROLLED + 1)
        return min((_distance(self.events(self.blocks(ptx, loop, n)), wanted, n) + penalty, n) for n in counts)

    def _peeled(self, ptx: Part, part: Part, wanted: Sequence[Part]) -> int:
        """The number of iterations that ptxas peeled off the only loop of a part: 0 or 1."""
        certain = self.runs.graph.events_of(ptx.own & ptx.certain)
        more = self.graph.events_of(part.own & part.certain) - certain
        return len(wanted) == 1 and _distance(more, self.runs.events(wanted[0])) < 0.1

    def _remainders(self, ptx: Part, part: Part, loops: Sequence[tuple[int, Part]]) -> list[tuple[int, int]]:
        """The blocks with the remaining iterations of an unrolled loop: (number of iterations, block)."""
        most, loop = max(loops, key=lambda of: of[0])
        others = [other.header for other in part.inner if all(other is not of for _, of in loops)]
        start = max((header for header in others if header < loop.header), default=-1)
        end = min((header for header in others if header > loop.header), default=math.inf)
        blocks = [b for b in part.own - part.certain if start < b < end and self.graph.events[b]]
        wanted = self.runs.events(ptx)
        return [(n, b) for n in range(1, most) for b in blocks if _distance(self.graph.events[b], wanted, n) < 0.1]

    def _skipped(self, ptx: Part, part: Part) -> dict[int, float]:
        """Executions of each conditional block per iteration of `part`."""
        here, there = self.graph.skipped(part), self.runs.graph.skipped(ptx)
        found: dict[int, float] = {}
        for b in sorted(part.own - part.certain, key=lambda b: len(self.graph.dominators[b])):
            events = next((events for events, blocks in here.items() if b in blocks), "")
            blocks, alike = here.get(events, []), there.get(events, [])
            counts = [self.runs.executed[other] / ptx.iterations for other in alike] if ptx.trips else []
            if counts and len(blocks) % len(counts) == 0:
                found[b] = counts[blocks.index(b) % len(counts)]
            elif counts:
                found[b] = max(counts)
            else:
                around = self.graph.dominators[b] & found.keys() - {b}
                found[b] = min((found[other] for other in around), default=1.0)
        return found

    def events(self, blocks: dict[int, float]) -> Events:
        found: Events = Counter()
        for b, times in blocks.items():
            for kind, count in self.graph.events[b].items():
                found[kind] += times * count  # type: ignore[assignment]
        return found


def _distance(a: Events, b: Events, times: int = 1) -> float:
    """The difference between `a` and `times * b`, relative to the size of the latter."""
    return sum(abs(a[kind] - times * b[kind]) for kind in {*a, *b}) / max(1e-9, times * sum(b.values()))


def values_of(args: Iterable[Any], types: Iterable[Any]) -> Iterator[Any]:
    """The arguments of the compiled kernel: without the constants, of type "constexpr"."""
    for arg, type_ in zip(args, types, strict=False):
        if isinstance(type_, tuple):
            yield from values_of(arg, type_)
        elif type_ != "constexpr":
            yield arg


def executed(binary: Any, programs: int, args: Sequence[Any], code: Sequence[Instruction] | None = None) -> Executed:
    """The instructions of a launch of `programs` programs of a kernel compiled for an NVIDIA GPU.

    Raises:
        ValueError: the count cannot be computed.
    """
    code = code or read_sass(binary.asm["cubin"])
    return executed_of(binary.asm["ptx"], code, programs, list(values_of(args, binary.src.signature.values())))


def executed_of(ptx: str, code: Sequence[Instruction], programs: int, values: Sequence[Any]) -> Executed:
    """Like `executed`, from the PTX, the machine code and the values of the kernel's parameters."""
    runs, graph = Runs(ptx, programs, values), Graph([i.name for i in code], _jumps(code))
    match = _Match(runs, graph)
    blocks = match.blocks(runs.graph.all, graph.all)
    names: Counter[str] = Counter()
    for b, times in blocks.items():
        for i in graph.blocks[b]:
            names[code[i].name] += times  # type: ignore[assignment]
    wanted = runs.events(runs.graph.all)
    return Executed(names, (wanted - match.events(blocks)).total() / max(1e-9, wanted.total()), runs.of_data)
