"""Recordings of calls: the steps by which a call was served, to be repeated with other tensors.

What makes tensors that nothing uses, views among them, is left out. A slot is emptied after its last use, so that a
repeated call holds no more memory than the first. See recorder.py for how a call becomes a recording.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nntk.kernels.gpu import launches
from nntk.kernels.gpu.rows import LaunchRow, in_rows, share_memory
from nntk.kernels.gpu.steps import Step, View


class Recording:
    """The row of steps by which a call is served.

    Args:
        steps: All steps, in order.
        outputs: What the call returns: a view, or a tuple of views.
        inputs: Number of the tensors that a call is given; they are in the first slots.
        slots: Number of all slots.
    """

    def __init__(self, steps: Sequence[Step], outputs: View | tuple[View, ...], inputs: int, slots: int) -> None:
        returned = {view.slot for view in ([outputs] if isinstance(outputs, View) else outputs)}
        self._outputs = outputs
        needed = _needed(steps, returned)
        self.size = len(needed)
        """Number of operators and launches."""
        self.steps = in_rows(share_memory(needed, returned, slots))
        self._empty = max([slots, *(slot + 1 for step in self.steps for slot in step.makes)]) - inputs
        self._is_direct = any(isinstance(step, LaunchRow) for step in self.steps)
        used = returned | set(range(inputs))
        for step in reversed(self.steps):
            step.frees = sorted((step.uses | set(step.makes)) - used)
            used.update(step.frees)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Repeat the call.

        Args:
            tensors: The tensors of the call, of the shapes, dtypes and alignment of those that it was recorded with.

        Returns:
            What the call returns.
        """
        slots: list[Any] = [*tensors, *[None] * self._empty]
        stream = launches.current_stream() if self._is_direct else 0
        for step in self.steps:
            step.run(slots, stream)
            for slot in step.frees:
                slots[slot] = None
        outputs = self._outputs
        return outputs.of(slots) if isinstance(outputs, View) else tuple(view.of(slots) for view in outputs)


def _needed(steps: Sequence[Step], returned: set[int]) -> list[Step]:
    """Leave out the steps that only fill slots which no other step uses."""
    used, needed = set(returned), []
    for step in reversed(steps):
        if step.is_needed or used.intersection(step.makes):
            used |= step.uses
            needed.append(step)
    return needed[::-1]
