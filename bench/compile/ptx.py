"""A PTX interpreter that follows control flow only: it counts how often a program of a launch executes each block.

It computes integers and floats from the launch's arguments and the program's number. Loaded values are unknown. If a branch
depends on an unknown value, it leaves its loop if it can; otherwise it does not jump.
"""

import math
import operator
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bench.compile.control_flow import Events, Graph, Part

SAMPLES = 97  # interpreted programs
MOST_STEPS = 10**6  # executed blocks, over all programs


class Operation(NamedTuple):
    """An instruction of PTX."""

    predicate: str  # "%p1", "!%p1" or nothing
    name: str
    operands: tuple[str, ...]


def read_ptx(ptx: str) -> tuple[list[Operation], list[tuple[int | None, bool]]]:
    """The instructions of a kernel and their `jumps` for Graph."""
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


def _names(operations: Sequence[Operation], jumps: Sequence[tuple[int | None, bool]]) -> list[str]:
    """The names of operations. A repeated load in a block gets an empty name, because ptxas removes it."""
    targets, names, loaded = {to for to, _ in jumps}, list[str](), set[tuple[str, ...]]()
    for i, (predicate, name, operands) in enumerate(operations):
        load = predicate, name, operands[-1]
        names.append("" if name.startswith("ld.global") and load in loaded and i not in targets else name)
        if i in targets or name.startswith("bra"):
            loaded.clear()
        loaded.add(load)
    return names


class Runs:
    """Executions of each block of PTX, over some programs of a launch.

    Raises:
        ValueError: the values do not match the kernel's parameters, or the kernel does not end.
    """

    def __init__(self, ptx: str, programs: int, values: Sequence[Any]) -> None:
        self.operations, jumps = read_ptx(ptx)
        self.graph = Graph(_names(self.operations, jumps), jumps)
        self.values = values
        head = ptx[ptx.index(".entry ") : ptx.index("\n{")]
        if not 0 <= head.count(".param ") - len(values) <= 2:  # Triton may add two parameters, for scratch memory
            raise ValueError("the kernel has other parameters")
        self.executed: Counter[int] = Counter()
        self.of_data, self._steps = False, 0
        needed = self._needed()
        self._needed_of = [[i for i in block if needed & set(self._results(i))] for block in self.graph.blocks]
        count = min(programs, SAMPLES)
        # In steps of the golden ratio, the samples cover the remainders modulo any small number about equally often.
        for i in range(count):
            self._run(i if count == programs else int(i * (math.sqrt(5) - 1) / 2 % 1 * programs))
        self.graph.all.trips = [1] * count

    def events(self, part: Part) -> Events:
        """The events of one iteration of a part."""
        found: Events = Counter()
        for b in part.blocks:
            for kind, count in self.graph.events[b].items():
                found[kind] += count * (self.executed[b] / part.iterations if part.trips else 1)  # type: ignore[assignment]
        return found

    def _results(self, i: int) -> list[str]:
        return re.findall(r"%[\w.]+", self.operations[i].operands[0])

    def _needed(self) -> set[str]:
        """The registers on which branches depend."""
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
                raise ValueError("the kernel does not end")
            self.executed[at] += 1
            for loop in loops:
                if at == loop.header and before not in loop.blocks:
                    loop.trips.append(0)
                if at in loop.last:
                    loop.trips[-1] += 1
            for i in self._needed_of[at]:
                _, name, operands = operation = self.operations[i]
                known = not operation.predicate and "|" not in operands[0]
                value = self._value(name, operands, registers) if known else None
                registers.update(dict.fromkeys(self._results(i), value))
            following = self.graph.next(at)
            if not following:
                return
            before, at = at, following[0] if len(following) == 1 else self._taken(at, following, registers)

    def _taken(self, at: int, following: Sequence[int], registers: dict[str, int | None]) -> int:
        """The block after a conditional branch: the next block or the branch target."""
        predicate = self.operations[self.graph.blocks[at][-1]].predicate
        value = registers.get(predicate.lstrip("!"))
        if value is not None:
            return following[bool(value) != predicate.startswith("!")]
        self.of_data = True
        inside = [part.blocks for part in self.graph.parts if at in part.blocks][-1]
        return next((block for block in following if block not in inside), following[0])

    def _value(self, name: str, operands: tuple[str, ...], registers: dict[str, int | None]) -> int | None:
        """The bits of a result, or None if an operand is unknown."""
        if re.fullmatch(r"ld\.param\.[bsuf]\d+", name):
            number = int(operands[1].strip("[]").rpartition("_")[2])
            value = self.values[number] if number < len(self.values) else None
            if isinstance(value, float):
                return _bits(value, "f" + name[-2:])
            return None if value is None or isinstance(value, Tensor) else _bits(value, "u" + name[-2:])
        sources = [_constant(o) if (o[0].isdigit() or o[0] == "-") else registers.get(o) for o in operands[1:]]
        return _computed(name, sources)


