"""The control flow of a listing: basic blocks, natural loops, and how often a block runs in one turn of its loop."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from nntk.bench.machine_code.listing import Instruction, Listing


@dataclass(frozen=True)
class Block:
    """Instructions that run in one go.

    Attributes:
        instructions: What runs.
        successors: Which block follows how likely.
    """

    instructions: tuple[Instruction, ...]
    successors: dict[int, float]


@dataclass(frozen=True)
class Loop:
    """A natural loop: everything that reaches a back edge to its header without passing the header.

    Attributes:
        header: The block through which it is entered.
        members: Its blocks, those of inner loops included.
    """

    header: int
    members: frozenset[int]


class Flow:
    """The control-flow graph of what is reachable from the first instruction.

    Args:
        listing: The kernel.
    """

    def __init__(self, listing: Listing) -> None:
        self.blocks = _blocks(listing)
        self.order = self._reverse_postorder()
        self.predecessors: defaultdict[int, list[int]] = defaultdict(list)
        for block in self.order:
            for other in self.blocks[block].successors:
                self.predecessors[other].append(block)

    def _reverse_postorder(self) -> list[int]:
        done: list[int] = []
        seen = {0}
        path = [(0, iter(self.blocks[0].successors))] if self.blocks else []
        while path:
            block, ahead = path[-1]
            following = next((other for other in ahead if other not in seen), None)
            if following is None:
                done.append(block)
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(self.blocks[following].successors)))
        return done[::-1]

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """The blocks that every way from the entry to a block passes, itself included."""
        found = {block: set(self.order) for block in self.order}
        changed = True
        while changed:
            changed = False
            for block in self.order:
                ways = [found[other] for other in self.predecessors[block]]
                above = {block} | (set.intersection(*ways) if ways and block != 0 else set())
                changed |= above != found[block]
                found[block] = above
        return found

    @cached_property
    def loops(self) -> list[Loop]:
        """The natural loops by the address of their headers; back edges to one header make one loop."""
        members: dict[int, set[int]] = {}
        for latch in self.order:
            for header in self.blocks[latch].successors:
                if header in self.dominators[latch]:
                    body = members.setdefault(header, {header})
                    ahead = [latch]
                    while ahead:
                        block = ahead.pop()
                        if block not in body:
                            body.add(block)
                            ahead += self.predecessors[block]
        return [Loop(header, frozenset(members[header])) for header in sorted(members)]

    def turn(self, loop: Loop) -> dict[int, float]:
        """Say how often each block of a loop runs in one turn.

        Both sides of a condition are equally likely, where the listing does not know better. The turn goes on: a way
        out of the loop takes nothing from the others.

        Args:
            loop: The loop; its inner loops are taken to turn once.

        Returns:
            The runs by block, 1 for the header.
        """
        return self._weights(loop.header, loop.members)

    def outside(self, loops: list[Loop]) -> dict[int, float]:
        """How often each block runs in one pass through the kernel, apart from the blocks of some loops."""
        inside = {block for loop in loops for block in loop.members}
        weights = self._weights(0, frozenset(self.order))
        return {block: weight for block, weight in weights.items() if block not in inside}

    def _weights(self, header: int, members: frozenset[int]) -> dict[int, float]:
        """Spread one entry at the header over a region, its inner loops taken as one block each."""
        inner = [loop for loop in self.loops if loop.header != header and loop.members <= members]
        outermost = {loop.header: loop for loop in inner if not any(loop.members < other.members for other in inner)}
        arriving = defaultdict(float, {header: 1.0})
        weights: dict[int, float] = {}
        for block in self.order:
            if block not in members or block in weights:
                continue
            loop = outermost.get(block)
            body = self._weights(block, loop.members) if loop else {block: 1.0}
            weights |= {member: arriving[block] * weight for member, weight in body.items()}
            ways = [
                (other, likely)
                for member in body
                for other, likely in self.blocks[member].successors.items()
                if other in members and other not in body and other != header
            ]
            total = sum(likely for _, likely in ways) or 1.0
            for other, likely in ways:
                arriving[other] += arriving[block] * likely / total
        return weights


def _blocks(listing: Listing) -> list[Block]:
    code, labels = listing.instructions, listing.labels
    targets = {labels[one.target] for one in code if one.target in labels}
    after = {number + 1 for number, one in enumerate(code) if one.target is not None or one.ends}
    starts = sorted(number for number in {0} | targets | after if number < len(code))
    index = {start: number for number, start in enumerate(starts)}
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(code)], strict=True):
        last, successors = code[stop - 1], defaultdict[int, float](float)
        if not last.ends and last.taken < 1 and stop in index:
            successors[index[stop]] += 1 - last.taken
        if last.target in labels and labels[last.target] in index:
            successors[index[labels[last.target]]] += last.taken
        blocks.append(Block(tuple(code[start:stop]), dict(successors)))
    return blocks
