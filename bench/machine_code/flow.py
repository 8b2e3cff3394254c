"""Control flow of a listing: basic blocks, natural loops, and how often a block runs in one turn of its loop."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import networkx

from nntk.bench.machine_code.listing import Instruction, Listing


@dataclass(frozen=True)
class Block:
    """Instructions that always run together.

    Attributes:
        instructions: The instructions, in order.
        successors: Probability of each block that may follow.
    """

    instructions: tuple[Instruction, ...]
    successors: dict[int, float]


@dataclass(frozen=True)
class Loop:
    """Natural loop: all blocks that reach a back edge to the header without passing the header.

    Attributes:
        header: Block through which the loop is entered.
        members: Blocks of the loop, those of inner loops included.
    """

    header: int
    members: frozenset[int]


class Flow:
    """Control-flow graph of what is reachable from the first instruction.

    Args:
        listing: Machine code of the kernel.
    """

    def __init__(self, listing: Listing) -> None:
        self.blocks = _blocks(listing)
        edges = ((number, other) for number, block in enumerate(self.blocks) for other in block.successors)
        graph = networkx.DiGraph()
        graph.add_nodes_from(range(min(1, len(self.blocks))))
        graph.add_edges_from(edges)
        self.order: list[int] = list(networkx.dfs_postorder_nodes(graph, 0))[::-1] if self.blocks else []
        self.graph = graph.subgraph(self.order)

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops by the address of their headers; back edges to one header make one loop."""
        if not self.order:
            return []
        # An edge to a dominator of its source is a back edge.
        parents = networkx.immediate_dominators(self.graph, 0)
        tree = networkx.DiGraph((parent, block) for block, parent in parents.items() if parent not in (None, block))
        tree.add_nodes_from(self.order)
        members: dict[int, set[int]] = {}
        for latch, header in self.graph.edges:
            if header == latch or networkx.has_path(tree, header, latch):
                without_header = self.graph.subgraph(set(self.order) - {header})
                body = {latch} if header == latch else {latch} | networkx.ancestors(without_header, latch)
                members.setdefault(header, {header}).update(body)
        return [Loop(header, frozenset(members[header])) for header in sorted(members)]

    def turn(self, loop: Loop) -> dict[int, float]:
        """Return how often each block of a loop runs in one turn.

        Both sides of a condition are equally likely, unless the listing knows better. The turn always goes on: an exit
        from the loop takes no probability from the other successors.

        Args:
            loop: The loop; each inner loop is counted as one turn.

        Returns:
            Number of runs by block, 1 for the header.
        """
        return self._weights(loop.header, loop.members)

    def outside(self, loops: list[Loop]) -> dict[int, float]:
        """Return how often each block outside of some loops runs in one pass through the kernel."""
        inside = {block for loop in loops for block in loop.members}
        weights = self._weights(0, frozenset(self.order))
        return {block: weight for block, weight in weights.items() if block not in inside}

    def _weights(self, header: int, members: frozenset[int]) -> dict[int, float]:
        """Spread one entry at the header over a region, in which each inner loop counts as one block."""
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
            exits = [
                (other, probability)
                for member in body
                for other, probability in self.blocks[member].successors.items()
                if other in members and other not in body and other != header
            ]
            total = sum(probability for _, probability in exits) or 1.0
            for other, probability in exits:
                arriving[other] += arriving[block] * probability / total
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
