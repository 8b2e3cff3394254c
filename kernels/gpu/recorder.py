"""Calls that are repeated: a call is recorded once, and then served by its recording, without its planning.

A call of an op is a row of operators of PyTorch and of launches by :mod:`nntk.kernels.gpu.launches`. Which ones, and
with which arguments, follows from the settings of the call and the shapes of its tensors, not from the numbers in them.
So the second call with the same of these is recorded (recording.py), and later ones repeat the row. They have the same
bits, and cost the host a part of the time: kernels/perturb/README.md has the figures.

A call that reads numbers back from the card may be another one for other numbers, and is not recorded.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels import tuning
from nntk.kernels.gpu import launches
from nntk.kernels.gpu.launches import Launch
from nntk.kernels.gpu.recording import Recording
from nntk.kernels.gpu.steps import Address, LaunchStep, Layout, OperatorStep, Step, View, fastest

_MOST_CALLS = 256
"""Most different calls of an op that are remembered."""
_MOST_STEPS = 8192
"""Most steps of all recordings of an op, and of one; a step takes some four kilobytes of the host's memory."""

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Tags of operators from whose results Python learns of numbers."""


class NotRecordable(Exception):
    """The call depends on more than its settings and the shapes of its tensors."""


class Recorded:
    """A function whose repeated calls are served by recordings, where compiled kernels are launched directly.

    Args:
        function: The function; see :func:`record`.

    Attributes:
        plain: The function itself.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.plain = function
        self._calls: OrderedDict[Any, Recording | None] = OrderedDict()
        """Recordings by signature; None where a call was made and not yet recorded, or is not recordable."""
        self._not_recordable: set[Any] = set()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, or repeat its last call of this signature."""
        if not launches.are_direct():
            return self.plain(*arguments)
        tensors: list[Tensor] = []
        signature = tuning.revision(), _signature(arguments, tensors)
        with self._lock:
            is_first, recording = signature not in self._calls, self._calls.get(signature)
            if not is_first:
                self._calls.move_to_end(signature)
        if recording is not None:
            return recording(tensors)
        if is_first:
            self._keep(signature, None)
        if is_first or signature in self._not_recordable:
            return self.plain(*arguments)
        try:
            result, recording = record(self.plain, arguments)
        except NotRecordable:
            with self._lock:
                self._not_recordable.add(signature)
            return self.plain(*arguments)
        self._keep(signature, recording)
        return result

    def _keep(self, signature: Any, recording: Recording | None) -> None:
        """Keep the recording of a call; those that were repeated least recently make room."""
        with self._lock:
            self._calls[signature] = recording
            self._calls.move_to_end(signature)
            steps = sum(one.size for one in self._calls.values() if one is not None)
            while len(self._calls) > _MOST_CALLS or steps > _MOST_STEPS:
                forgotten, one = self._calls.popitem(last=False)
                self._not_recordable.discard(forgotten)
                steps -= 0 if one is None else one.size


def record(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Recording]:
    """Make a call, and record it.

    Args:
        function: Function that returns a tensor, or a tuple of tensors, and launches kernels by
            :mod:`nntk.kernels.gpu.launches` alone.
        arguments: Its arguments: tensors on one device, hashable settings, and lists of them.

    Returns:
        The result of the call, and its recording, which gets the tensors in the order of :func:`tensors_of`.

    Raises:
        NotRecordable: If the call may be another one for other numbers in its tensors, or has too many steps.
    """
    tensors = tensors_of(arguments)
    recorder = _Recorder(tensors)
    with recorder, launches.told(recorder):
        result = function(*arguments)
    outputs = recorder.view(result) if isinstance(result, Tensor) else tuple(recorder.view(part) for part in result)
    return result, Recording(recorder.steps, outputs, len(tensors), recorder.count)


def tensors_of(arguments: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among the arguments of a call, in order."""
    tensors: list[Tensor] = []
    _signature(arguments, tensors)
    return tensors


def _signature(arguments: Sequence[Any], tensors: list[Tensor]) -> tuple[Any, ...]:
    """Return what a call depends on: all of its arguments but the numbers in tensors, which are added to a list."""
    facts = list[Any]()
    for part in arguments:
        if type(part) in launches.VALUES:
            facts.append(part)
        elif isinstance(part, Tensor):
            tensors.append(part)
            # The number of the device is known faster than the device; it is -1 for the CPU.
            facts.append((part.shape, part.stride(), part.dtype, part.get_device(), part.data_ptr() % 16))
        else:
            facts.append(_signature(part, tensors) if type(part) in (list, tuple) else part)
    return tuple(facts)


@dataclass(frozen=True)
class _Root:
    """A tensor that was given or made: its slot, its range of numbers in memory, its dtype and layout."""

    slot: int
    start: int
    stop: int
    dtype: torch.dtype
    layout: Layout


