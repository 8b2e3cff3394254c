"""Rows of launches: what a repeated call does at once where several launches follow each other.

A row asks where its tensors are. As long as they are where they were in the call before, which is what PyTorch's
allocator gives to calls in a loop, it hands Triton's functions in C what these got then, tensor maps included. A launch
whose tensors moved is prepared again. Buffers that launches alone use are parts of one piece of memory, so that they
cost one allocation, and move together.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from nntk.kernels.gpu.ready import Submit
from nntk.kernels.gpu.scratch import Buffer, placed
from nntk.kernels.gpu.steps import Address, LaunchStep, OperatorStep, Step


@dataclass(kw_only=True, slots=True)
class LaunchRow(Step):
    """Direct launches that follow each other.

    Attributes:
        launches: The launches.
    """

    launches: list[LaunchStep]
    _slots: list[int] = field(init=False)
    _kept: tuple[list[int] | None, list[Submit]] = (None, [])
    """Addresses of the tensors in the slots of the row in the last call, and the launches with these."""

    def __post_init__(self) -> None:
        """Gather the slots of the launches."""
        self.uses = set[int]().union(*(step.uses for step in self.launches))
        self._slots = sorted(self.uses)

    def run(self, slots: list[Any], stream: int) -> None:
        """Launch the kernels."""
        starts = [slots[slot].data_ptr() for slot in self._slots]
        kept, submits = self._kept
        if starts == kept:
            for submit in submits:
                submit(stream)
        else:
            self._run_moved(starts, stream)

    def _run_moved(self, starts: list[int], stream: int) -> None:
        """Launch the kernels where tensors moved since the last call."""
        (kept, submits), now, made = self._kept, dict(zip(self._slots, starts, strict=True)), []
        moved = {slot for slot, new, old in zip(self._slots, starts, kept or (), strict=False) if new != old}
        for number, step in enumerate(self.launches):
            submit = step.prepare(now) if kept is None or moved & step.uses else submits[number]
            submit(stream)
            made.append(submit)
        self._kept = starts, made

    def forget(self) -> None:
        """Keep nothing of the last call."""
        self._kept = None, []


def in_rows(steps: Sequence[Step]) -> list[Step]:
    """Return steps in which direct launches that follow each other are rows."""
    joined, row = list[Step](), list[LaunchStep]()
    for step in steps:
        if isinstance(step, LaunchStep) and step.is_direct:
            row.append(step)
            continue
        joined += [LaunchRow(launches=row)] if row else []
        joined.append(step)
        row = []
    return joined + ([LaunchRow(launches=row)] if row else [])


def share_memory(steps: Sequence[Step], returned: Collection[int], slots: int) -> list[Step]:
    """Give buffers that direct launches alone use a piece of memory together, if they begin and end between operators.

    So an operator runs beside no more memory than in the call that was recorded.

    Args:
        steps: The steps.
        returned: Slots that the call returns.
        slots: Number of slots; pieces of memory get the next ones.

    Returns:
        The steps, in which such buffers are parts of the memory.
    """
    used, rows = _uses(steps), _rows(steps)
    groups = dict[tuple[int, int], list[OperatorStep]]()
    for step in steps:
        if isinstance(step, OperatorStep) and step.memory is not None and step.makes[0] not in returned:
            users = used[step.makes[0]]
            if all(_is_direct(steps[number]) for number in users):
                groups.setdefault((rows[users[0]], rows[users[-1]]), []).append(step)
    moved, pieces = _Moved(), dict[int, list[Step]]()
    for slot, makers in enumerate(groups.values(), slots):
        parts = [step.makes[0] for step in makers]
        buffers = [
            Buffer(step.memory or 0, used[one][0], used[one][-1]) for one, step in zip(parts, makers, strict=True)
        ]
        places, size = placed(buffers)
        moved.places |= {part: (slot, place) for part, place in zip(parts, places, strict=True)}
        piece = OperatorStep(
            makes=[slot], is_needed=False, function=torch.empty_strided, arguments=[(size,), (1,)],
            options=makers[0].options | {"dtype": torch.uint8}, memory=size,
        )  # fmt: skip
        pieces.setdefault(min(buffer.first for buffer in buffers), []).append(piece)
    shared = list[Step]()
    for number, step in enumerate(steps):
        shared += pieces.get(number, [])
        if isinstance(step, LaunchStep):
            shared.append(moved.step(step))
        elif not moved.places.keys() & step.makes:
            shared.append(step)
    return shared


class _Moved:
    """Addresses of buffers that are parts of a piece of memory: of those that were equal there is one again.

    Attributes:
        places: Slot of the memory, and place in it, of each buffer by its slot.
    """

    def __init__(self) -> None:
        self.places = dict[int, tuple[int, int]]()
        self._made = dict[int, Address]()

    def step(self, step: LaunchStep) -> LaunchStep:
        """Return a launch whose addresses are in the memory."""
        addresses = [self._made.setdefault(id(one), self._address(one)) for one in step.addresses]
        return replace(step, uses={one.slot for one in addresses}, addresses=addresses)

    def _address(self, address: Address) -> Address:
        slot, place = self.places.get(address.slot, (address.slot, 0))
        return replace(address, slot=slot, offset=place + address.offset)


def _uses(steps: Sequence[Step]) -> dict[int, list[int]]:
    """Return the numbers of the steps that use each slot."""
    used = dict[int, list[int]]()
    for number, step in enumerate(steps):
        for slot in step.uses:
            used.setdefault(slot, []).append(number)
    return used


def _rows(steps: Sequence[Step]) -> list[int]:
    """Return the number of the row of each step: operators that do more than make memory begin the next one."""
    return list(accumulate(isinstance(step, OperatorStep) and not _makes_memory(step) for step in steps))


def _is_direct(step: Step) -> bool:
    return isinstance(step, LaunchStep) and step.is_direct


def _makes_memory(step: Step) -> bool:
    return isinstance(step, OperatorStep) and step.memory is not None
