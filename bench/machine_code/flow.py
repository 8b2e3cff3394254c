"""Control flow of a listing: basic blocks, natural loops, and how often a block runs in one turn of its loop."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from nntk.bench.machine_code.listing import Instruction, Listing


@dataclass(frozen=True)
class Block:
    """Basic block: instructions that run without a jump in or out between them.

    Attributes:
        instructions: Instructions in their order.
        successors: Probability of each block that may follow.
    """

    instructions: tuple[Instruction, ...]
    successors: dict[int, float]


@dataclass(frozen=True)
class Loop:
    """Natural loop: the blocks that reach a back edge to its header without passing the header.

    Attributes:
        header: Block through which the loop is entered.
        members: Blocks of the loop, those of inner loops included.
    """

    header: int
    members: frozenset[int]


class Flow:
    """Control-flow graph of the blocks that the first instruction reaches.

    Args:
        listing: Instructions and labels of the kernel.
    """

    def __init__(self, listing: Listing) -> None:
        self.blocks = _blocks(listing)
        graph = nx.DiGraph()
        if self.blocks:
            graph.add_node(0)
        # Edges keep the order of the successors, and so does the depth-first search.
        for number, block in enumerate(self.blocks):
            graph.add_edges_from((number, successor) for successor in block.successors)
        self.order: list[int] = list(nx.dfs_postorder_nodes(graph, 0))[::-1] if self.blocks else []
        self.graph = graph.subgraph(self.order)

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """Dominators by block: the blocks that every path from the entry to the block passes, itself included."""
        immediate = nx.immediate_dominators(self.graph, 0) if self.blocks else {}
        dominators: dict[int, set[int]] = {}
        # In reverse postorder a block comes after its immediate dominator. The entry has none but itself.
        for block in self.order:
            dominators[block] = {block} | (dominators[immediate[block]] if block != 0 else set())
        return dominators

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops in the order of their headers; back edges to one header make one loop."""
        members: dict[int, set[int]] = {}
        for latch, header in self.graph.edges:
            if header in self.dominators[latch]:
                body = members.setdefault(header, {header})
                if latch != header:
                    inside = self.graph.subgraph(set(self.order) - {header})
                    body |= {latch} | nx.ancestors(inside, latch)
        return [Loop(header, frozenset(members[header])) for header in sorted(members)]

    def turn(self, loop: Loop) -> dict[int, float]:
        """Return how often each block of a loop runs in one turn.

        Both sides of a condition are equally likely unless the listing gives their probability. The turn does not leave
        the loop: an exit takes no probability from the other paths.

        Args:
            loop: Loop of this graph. Each of its inner loops is counted as one turn.

        Returns:
            Number of runs by block, 1 for the header.
        """
        return self._weights(loop.header, loop.members)

    def outside(self, loops: list[Loop]) -> dict[int, float]:
        """Return how often each block outside the given loops runs in one pass through the kernel."""
        inside = {block for loop in loops for block in loop.members}
        weights = self._weights(0, frozenset(self.order))
        return {block: weight for block, weight in weights.items() if block not in inside}

    def _weights(self, header: int, members: frozenset[int]) -> dict[int, float]:
        """Distribute one entry at the header over the blocks of a region; each inner loop counts as one block."""
        inner = [loop for loop in self.loops if loop.header != header and loop.members <= members]
        outermost = {loop.header: loop for loop in inner if not any(loop.members < outer.members for outer in inner)}
        entries = defaultdict(float, {header: 1.0})
        weights: dict[int, float] = {}
        for block in self.order:
            if block not in members or block in weights:
                continue
            loop = outermost.get(block)
            body = self._weights(block, loop.members) if loop else {block: 1.0}
            weights |= {member: entries[block] * weight for member, weight in body.items()}
            exits = [
                (successor, probability)
                for member in body
                for successor, probability in self.blocks[member].successors.items()
                if successor in members and successor not in body and successor != header
            ]
            total = sum(probability for _, probability in exits) or 1.0
            for successor, probability in exits:
                entries[successor] += entries[block] * probability / total
        return weights


def _blocks(listing: Listing) -> list[Block]:
    code, labels = listing.instructions, listing.labels
    targets = {labels[instruction.target] for instruction in code if instruction.target in labels}
    after_jumps = {
        number + 1 for number, instruction in enumerate(code) if instruction.target is not None or instruction.ends
    }
    starts = sorted(number for number in {0} | targets | after_jumps if number < len(code))
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
