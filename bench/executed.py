"""How many instructions a launch executes: those of its machine code, each times how often a program comes by it.

The trips of loops are computed and not given: bench/ptx.py runs PTX, of which ptxas makes the machine code, for some programs
of the launch. ptxas unrolls loops, so that the loops of both are matched: one of the machine code does the work of so many
turns of one of PTX as it has times the loads, stores, shuffles and barriers. A count is right if both execute
as many of these instructions in all.

What a predicate leaves out is issued, and counts. A block that a branch may skip counts as often as PTX executes the one with
the same loads, stores, shuffles and barriers and, without any, as often as what is around it: more than it may execute.
"""

import bisect
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.control_flow import Events, Graph, Part
from bench.machine_code import Instruction, read_sass
from bench.ptx import Runs

MOST_TURNS = 16  # of a loop that ptxas makes one
NEAR = 0.4  # ptxas may drop loads that it has already


class Executed(NamedTuple):
    """What a thread executes, on average over the programs of a launch."""

    names: Counter[str]  # how many of each instruction
    doubt: float  # of the loads, stores, shuffles and barriers that PTX executes, the share that is missing
    of_data: bool  # whether branches depend on data

    @property
    def instructions(self) -> float:
        return sum(self.names.values())

    def bytes(self, kind: str) -> Counter[int]:
        """The bytes that a thread loads ("LDG") or stores ("STG") in global memory, by how many an instruction moves."""
        found: Counter[int] = Counter()
        for name, count in self.names.items():
            if name.startswith(kind):
                bits = re.search(r"\.[US]?(8|16|64|128)\b", name)
                width = int(bits[1]) // 8 if bits else 4
                found[width] += width * count  # type: ignore[assignment]
        return found


def _jumps(code: Sequence[Instruction]) -> list[tuple[int | None, bool]]:
    """How each instruction goes on, as Graph takes it. Subroutines, which only strange numbers need, are not followed."""
    addresses = [instruction.address for instruction in code]
    found: list[tuple[int | None, bool]] = []
    for i in code:
        name = i.name.split(".")[0]
        if name == "BRA":
            target = bisect.bisect_left(addresses, int(i.operands.split()[-1], 16))  # which may be a NOP, and left out
            found.append((min(target, len(code) - 1), bool(i.predicate) or "," in i.operands))
        else:
            found.append((None, name not in ("EXIT", "RET") or bool(i.predicate)))
    return found


