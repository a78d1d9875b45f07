"""How many instructions a launch executes: those of its machine code, each times how often a program comes by it.

The trips of loops are computed and not given: PTX, from which ptxas makes the machine code, is run for some programs of the
launch, as far as branches depend on it: integers and scalar floats, from the arguments and the number of the program. ptxas
unrolls loops, so that loops of both texts are matched: a loop of the machine code does the work of so many turns of one of PTX
as it has times the loads, stores, shuffles and barriers, of which ptxas neither adds nor removes any. What both texts execute
of these in all says whether that came out right. What a predicate leaves out is issued, and counts.

A branch that depends on data is taken as not taken: a loop of that kind counts once. A block that a branch may skip counts as
often as PTX executes the one with the same such instructions and, without any, always: what cannot be known is counted.
"""

import bisect
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from bench.machine_code import Instruction, read_sass

Events = Counter[str]  # how many of each kind
EVENTS = {
    "load": r"ld\.(?:\w+\.)*global\b|cp\.async\.c[ag]\b|LDG",
    "store": r"st\.(?:\w+\.)*global\b|STG",
    "atomic": r"(?:atom|red)\.(?:\w+\.)*global\b|ATOMG|RED\b",
    "shuffle": r"shfl\b|SHFL",
    "barrier": r"bar\.sync|barrier\.sync|BAR\b",
}
SAMPLES = 97  # programs that are run
MOST_TURNS = 16  # of a loop that ptxas makes one
NEAR = 0.4  # ptxas may drop loads that it has already
MOST_STEPS = 10**6  # blocks of PTX in all


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


class Part:
    """A loop, or all of a program, as blocks of which the header comes first in each turn."""

    def __init__(self, header: int, last: Sequence[int], blocks: set[int], dominators: Sequence[set[int]]) -> None:
        self.header, self.last, self.blocks, self.inner = header, set(last), blocks, list[Part]()
        self.trips: list[int] = []  # how many turns it makes, each time it begins, where that is known
        self.certain = {b for b in blocks if all(b in dominators[end] for end in last)}  # those that each turn comes by

    @property
    def own(self) -> set[int]:
        """The blocks in none of its loops."""
        return self.blocks.difference(*(part.blocks for part in self.inner))

    @property
    def turns(self) -> int:
        return max(1, sum(self.trips))


class Graph:
    """The blocks of a program and its loops.

    Args:
        names: of the instructions.
        jumps: for each, the number of the one it may jump to, or None, and whether the next may follow it.
    """

    def __init__(self, names: Sequence[str], jumps: Sequence[tuple[int | None, bool]]) -> None:
        starts = {0, *(to for to, _ in jumps if to is not None)}
        starts |= {i + 1 for i, (to, goes_on) in enumerate(jumps) if to is not None or not goes_on}
        ordered = sorted(start for start in starts if start < len(names))
        self.blocks = [range(a, b) for a, b in zip(ordered, [*ordered[1:], len(names)], strict=True)]
        number = {block.start: i for i, block in enumerate(self.blocks)}
        self.events = [Counter(kind for i in block if (kind := _kind(names[i]))) for block in self.blocks]
        self.jump = [number[to] if (to := jumps[block[-1]][0]) is not None else None for block in self.blocks]
        self.goes_on = [jumps[block[-1]][1] and i + 1 < len(self.blocks) for i, block in enumerate(self.blocks)]
        self.dominators = self._dominators()
        reached = {b for b, dominators in enumerate(self.dominators) if dominators}
        self.parts = self._parts(reached)
        self.all = self.parts[0]

    def next(self, block: int) -> list[int]:
        jump = self.jump[block]
        return [*([block + 1] if self.goes_on[block] else []), *([jump] if jump is not None else [])]

    def events_of(self, blocks: Iterable[int]) -> Events:
        return sum((self.events[b] for b in blocks), Counter())

    def skipped(self, part: Part) -> dict[str, list[int]]:
        """The blocks of a part that a branch may skip, by their events and those in all that it skips with them."""
        found: dict[str, list[int]] = {}
        for b in sorted(part.own - part.certain):
            events = self.events_of(other for other in part.blocks if b in self.dominators[other])
            if events:
                found.setdefault(f"{sorted(self.events[b].items())} of {sorted(events.items())}", []).append(b)
        return found

    def _dominators(self) -> list[set[int]]:
        """The blocks on every way to each; none for what is not reached."""
        found: list[set[int]] = [set() for _ in self.blocks]
        found[0], changed = {0}, True
        while changed:
            changed = False
            for b in range(len(self.blocks)):
                for after in self.next(b) if found[b] else ():
                    new = {after} | (found[after] & found[b] if found[after] else found[b])
                    if after and new != found[after]:
                        found[after], changed = new, True
        return found

    def _parts(self, reached: set[int]) -> list[Part]:
        """The program and its loops, each after what it is in and before what follows it."""
        before: dict[int, list[int]] = {b: [] for b in reached}
        for b in reached:
            for after in self.next(b):
                before[after].append(b)
        found = [Part(0, [b for b in reached if not self.next(b)], reached, self.dominators)]
        for header in sorted(reached):
            last = [b for b in before[header] if header in self.dominators[b]]
            if last:
                blocks, left = {header}, list(last)
                while left:
                    if (b := left.pop()) not in blocks:
                        blocks.add(b)
                        left += before[b]
                found.append(Part(header, last, blocks, self.dominators))
        found.sort(key=lambda part: (-len(part.blocks), part.header))
        for i, part in enumerate(found):
            around = [other for other in found[:i] if part.header in other.blocks]
            if around:
                around[-1].inner.append(part)
        for part in found:
            part.inner.sort(key=lambda inner: inner.header)
        return found