class _Recorder(TorchDispatchMode):
    """Records the operators and the launches of a call.

    Args:
        inputs: Tensors that are given to the call.

    Attributes:
        steps: What was recorded.
        count: Number of slots.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch does not type it.
        self.steps: list[Step] = []
        self.count = 0
        self._device, self._roots = inputs[0].device, dict[int, list[_Root]]()
        self._is_launching = False
        self._shared: dict[Any, Any] = {}
        """Addresses, views and descriptors that many launches share, by what they are."""
        # Inputs may be parts of one memory, where each is known by its range; and need not be so the next time.
        brought: dict[int, list[_Root]] = {}
        for tensor in inputs:
            self._add(tensor)
            brought.setdefault(_storage(tensor), []).extend(self._roots[_storage(tensor)])
        self._roots = brought

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        if not self._is_launching:
            made = list(result) if isinstance(result, list | tuple) else [] if result is None else [result]
            self._add_operator(function, arguments, options or {}, made)
        return result

    def _add_operator(self, function: Any, arguments: Sequence[Any], options: dict[str, Any], made: list[Any]) -> None:
        if _READS.intersection(function.tags) or not all(isinstance(part, Tensor) for part in made):
            raise NotRecordable(f"{function} reads numbers back")
        given = [part for part in tree_leaves((arguments, options)) if isinstance(part, Tensor)]
        storages, is_written = {_storage(tensor) for tensor in given}, bool(function._schema.is_mutable)
        is_shared = [_storage(tensor) in storages for tensor in made]
        if all(is_shared) and not is_written:
            return  # Views are told by sizes and strides wherever they are used.
        if any(is_shared) != is_written or all(is_shared) != is_written:
            raise NotRecordable(f"{function} makes tensors beside those that it was given")
        filled = [self._filled(part) for part in arguments], {name: self._filled(options[name]) for name in options}
        fast, arguments, options = fastest(function, *filled)
        is_memory = fast is torch.empty_strided
        self._add_step(
            OperatorStep(
                uses={self.view(tensor).slot for tensor in given},
                makes=[] if is_written else [self._add(tensor) for tensor in made],
                is_needed=is_written,
                function=fast,
                arguments=arguments,
                options=options,
                memory=made[0].untyped_storage().nbytes() if is_memory else None,
            )
        )

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Record no operators inside: those of the interpreter of kernels are its own."""
        self._is_launching = True
        try:
            yield
        finally:
            self._is_launching = False

    def launched(self, launch: Launch, arguments: Sequence[Any]) -> None:
        """Record a launch, which was made with these arguments."""
        addresses, kept = [], list(arguments)
        for place, argument in enumerate(arguments):
            descriptor = argument if isinstance(argument, TensorDescriptor) else None
            tensor = argument if descriptor is None else descriptor.base
            if isinstance(tensor, Tensor):
                view, kept[place] = self.view(tensor), None
                offset = view.offset * tensor.element_size()
                address = Address(place, view, view.slot, offset, self._template(descriptor))
                addresses.append(self._shared.setdefault((address.place, view, id(address.descriptor)), address))
        uses = {address.view.slot for address in addresses}
        self._add_step(LaunchStep(uses=uses, launch=launch, arguments=kept, addresses=addresses))

    def _template(self, descriptor: TensorDescriptor | None) -> TensorDescriptor | None:
        """Return a descriptor without its tensor, the same for all that differ in their tensors alone."""
        if descriptor is None:
            return None
        settings = [(name, part) for name, part in vars(descriptor).items() if name != "base"]
        key = descriptor.base.dtype, *[(name, tuple(part) if type(part) is list else part) for name, part in settings]
        return self._shared.setdefault(key, launches.moved_descriptor(descriptor, 0))

    def view(self, tensor: Tensor) -> View:
        """Return a tensor as a view of that which was given or made in its place in memory."""
        start, stop = _range(tensor)
        roots = [one for one in self._roots.get(_storage(tensor), ()) if one.start <= start and stop <= one.stop]
        if len(roots) != 1 or tensor.dtype != roots[0].dtype or tensor.is_conj() or tensor.is_neg():
            raise NotRecordable("a tensor is neither given nor made, or given twice, or is seen in another dtype")
        (root,), layout = roots, _layout(tensor)
        offset = start - root.start
        view = View(root.slot, layout, offset, is_whole=not offset and layout == root.layout)
        same: View = self._shared.setdefault(view, view)
        return same

    def _add_step(self, step: Step) -> None:
        if len(self.steps) == _MOST_STEPS:
            raise NotRecordable(f"more than {_MOST_STEPS} steps")
        self.steps.append(step)

    def _add(self, tensor: Tensor) -> int:
        """Give a tensor, which was given or made, the next slot."""
        if tensor.device != self._device:
            raise NotRecordable(f"a tensor is on {tensor.device}, and others are on {self._device}")
        root = _Root(self.count, *_range(tensor), tensor.dtype, _layout(tensor))
        self._roots[_storage(tensor)] = [root]
        self.count += 1
        return root.slot

    def _filled(self, part: Any) -> Any:
        """Return an argument with views in the places of tensors."""
        if isinstance(part, list | tuple):
            return [self._filled(one) for one in part]
        return self.view(part) if isinstance(part, Tensor) else part


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride()


def _range(tensor: Tensor) -> tuple[int, int]:
    """Return the first number of a tensor in its memory, and the one behind its last."""
    start = int(tensor.storage_offset())
    if not tensor.numel():
        return start, start
    return start, start + 1 + sum((size - 1) * stride for size, stride in zip(*_layout(tensor), strict=True))


def _storage(tensor: Tensor) -> int:
    """Return the identity of the memory of a tensor, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
