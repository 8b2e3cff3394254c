"""Recordings of calls: the operators and launches by which a call was served, to be repeated with other tensors.

A recording holds no tensors. It has a slot for each tensor that a call is given or makes; a view is told by the slot of
its tensor, by sizes, strides and offset. What makes tensors that nothing uses, views among them, is left out. A slot is
emptied after its last use, so that a repeated call holds no more memory than the first. See recorder.py for how a call
becomes a recording.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.gpu import launches
from nntk.kernels.gpu.launches import Launch

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides of a tensor."""


@dataclass(frozen=True)
class View:
    """A tensor as a part of the tensor in a slot.

    Attributes:
        slot: The slot.
        layout: Sizes and strides.
        offset: Numbers from the first of the tensor in the slot to the first of the view.
        is_whole: The view is that tensor.
    """

    slot: int
    layout: Layout
    offset: int
    is_whole: bool

    def of(self, slots: Sequence[Any]) -> Tensor:
        """Return the view of the tensor that is in the slot now."""
        tensor: Tensor = slots[self.slot]
        return tensor if self.is_whole else tensor.as_strided(*self.layout, tensor.storage_offset() + self.offset)


@dataclass(frozen=True)
class Address:
    """A view where a launch has an address or a descriptor.

    Attributes:
        place: Place among the arguments of the kernel.
        view: The view.
        offset: Bytes from the first of the tensor in the slot to the first of the view.
        descriptor: Descriptor of the view, without its tensor; None where the kernel gets an address.
    """

    place: int
    view: View
    offset: int
    descriptor: TensorDescriptor | None

    def of(self, slots: Sequence[Any]) -> Any:
        """Return the address for a kernel that is called directly."""
        address = slots[self.view.slot].data_ptr() + self.offset
        return address if self.descriptor is None else launches.moved_descriptor(self.descriptor, address)

    def tensor_of(self, slots: Sequence[Any]) -> Any:
        """Return the tensor, or its descriptor, for a kernel that Triton launches."""
        tensor = self.view.of(slots)
        return tensor if self.descriptor is None else launches.placed_descriptor(self.descriptor, tensor)


@dataclass(kw_only=True)
class Step(ABC):
    """A step of a recording.

    Attributes:
        uses: Slots that it reads or writes.
        makes: Slots that it fills.
        is_needed: It does something beside filling slots.
        frees: Slots that no later step uses.
    """

    uses: set[int] = field(default_factory=set)
    makes: list[int] = field(default_factory=list)
    is_needed: bool = True
    frees: list[int] = field(default_factory=list)

    @abstractmethod
    def run(self, slots: list[Any], stream: int) -> None:
        """Do the step again."""


@dataclass(kw_only=True)
class OperatorStep(Step):
    """Call of an operator of PyTorch, with views in the places of tensors.

    Attributes:
        function: The operator, or what calls it at the least cost.
        arguments: Its arguments.
        options: Its options, by name.
    """

    function: Any
    arguments: Sequence[Any]
    options: Mapping[str, Any]

    def run(self, slots: list[Any], stream: int) -> None:
        """Call the operator, and keep the tensors that it makes."""
        options = {name: _filled(part, slots) for name, part in self.options.items()}
        result = self.function(*[_filled(part, slots) for part in self.arguments], **options)
        if self.makes:
            for slot, tensor in zip(self.makes, tree_leaves(result), strict=True):
                slots[slot] = tensor


@dataclass(kw_only=True)
class LaunchStep(Step):
    """Launch of a kernel, with addresses in the places of tensors.

    Attributes:
        launch: The launch.
        arguments: Arguments of the kernel; None in the places of addresses.
        addresses: The addresses.
    """

    launch: Launch
    arguments: list[Any]
    addresses: list[Address]

    @property
    def is_direct(self) -> bool:
        """The compiled kernel is called directly."""
        return self.launch.ready is not None

    def run(self, slots: list[Any], stream: int) -> None:
        """Launch the kernel."""
        arguments, is_direct = self.arguments.copy(), self.is_direct
        for address in self.addresses:
            arguments[address.place] = address.of(slots) if is_direct else address.tensor_of(slots)
        self.launch.again(arguments, stream)


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
        self._outputs, self._empty = outputs, slots - inputs
        self.steps = _needed(steps, returned)
        self._is_direct = any(isinstance(step, LaunchStep) and step.is_direct for step in self.steps)
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


def fastest(function: Any, options: Mapping[str, Any]) -> Any:
    """Return what calls an operator at the least cost: few functions read options such as dtypes fast."""
    if function is torch.ops.aten.empty.memory_format:
        return torch.empty
    if function is torch.ops.aten._to_copy.default and options.keys() == {"dtype"}:
        return _converted
    return function


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True)


def _needed(steps: Sequence[Step], returned: set[int]) -> list[Step]:
    """Leave out the steps that only fill slots which no other step uses."""
    used, needed = set(returned), []
    for step in reversed(steps):
        if step.is_needed or used.intersection(step.makes):
            used |= step.uses
            needed.append(step)
    return needed[::-1]


def _filled(part: Any, slots: Sequence[Any]) -> Any:
    """Return an argument with tensors in the places of views."""
    kind = type(part)
    if kind is View:
        return part.of(slots)
    return [_filled(one, slots) for one in part] if kind is list else part