class _Match:
    """How often the blocks of machine code are executed, by the runs of the PTX that it was made from."""

    def __init__(self, runs: Runs, graph: Graph) -> None:
        self.runs, self.graph = runs, graph

    def blocks(self, ptx: Part, part: Part, turns: int = 1) -> dict[int, float]:
        """How often a turn of a part comes by its blocks, if it does the work of so many of one of PTX."""
        own = dict.fromkeys(part.own & part.certain, 1.0) | self._skipped(ptx, part)
        wanted, at, taken = ptx.inner * turns, 0, set[int]()
        matched: dict[int, list[tuple[int, Part]]] = {}  # by the number of the loop of PTX
        for loop in part.inner:
            fits = [(*self._turns(wanted[i], loop), i) for i in range(at, len(wanted))]
            fits = [(off, size, i) for off, size, i in fits if not (i == at and size in taken)]
            off, size, i = min(fits, key=lambda fit: fit[0], default=(math.inf, 0, 0))
            if off > NEAR:
                own |= dict.fromkeys(loop.blocks, 1.0)
                continue
            taken = {size} | (taken if i == at else set())
            at = i
            matched.setdefault(i, []).append((size, loop))
        for i, loops in matched.items():
            peeled = self._peeled(ptx, part, wanted)
            left = [max(0.0, trips - peeled) for trips in wanted[i].trips]
            pieces: list[tuple[int, Part | int]] = [*loops, *self._rests(wanted[i], part, loops)]
            pieces.sort(key=lambda piece: -piece[0])
            for size, piece in pieces:
                if isinstance(piece, int):
                    each = [float(trips >= size) for trips in left]
                else:
                    each = [trips // size if piece is not pieces[-1][1] else trips / size for trips in left]
                left = [trips - size * count for trips, count in zip(left, each, strict=True)]
                times = sum(each) / ptx.turns
                inside = {piece: 1.0} if isinstance(piece, int) else self.blocks(wanted[i], piece, size)
                own |= {b: times * count for b, count in inside.items()}
        return own

    def _turns(self, ptx: Part, loop: Part) -> tuple[float, int]:
        """How far off a loop is from one that is made of so many turns of one of PTX, of how many most likely."""
        wanted, never = self.runs.events(ptx), 0.0 if ptx.trips else NEAR / 2  # what never runs is not the first choice
        return min((_distance(self.events(self.blocks(ptx, loop, n)), wanted, n) + never, n) for n in range(1, MOST_TURNS + 1))

    def _peeled(self, ptx: Part, part: Part, wanted: Sequence[Part]) -> int:
        """How many turns of a loop, the only one, a part makes ahead of it."""
        certain = self.runs.graph.events_of(ptx.own & ptx.certain)
        more = self.graph.events_of(part.own & part.certain) - certain
        return len(wanted) == 1 and _distance(more, self.runs.events(wanted[0])) < 0.1

    def _rests(self, ptx: Part, part: Part, loops: Sequence[tuple[int, Part]]) -> list[tuple[int, int]]:
        """The blocks beside an unrolled loop that do its remaining turns: (number of turns, block)."""
        most, loop = max(loops, key=lambda of: of[0])
        others = [other.header for other in part.inner if all(other is not of for _, of in loops)]
        start = max((header for header in others if header < loop.header), default=-1)
        end = min((header for header in others if header > loop.header), default=math.inf)
        blocks = [b for b in part.own - part.certain if start < b < end and self.graph.events[b]]
        wanted = self.runs.events(ptx)
        return [(n, b) for n in range(1, most) for b in blocks if _distance(self.graph.events[b], wanted, n) < 0.1]

    def _skipped(self, ptx: Part, part: Part) -> dict[int, float]:
        """How often a turn comes by the blocks that a branch may skip."""
        here, there = self.graph.skipped(part), self.runs.graph.skipped(ptx)
        found: dict[int, float] = {}
        for b in sorted(part.own - part.certain, key=lambda b: len(self.graph.dominators[b])):
            events = next((events for events, blocks in here.items() if b in blocks), "")
            blocks, alike = here.get(events, []), there.get(events, [])
            counts = [self.runs.executed[other] / ptx.turns for other in alike] if ptx.trips else []
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
    """Between a count and some times another, as a share of what that has in all."""
    return sum(abs(a[kind] - times * b[kind]) for kind in {*a, *b}) / max(1e-9, times * sum(b.values()))


def _values(args: Iterable[Any], types: Iterable[Any]) -> Iterator[Any]:
    """The arguments that the compiled kernel takes. Triton has made the others constants: their type is "constexpr"."""
    for arg, type_ in zip(args, types, strict=False):
        if isinstance(type_, tuple):
            yield from _values(arg, type_)
        elif type_ != "constexpr":
            yield arg


def executed(binary: Any, programs: int, args: Sequence[Any], code: Sequence[Instruction] | None = None) -> Executed:
    """What a launch executes: of a kernel that Triton compiled for an NVIDIA GPU, as so many programs, with these arguments.

    Raises:
        ValueError: that cannot be told.
    """
    code = code or read_sass(binary.asm["cubin"])
    return executed_of(binary.asm["ptx"], code, programs, list(_values(args, binary.src.signature.values())))


def executed_of(ptx: str, code: Sequence[Instruction], programs: int, values: Sequence[Any]) -> Executed:
    """The same of its texts and the values of its parameters."""
    runs, graph = Runs(ptx, programs, values), Graph([i.name for i in code], _jumps(code))
    match = _Match(runs, graph)
    blocks = match.blocks(runs.graph.all, graph.all)
    names: Counter[str] = Counter()
    for b, times in blocks.items():
        for i in graph.blocks[b]:
            names[code[i].name] += times  # type: ignore[assignment]
    wanted = runs.events(runs.graph.all)
    return Executed(names, (wanted - match.events(blocks)).total() / max(1e-9, wanted.total()), runs.of_data)