@cache
def _kind(name: str) -> str | None:
    return next((kind for kind, pattern in EVENTS.items() if re.match(pattern, name)), None)


class Operation(NamedTuple):
    """An instruction of PTX."""

    predicate: str  # "%p1", "!%p1" or nothing
    name: str
    operands: tuple[str, ...]


def read_ptx(ptx: str) -> tuple[list[Operation], list[tuple[int | None, bool]]]:
    """The instructions of a kernel, and how each goes on, as Graph takes it."""
    operations: list[Operation] = []
    labels: dict[str, int] = {}
    body = ptx[ptx.index("\n{") + 2 : ptx.index("\n}")]
    for line in body.splitlines():
        line = line.partition("//")[0].strip().lstrip("{} \t")
        if label := re.match(r"(\$\w+):", line):
            labels[label[1]] = len(operations)
        elif not line.startswith("."):
            for found in re.finditer(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*([^;]*);", line):
                operations.append(Operation(found[1] or "", found[2], tuple(re.split(r",\s*", found[3].strip()))))
    jumps: list[tuple[int | None, bool]] = []
    for predicate, name, operands in operations:
        if name.startswith("bra"):
            jumps.append((labels[operands[0]], bool(predicate)))
        else:
            jumps.append((None, name not in ("ret", "exit", "trap") or bool(predicate)))
    return operations, jumps


class Runs:
    """How often the blocks of PTX are executed by some programs of a launch.

    Raises:
        ValueError: its arguments are not those of the kernel, or it does not end.
    """

    def __init__(self, ptx: str, programs: int, values: Sequence[Any]) -> None:
        self.operations, jumps = read_ptx(ptx)
        self.graph = Graph([operation.name for operation in self.operations], jumps)
        self.values = values
        head = ptx[ptx.index(".entry ") : ptx.index("\n{")]
        if not 0 <= head.count(".param ") - len(values) <= 2:  # Triton may add two
            raise ValueError("its parameters are others")
        self.executed: Counter[int] = Counter()
        self.of_data, self._steps = False, 0
        needed = self._needed()
        self._needed_of = [[i for i in block if needed & set(self._results(i))] for block in self.graph.blocks]
        count = min(programs, SAMPLES)
        for i in range(count):  # steps by the golden ratio meet each remainder of the number about equally often
            self._run(i if count == programs else int(i * (math.sqrt(5) - 1) / 2 % 1 * programs))
        self.graph.all.trips = [1] * count

    def events(self, part: Part) -> Events:
        """What a turn of it executes."""
        found: Events = Counter()
        for b in part.blocks:
            for kind, count in self.graph.events[b].items():
                found[kind] += count * (self.executed[b] / part.turns if part.trips else 1)  # type: ignore[assignment]
        return found

    def _results(self, i: int) -> list[str]:
        return re.findall(r"%[\w.]+", self.operations[i].operands[0])

    def _needed(self) -> set[str]:
        """The registers that branches depend on."""
        needed = {o.predicate.lstrip("!") for o in self.operations if o.name.startswith("bra")}
        while True:
            more = set(needed)
            for i, operation in enumerate(self.operations):
                if needed & set(self._results(i)):
                    more.update(re.findall(r"%\w+", " ".join(operation.operands[1:])))
            if more == needed:
                return needed
            needed = more

    def _run(self, program: int) -> None:
        registers: dict[str, int | None] = {"%ctaid.x": program, "%tid.x": 0}
        before, at = -1, 0
        loops = self.graph.parts[1:]
        while True:
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise ValueError("it does not end")
            self.executed[at] += 1
            for loop in loops:
                if at == loop.header and before not in loop.blocks:
                    loop.trips.append(0)
                if at in loop.last:
                    loop.trips[-1] += 1
            for i in self._needed_of[at]:
                _, name, operands = operation = self.operations[i]
                value = None if operation.predicate else self._value(name, operands, registers)
                registers.update(dict.fromkeys(self._results(i), value))
            jump, goes_on = self.graph.jump[at], self.graph.goes_on[at]
            if jump is not None and goes_on:
                predicate = self.operations[self.graph.blocks[at][-1]].predicate
                known = registers.get(predicate.lstrip("!"))
                self.of_data |= known is None
                goes_on = known is None or bool(known) == predicate.startswith("!")
            if not goes_on and jump is None:
                return
            before, at = at, at + 1 if goes_on else jump  # type: ignore[assignment]

    def _value(self, name: str, operands: tuple[str, ...], registers: dict[str, int | None]) -> int | None:
        """The bits of a result, where those that it depends on are known."""
        if name.startswith("ld.param"):
            number = int(operands[1].strip("[]").rpartition("_")[2])
            value = self.values[number] if number < len(self.values) else None
            if isinstance(value, float):
                return _bits(value, "f" + name[-2:])
            return None if value is None or isinstance(value, Tensor) else _bits(value, "u" + name[-2:])
        sources = [_constant(o) if (o[0].isdigit() or o[0] == "-") else registers.get(o) for o in operands[1:]]
        return _computed(name, sources)


def _values(args: Iterable[Any], types: Iterable[Any]) -> Iterator[Any]:
    """The arguments that are parameters, by the types that Triton gave them: not those that it made constants."""
    for arg, type_ in zip(args, types, strict=False):
        if isinstance(type_, tuple):
            yield from _values(arg, type_)
        elif type_ != "constexpr":
            yield arg


def _constant(word: str) -> int:
    return int(word[2:], 16) if word[:2] in ("0f", "0d") else int(word, 0)


def _bits(value: Any, kind: str) -> int:
    """Of a number of a PTX type, as "s32"."""
    if kind == "pred":
        return int(bool(value))
    if kind[0] == "f":
        if abs(value) > 3e38 and kind == "f32" and math.isfinite(value):
            value = math.copysign(math.inf, value)
        return int.from_bytes(struct.pack("<f" if kind == "f32" else "<d", value), "little")
    return int(value) % 2 ** int(kind[1:])


def _number(bits: int, kind: str) -> Any:
    """What such bits stand for."""
    if kind == "pred":
        return bool(bits)
    size = int(kind[1:])
    bits %= 2**size
    if kind[0] == "f":
        return struct.unpack("<f" if kind == "f32" else "<d", bits.to_bytes(size // 8, "little"))[0]
    return bits - 2**size if kind[0] == "s" and bits >= 2 ** (size - 1) else bits


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "mad": lambda a, b, c: a * b + c,
    "fma": lambda a, b, c: a * b + c, "neg": lambda a: -a, "abs": abs, "min": min, "max": max, "mov": lambda a: a,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "not": lambda a: ~a,
    "shl": lambda a, b: a << b, "shr": lambda a, b: a >> b, "bfe": lambda a, b, c: (a >> b) % 2**c,
}  # fmt: skip
_COMPARES: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "neu": lambda a, b: a != b, "equ": lambda a, b: a == b,
    "ltu": lambda a, b: a < b, "leu": lambda a, b: a <= b, "gtu": lambda a, b: a > b, "geu": lambda a, b: a >= b,
}  # fmt: skip
_ROUNDED: dict[str, Callable[[float], int]] = {"rmi": math.floor, "rpi": math.ceil, "rzi": math.trunc, "rni": round}


def _computed(name: str, sources: Sequence[int | None]) -> int | None:
    """What an instruction of PTX makes of these bits; None if it is none of integers or floats, or they are not known."""
    what, *how, kind = name.split(".") if "." in name else (name, "")
    if not re.fullmatch(r"pred|[subf](?:8|16|32|64)", kind) or kind == "f16":
        return None
    if what == "selp":
        return None if sources[2] is None else sources[0 if sources[2] else 1]
    if any(source is None for source in sources):
        return None
    numbers = [_number(source, kind) for source in sources if source is not None]
    if what in ("shl", "shr", "bfe"):
        numbers[1:] = [_number(source, "u32") for source in sources[1:] if source is not None]
    if what == "setp":
        return int(_COMPARES[how[0]](*numbers[:2])) if len(numbers) == 2 and how[0] in _COMPARES else None
    if what == "cvt" and re.fullmatch(r"[suf](?:8|16|32|64)", how[-1]) and how[-1] != "f16":
        rounded = next((_ROUNDED[mode] for mode in how[:-1] if mode in _ROUNDED), None)
        number = numbers[0] if rounded is None or not math.isfinite(numbers[0]) else rounded(numbers[0])
        return _bits(number, how[-1]) if how[-1][0] == "f" or math.isfinite(number) else None
    if what in ("div", "rem"):
        if not numbers[1]:
            return None
        if kind[0] == "f":
            return _bits(numbers[0] / numbers[1], kind)
        quotient = abs(numbers[0]) // abs(numbers[1]) * (1 if (numbers[0] < 0) == (numbers[1] < 0) else -1)
        return _bits(quotient if what == "div" else numbers[0] - quotient * numbers[1], kind)
    if what not in _ARITHMETIC or "{" in name:
        return None
    value = _ARITHMETIC[what](*numbers)
    if "wide" in how:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        if what == "mad":
            value = numbers[0] * numbers[1] + _number(sources[2] or 0, kind)
    elif "hi" in how:
        value >>= int(kind[1:])
    return _bits(value & 1 if kind == "pred" else value, kind)


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
        """Blocks around an unrolled loop that do some of the turns which it leaves: (how many, block)."""
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
