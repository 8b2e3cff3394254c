"""Steps of a recording: operators of PyTorch and launches, to be repeated with other tensors.

A step holds no tensors. A recording has a slot for each tensor that a call is given or makes; a view is told by the
slot of its tensor, by sizes, strides and offset. See recorder.py for how a call becomes steps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
        slot: Slot of the tensor whose memory it is in: that of the view, or that of memory which several tensors share.
        offset: Bytes from the first of that tensor to the first of the view.
        descriptor: Descriptor of the view, without its tensor; None where the kernel gets an address.
    """

    place: int
    view: View
    slot: int
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
        memory: Bytes of the tensor that it makes, where nothing is written to it; None for all other operators.
    """

    function: Any
    arguments: list[Any]
    options: dict[str, Any]
    memory: int | None = None
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

    @property
    def is_direct(self) -> bool:
        """True where the compiled kernel is called directly; such a step becomes part of a row, see rows.py."""
        return self.launch.ready is not None

    def run(self, slots: list[Any], stream: int) -> None:
        """Launch the kernel by Triton."""
        self.launch.by_triton(self._with([address.tensor_of(slots) for address in self.addresses]))

    def prepare(self, starts: Mapping[int, int]) -> Submit:
        """Return the direct launch, where tensors are at some addresses by their slots."""
        assert self.launch.ready is not None, "the launch is direct"
        arguments = self._with([address.at(starts[address.slot] + address.offset) for address in self.addresses])
        return self.launch.ready.prepare(self.launch.programs, arguments)

    def _with(self, parts: Sequence[Any]) -> list[Any]:
        """Return the arguments with something in the places of addresses."""
        arguments = self.arguments.copy()
        for address, part in zip(self.addresses, parts, strict=True):
            arguments[address.place] = part
        return arguments


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


def _has_views(part: Any) -> bool:
    return any(map(_has_views, part)) if type(part) is list else type(part) is View


def _filled(part: Any, slots: Sequence[Any]) -> Any:
    """Return an argument with tensors in the places of views."""
    kind = type(part)
    if kind is View:
        return part.of(slots)
    return [_filled(one, slots) for one in part] if kind is list else part
