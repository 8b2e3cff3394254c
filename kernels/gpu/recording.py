"""Recordings of calls: the operators and launches by which a call was served, to be repeated with other tensors.

A recording holds no tensors. It has a slot for each tensor that a call is given or makes; a view is told by the slot of
its tensor, by sizes, strides and offset. What makes tensors that nothing uses, views among them, is left out. A slot is
emptied after its last use, so that a repeated call holds no more memory than the first. A launch keeps its arguments,
tensor maps among them, as long as the addresses are those of the call before, which is what PyTorch's allocator gives
to calls in a loop. See recorder.py for how a call becomes a recording.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.gpu import launches
from nntk.kernels.gpu.launches import Launch
from nntk.kernels.gpu.ready import Submit

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides of a tensor."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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

    def at(self, address: int) -> Any:
        """Return what a kernel gets that is called directly: the address, or a descriptor of what is there."""
        return address if self.descriptor is None else launches.moved_descriptor(self.descriptor, address)

    def tensor_of(self, slots: Sequence[Any]) -> Any:
        """Return the tensor, or its descriptor, for a kernel that Triton launches."""
        tensor = self.view.of(slots)
        return tensor if self.descriptor is None else launches.placed_descriptor(self.descriptor, tensor)


@dataclass(kw_only=True, slots=True)
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


@dataclass(kw_only=True, slots=True)
class OperatorStep(Step):
    """Call of an operator of PyTorch, with views in the places of tensors.

    Attributes:
        function: The operator, or what calls it at the least cost.
        arguments: Its arguments.
        options: Its options, by name.
    """

    function: Any
    arguments: list[Any]
    options: dict[str, Any]
    _places: list[int] = field(init=False)
    _names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Find the places of tensors."""
        self._places = [place for place, part in enumerate(self.arguments) if _has_views(part)]
        self._names = [name for name, part in self.options.items() if _has_views(part)]

    def run(self, slots: list[Any], stream: int) -> None:
        """Call the operator, and keep the tensors that it makes."""
        arguments, options = self.arguments, self.options
        if self._places:
            arguments = arguments.copy()
            for place in self._places:
                arguments[place] = _filled(arguments[place], slots)
        if self._names:
            options = options | {name: _filled(options[name], slots) for name in self._names}
        result = self.function(*arguments, **options)
        if self.makes:
            for slot, tensor in zip(self.makes, (result,) if isinstance(result, Tensor) else result, strict=True):
                slots[slot] = tensor


@dataclass(kw_only=True, slots=True)
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

    _kept: tuple[Sequence[int], Submit | None] = ((), None)
    """Addresses of the last call, and the launch with these."""

    def run(self, slots: list[Any], stream: int) -> None:
        """Launch the kernel."""
        ready = self.launch.ready
        if ready is None:
            self.launch.by_triton(self._with([address.tensor_of(slots) for address in self.addresses]))
            return
        places = [slots[address.view.slot].data_ptr() + address.offset for address in self.addresses]
        kept, submit = self._kept
        if submit is None or places != kept:
            arguments = self._with([address.at(place) for address, place in zip(self.addresses, places, strict=True)])
            submit = ready.prepare(self.launch.programs, arguments)
            self._kept = places, submit
        submit(stream)

    def forget(self) -> None:
        """Keep nothing of the last call."""
        self._kept = (), None

    def _with(self, parts: Sequence[Any]) -> list[Any]:
        """Return the arguments with something in the places of addresses."""
        arguments = self.arguments.copy()
        for address, part in zip(self.addresses, parts, strict=True):
            arguments[address.place] = part
        return arguments


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
        self._is_direct = any(isinstance(step, LaunchStep) and step.launch.ready is not None for step in self.steps)
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


def fastest(function: Any, arguments: list[Any], options: dict[str, Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return a call of an operator that costs the host least: few functions read options such as dtypes fast."""
    if function is torch.ops.aten.empty.memory_format and options.keys() <= {"dtype", "device", "pin_memory"}:
        (size,) = arguments
        strides = [math.prod(max(1, length) for length in size[place + 1 :]) for place in range(len(size))]
        return torch.empty_strided, [tuple(size), tuple(strides)], options
    if function is torch.ops.aten._to_copy.default and options.keys() == {"dtype"}:
        return _converted, arguments, options
    return function, arguments, options


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


def _has_views(part: Any) -> bool:
    return any(map(_has_views, part)) if type(part) is list else type(part) is View


def _filled(part: Any, slots: Sequence[Any]) -> Any:
    """Return an argument with tensors in the places of views."""
    kind = type(part)
    if kind is View:
        return part.of(slots)
    return [_filled(one, slots) for one in part] if kind is list else part
