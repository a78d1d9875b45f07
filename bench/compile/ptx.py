"""Count the executed instructions of a launch: interpret the control flow of its PTX for some of its programs.

The interpreter computes integers and floats from the launch's arguments and the program's number. Loaded values are unknown. If
a branch depends on an unknown value, it leaves its loop if it can; otherwise it does not jump.

ptxas compiles the PTX to machine code. It unrolls loops, predicates branches and fuses some instructions, but the number of
executed instructions remains about the same, except that

- `mov`, `cvta` and loads of parameters do not count: ptxas renames registers, and parameters are operands in constant memory;
- an integer division counts as DIVISION instructions: PTX has an instruction for it, the GPU has none.

An instruction with a false predicate is issued, so it counts.
"""

import math
import operator
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

SAMPLES = 97  # interpreted programs
MOST_STEPS = 10**6  # executed blocks, over all programs
DIVISION = 20  # machine instructions of an integer division by a variable


class Operation(NamedTuple):
    """An instruction of PTX."""

    predicate: str  # "%p1", "!%p1" or nothing
    name: str
    operands: tuple[str, ...]

    @property
    def results(self) -> list[str]:
        """The changed registers. A store has none: its first operand is an address."""
        return [] if self.operands[0].startswith("[") else re.findall(r"%[\w.]+", self.operands[0])

    @property
    def cost(self) -> int:
        """The number of machine instructions, about."""
        if re.match(r"(?:mov|cvta|ld\.param)\b", self.name):
            return 0
        return DIVISION if re.match(r"(?:div|rem)\.[su]", self.name) else 1

    @property
    def access(self) -> tuple[str, int]:
        """("ld" or "st", bytes) of an access to global memory; otherwise ("", 0)."""
        if re.match(r"cp\.async\.c[ag]\.", self.name):
            return "ld", int(self.operands[2], 0)
        found = re.match(r"(ld|st)\.(?:\w+\.)*global\b(?:.*\.v(\d))?.*\.[bsuf](\d+)$", self.name)
        return (found[1], int(found[2] or 1) * int(found[3]) // 8) if found else ("", 0)


class Executed(NamedTuple):
    """What a thread executes, on average over the programs of a launch."""

    instructions: float
    loaded: Counter[int]  # bytes from global memory, by the width of the access in bytes
    stored: Counter[int]  # bytes to global memory
    of_data: bool  # whether branches depend on data, so the counts are uncertain


def executed(binary: Any, programs: int, args: Sequence[Any]) -> Executed:
    """Count the instructions of a launch of `programs` programs of a kernel compiled for an NVIDIA GPU.

    Raises:
        ValueError: the count cannot be computed.
    """
    return Runs(binary.asm["ptx"], programs, list(values_of(args, binary.src.signature.values()))).total()


def values_of(args: Iterable[Any], types: Iterable[Any]) -> Iterator[Any]:
    """The arguments of the compiled kernel: without the constants, of type "constexpr"."""
    for arg, type_ in zip(args, types, strict=False):
        if isinstance(type_, tuple):
            yield from values_of(arg, type_)
        elif type_ != "constexpr":
            yield arg


def read_ptx(ptx: str) -> tuple[list[Operation], dict[str, int]]:
    """The instructions of a kernel, and the numbers of the instructions after its labels."""
    operations: list[Operation] = []
    labels: dict[str, int] = {}
    body = ptx[ptx.index("\n{") + 2 : ptx.rindex("\n}")]  # blocks of inline assembly end with "}" too
    for line in body.splitlines():
        line = line.partition("//")[0].strip().lstrip("{} \t")
        if label := re.match(r"(\$\w+):", line):
            labels[label[1]] = len(operations)
        elif not line.startswith("."):
            operations += _operations(line)
    return operations, labels


def _operations(line: str) -> Iterator[Operation]:
    for found in re.finditer(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*([^;]*);", line):
        yield Operation(found[1] or "", found[2], tuple(re.split(r",\s*", found[3].strip())))


def accesses(ptx: str) -> Counter[tuple[str, int]]:
    """The accesses to global memory in the text of a kernel: their number by kind ("ld" or "st") and width in bytes."""
    lines = (line for line in ptx.splitlines() if "global" in line)
    return Counter(operation.access for line in lines for operation in _operations(line) if operation.access[0])


class Runs:
    """Executions of each basic block of PTX, over some programs of a launch. Blocks are numbers, in program order.

    Raises:
        ValueError: the values do not match the kernel's parameters, or the kernel does not end.
    """

    def __init__(self, ptx: str, programs: int, values: Sequence[Any]) -> None:
        head = ptx[ptx.index(".entry ") : ptx.index("\n{")]
        if not 0 <= head.count(".param ") - len(values) <= 2:  # Triton may add two parameters, for scratch memory
            raise ValueError("the kernel has other parameters")
        self.values, (self.operations, labels) = values, read_ptx(ptx)
        jumps = [i for i, o in enumerate(self.operations) if re.match(r"(?:bra|ret|exit|trap)\b", o.name)]
        targets = {i: labels[o.operands[0]] for i in jumps if (o := self.operations[i]).name.startswith("bra")}
        starts = sorted({0, *targets.values(), *(i + 1 for i in jumps)} - {len(self.operations)})
        self.blocks = [range(a, b) for a, b in zip(starts, [*starts[1:], len(self.operations)], strict=True)]
        self.next: list[list[int]] = []  # the following block, then the target of the jump
        for number, block in enumerate(self.blocks):
            goes_on = block[-1] not in jumps or self.operations[block[-1]].predicate
            target = [starts.index(targets[block[-1]])] if block[-1] in targets else []
            self.next.append([*([number + 1] if goes_on and number + 1 < len(starts) else []), *target])
        # A jump backwards closes a loop. Inner loops come first.
        loops = [range(to, number + 1) for number, after in enumerate(self.next) for to in after if to <= number]
        self.loops = sorted(loops, key=len)
        self.executed: Counter[int] = Counter()
        self.of_data, self.programs, self._steps = False, min(programs, SAMPLES), 0
        needed = self._needed()
        self._needed_of = [[o for o in self._of(block) if needed & {*o.results}] for block in self.blocks]
        # In steps of the golden ratio, the samples cover the remainders modulo any small number about equally often.
        for i in range(self.programs):
            self._run(i if self.programs == programs else int(i * (math.sqrt(5) - 1) / 2 % 1 * programs))

    def total(self) -> Executed:
        """Sum over the blocks, per program."""
        instructions = 0.0
        moved: dict[str, Counter[int]] = {"": Counter(), "ld": Counter(), "st": Counter()}
        for block, times in self.executed.items():
            for operation in self._of(self.blocks[block]):
                kind, size = operation.access
                moved[kind][size] += size * times / self.programs  # type: ignore[assignment]
                instructions += operation.cost * times / self.programs
        return Executed(instructions, moved["ld"], moved["st"], self.of_data)

    def _of(self, block: range) -> list[Operation]:
        return self.operations[block.start : block.stop]

    def _needed(self) -> set[str]:
        """The registers on which branches depend."""
        needed = {o.predicate.lstrip("!") for o in self.operations if o.name.startswith("bra")}
        while True:
            more = set(needed)
            for operation in self.operations:
                if needed & {*operation.results}:
                    more.update(re.findall(r"%\w+", " ".join(operation.operands[1:])))
            if more == needed:
                return needed
            needed = more

    def _run(self, program: int) -> None:
        registers: dict[str, int | None] = {"%ctaid.x": program, "%tid.x": 0}
        at = 0
        while True:
            self.executed[at] += 1
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise ValueError("the kernel does not end")
            for operation in self._needed_of[at]:
                known = not operation.predicate and "|" not in operation.operands[0]
                value = self._value(operation.name, operation.operands, registers) if known else None
                registers.update(dict.fromkeys(operation.results, value))
            if not self.next[at]:
                return
            at = self.next[at][0] if len(self.next[at]) == 1 else self._taken(at, registers)

    def _taken(self, at: int, registers: dict[str, int | None]) -> int:
        """The block after a conditional branch: the next block or the branch target."""
        predicate, following = self.operations[self.blocks[at][-1]].predicate, self.next[at]
        value = registers.get(predicate.lstrip("!"))
        if value is not None:
            return following[bool(value) != predicate.startswith("!")]
        self.of_data = True
        inside = next((loop for loop in self.loops if at in loop), range(0))
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