def _constant(word: str) -> int:
    return int(word[2:], 16) if word[:2] in ("0f", "0d") else int(word, 0)


def _bits(value: Any, kind: str) -> int:
    """The bits of a number in a PTX type such as "s32"."""
    if kind == "pred":
        return int(bool(value))
    if kind[0] == "f":
        if abs(value) > 3e38 and kind == "f32" and math.isfinite(value):
            value = math.copysign(math.inf, value)
        return int.from_bytes(struct.pack("<f" if kind == "f32" else "<d", value), "little")
    return int(value) % 2 ** int(kind[1:])


def _number(bits: int, kind: str) -> Any:
    """The number with these bits in a PTX type; the inverse of `_bits`."""
    if kind == "pred":
        return bool(bits)
    size = int(kind[1:])
    bits %= 2**size
    if kind[0] == "f":
        return struct.unpack("<f" if kind == "f32" else "<d", bits.to_bytes(size // 8, "little"))[0]
    return bits - 2**size if kind[0] == "s" and bits >= 2 ** (size - 1) else bits


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "mad": lambda a, b, c: a * b + c,
    "fma": lambda a, b, c: a * b + c, "neg": operator.neg, "abs": abs, "min": min, "max": max, "mov": lambda a: a,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": operator.invert,
    "shl": lambda a, b: a << min(b, 64), "shr": lambda a, b: a >> b, "bfe": lambda a, b, c: (a >> b) % 2 ** min(c, 64),
}  # fmt: skip
_COMPARES = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_ROUNDED: dict[str, Callable[[float], int]] = {"rmi": math.floor, "rpi": math.ceil, "rzi": math.trunc, "rni": round}


def _computed(name: str, sources: Sequence[int | None]) -> int | None:
    """The result of a PTX instruction, as bits; None if an operand is unknown, or is neither an integer nor a float."""
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
        compare = _COMPARES.get(how[0].removesuffix("u"))  # the suffix "u" only makes comparisons with NaN true
        return int(compare(*numbers)) if compare and len(numbers) == 2 else None
    if what == "cvt" and re.fullmatch(r"[suf](?:8|16|32|64)", how[-1]) and how[-1] != "f16":
        rounded = next((_ROUNDED[mode] for mode in how[:-1] if mode in _ROUNDED), None)
        number = numbers[0] if rounded is None or not math.isfinite(numbers[0]) else rounded(numbers[0])
        if how[-1][0] != "f" and not math.isfinite(number):
            return None
        bits = _bits(number, how[-1])
        return _bits(_number(bits, how[-1]), "s64") if how[-1][0] == "s" else bits  # sign-extend to the register
    if what in ("div", "rem"):
        if not numbers[1]:
            return None
        if kind[0] == "f":
            return _bits(numbers[0] / numbers[1], kind)
        quotient = abs(numbers[0]) // abs(numbers[1]) * (1 if (numbers[0] < 0) == (numbers[1] < 0) else -1)
        return _bits(quotient if what == "div" else numbers[0] - quotient * numbers[1], kind)
    if what not in _ARITHMETIC:
        return None
    value = _ARITHMETIC[what](*numbers)
    if "wide" in how:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        if what == "mad":
            value = numbers[0] * numbers[1] + _number(sources[2] or 0, kind)
    elif "hi" in how:
        value >>= int(kind[1:])
    return _bits(value & 1 if kind == "pred" else value, kind)
