"""Basic blocks and loops of PTX or of machine code."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

Events = Counter[str]  # instructions of each kind in EVENTS; ptxas neither adds nor removes them
EVENTS = {
    "load": r"ld\.(?:\w+\.)*global\b|cp\.async\.c[ag]\b|LDG",
    "store": r"st\.(?:\w+\.)*global\b|STG",
    "atomic": r"(?:atom|red)\.(?:\w+\.)*global\b|ATOMG|RED\b",
    "shuffle": r"shfl\b|SHFL",
    "barrier": r"bar\.sync|barrier\.sync|BAR\b",
}


class Part:
    """A loop, or the whole program. Blocks are numbers.

    Each iteration begins with the block `header` and ends with a block of `last`. `inner` has the loops directly inside.
    """

    def __init__(self, header: int, last: Sequence[int], blocks: set[int], dominators: Sequence[set[int]]) -> None:
        self.header, self.last, self.blocks, self.inner = header, set(last), blocks, list[Part]()
        self.trips: list[int] = []  # iterations of each run of the loop, if known
        self.certain = {b for b in blocks if all(b in dominators[end] for end in last)}  # executed in every iteration

    @property
    def own(self) -> set[int]:
        """The blocks outside its inner loops."""
        return self.blocks.difference(*(part.blocks for part in self.inner))

    @property
    def iterations(self) -> int:
        return max(1, sum(self.trips))


class Graph:
    """The control-flow graph of a program, with its loops.

    Args:
        names: the names of the instructions.
        jumps: for each instruction, the number of its jump target or None, and whether execution may fall through.
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
        """Group the conditional blocks of a part.

        Blocks of a group have equal events, and the blocks that they dominate have equal events. The key is a text.
        """
        found: dict[str, list[int]] = {}
        for b in sorted(part.own - part.certain):
            events = self.events_of(other for other in part.blocks if b in self.dominators[other])
            if events:
                found.setdefault(f"{sorted(self.events[b].items())} of {sorted(events.items())}", []).append(b)
        return found

    def _dominators(self) -> list[set[int]]:
        """The dominators of each block; empty for an unreachable block."""
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
        """The program and its loops: outer before inner, in program order."""
        # Predecessors of each block.
        before: dict[int, list[int]] = {b: [] for b in reached}
        for b in reached:
            for after in self.next(b):
                before[after].append(b)
        found = [Part(0, [b for b in reached if not self.next(b)], reached, self.dominators)]
        # Natural loops: a jump back to a dominator closes a loop. Collect its blocks backwards, from the jump to the header.
        for header in sorted(reached):
            last = [b for b in before[header] if header in self.dominators[b]]
            if last:
                blocks, left = {header}, list(last)
                while left:
                    if (b := left.pop()) not in blocks:
                        blocks.add(b)
                        left += before[b]
                found.append(Part(header, last, blocks, self.dominators))
        # Nest each loop in the smallest part around it.
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
