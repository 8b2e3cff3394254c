"""Rows of launches: what a repeated call does at once where several launches follow each other.

A row asks where its tensors are. As long as they are where they were in the call before, which is what PyTorch's
allocator gives to calls in a loop, it hands Triton's functions in C what these got then, tensor maps included. A launch
whose tensors moved is prepared again. Buffers that launches alone use are parts of one piece of memory, so that they
cost one allocation, and move together.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    _kept: tuple[list[int], list[Submit]] = ([], [])
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
        before = dict(zip(self._slots, kept, strict=False))
        moved = {slot for slot, start in now.items() if before.get(slot) != start}
        for number, step in enumerate(self.launches):
            submit = step.prepare(now) if moved & step.uses or not submits else submits[number]
            submit(stream)
            made.append(submit)
        self._kept = starts, made

    def forget(self) -> None:
        """Keep nothing of the last call."""
        self._kept = [], []


def in_rows(steps: Sequence[Step]) -> list[Step]:
    """Return steps with direct launches in rows, before which the memory is made that is made between them."""
    joined, row = list[Step](), list[LaunchStep]()

    def close() -> None:
        if row:
            joined.append(LaunchRow(launches=row.copy()))
            row.clear()

    for step in steps:
        if isinstance(step, LaunchStep) and step.is_direct:
            row.append(step)
            continue
        if _memory_of(step) is None:
            close()
        joined.append(step)
    close()
    return joined


def share_memory(steps: Sequence[Step], returned: Collection[int], slot: int) -> list[Step]:
    """Give the buffers that direct launches alone use a piece of memory together, in a slot of its own.

    Args:
        steps: The steps.
        returned: Slots that the call returns.
        slot: Slot of the memory.

    Returns:
        The steps, in which such buffers are parts of the memory.
    """
    used = dict[int, list[int]]()
    for number, step in enumerate(steps):
        for one in step.uses:
            used.setdefault(one, []).append(number)
    direct = {number for number, step in enumerate(steps) if isinstance(step, LaunchStep) and step.is_direct}
    makers = {
        step.makes[0]: step
        for step in steps
        if isinstance(step, OperatorStep) and step.memory is not None
        if step.makes[0] not in returned and direct.issuperset(used[step.makes[0]])
    }
    if not makers:
        return list(steps)
    buffers = [Buffer(step.memory or 0, min(used[one]), max(used[one])) for one, step in makers.items()]
    places, size = placed(buffers)
    maker, moved = next(iter(makers.values())), _Moved(dict(zip(makers, places, strict=True)), slot)
    options = maker.options | {"dtype": torch.uint8}
    memory = OperatorStep(
        makes=[slot], is_needed=False, function=torch.empty_strided, arguments=[(size,), (1,)], options=options,
        memory=size,
    )  # fmt: skip
    return list(_replaced(steps, makers, memory, moved))


class _Moved:
    """Addresses of buffers that are parts of one memory: of those that were equal there is one again.

    Args:
        places: Place of each buffer in the memory by its slot.
        slot: Slot of the memory.
    """

    def __init__(self, places: dict[int, int], slot: int) -> None:
        self._places, self._slot = places, slot
        self._made = dict[int, Address]()

    def step(self, step: LaunchStep) -> LaunchStep:
        """Return a launch whose addresses are in the memory."""
        addresses = [self._made.setdefault(id(one), self._address(one)) for one in step.addresses]
        return replace(step, uses={one.slot for one in addresses}, addresses=addresses)

    def _address(self, address: Address) -> Address:
        place = self._places.get(address.slot)
        return address if place is None else replace(address, slot=self._slot, offset=place + address.offset)


def _replaced(steps: Sequence[Step], makers: dict[int, OperatorStep], memory: Step, moved: _Moved) -> Iterator[Step]:
    first = next(iter(makers.values()))
    for step in steps:
        if step is first:
            yield memory
        if isinstance(step, LaunchStep):
            yield moved.step(step)
        elif not set(step.makes) & makers.keys() or _memory_of(step) is None:
            yield step


def _memory_of(step: Step) -> int | None:
    return step.memory if isinstance(step, OperatorStep) else None
