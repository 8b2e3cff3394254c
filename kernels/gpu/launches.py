"""Launches that cost the host little: kernels that Triton has compiled are called directly, with addresses.

``kernel[grid](...)`` binds its arguments, derives what the kernel is specialised for, and looks that up. For a layer
step of 40 arguments this takes the host longer than the call that follows. :func:`launch` looks the compiled kernel up
by itself, and calls it. A :class:`RepeatedLaunch` does so once for many launches, which get consecutive parts of the
same tensors.

Only this module and ready.py rely on how Triton (3.6 to 3.9) launches: ``kernel[grid](...)`` returns the compiled
kernel, which takes an address for a tensor when it is called directly. Everything else goes through
``kernel[grid](...)``: the interpreter, cards that are not NVIDIA's, launches in whose place another program has put its
own, such as compiling ahead of a call, and launches to which a profiler listens.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.gpu.ready import Ready

_MOST_COMPILED = 4096
_ready: dict[Any, Ready] = {}
"""Compiled kernels by whatever a kernel can be specialised for: see ``_key``."""

VALUES = frozenset((int, bool, str, float, type(None)))
"""Types of arguments that are neither tensors nor descriptors: they are told apart faster than by ``isinstance``."""


@dataclass(frozen=True)
class Launch:
    """A launch, without the addresses that it was made with.

    Attributes:
        kernel: The kernel.
        programs: Number of programs.
        options: Options of the launch.
        key: All that the kernel can be specialised for, where it is not ready; None where only Triton can launch it.
        ready: The compiled kernel; None where only Triton can launch it.
    """

    kernel: Any
    programs: int
    options: Mapping[str, Any]
    key: object
    ready: Ready | None

    def by_triton(self, arguments: Sequence[Any]) -> None:
        """Launch the kernel with other tensors, where only Triton can launch it."""
        _launch_by_triton(self.kernel, self.programs, arguments, self.options, self.key)


class Listener(Protocol):
    """Hears of the launches of a thread."""

    def launching(self) -> AbstractContextManager[object]:
        """Return a context in which a launch is made."""

    def launched(self, launch: Launch, arguments: Sequence[Any]) -> None:
        """Hear of a launch that was made with some arguments."""


class _Told(threading.local):
    """The listener of each thread."""

    listener: Listener | None = None


_told = _Told()


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Tell a listener of all launches that this thread makes inside."""
    _told.listener = listener
    try:
        yield
    finally:
        _told.listener = None


class _Address:
    """Address that a descriptor has instead of a tensor."""

    def __init__(self, value: int) -> None:
        self.value = value

    def data_ptr(self) -> int:
        """Return the address, as a tensor would."""
        return self.value


def moved_descriptor(descriptor: TensorDescriptor, address: int) -> TensorDescriptor:
    """Return a descriptor of what is at an address, of the same sizes, for a kernel that is called directly."""
    moved = object.__new__(TensorDescriptor)
    moved.__dict__ = {**descriptor.__dict__, "base": _Address(address), "shape": descriptor.shape.copy()}
    return moved


def placed_descriptor(descriptor: TensorDescriptor, tensor: Tensor) -> TensorDescriptor:
    """Return a descriptor of a tensor, of the same sizes, for a kernel that Triton launches."""
    placed = moved_descriptor(descriptor, 0)
    placed.base = tensor
    return placed


@dataclass(frozen=True)
class PartOf:
    """Tensor of a group of displacements, of which each launch gets a part.

    Attributes:
        tensor: The tensor. Its first axis is that of the displacements, or of the launches.
        descriptor: Descriptor of the tensor that a launch gets instead, with the rows of each displacement in order.
        is_by_launch: False where a launch gets what belongs to its displacements; True where it gets one row, by its
            number.
    """

    tensor: Tensor
    descriptor: TensorDescriptor | None = None
    is_by_launch: bool = False

    @property
    def whole(self) -> Tensor | TensorDescriptor:
        """What a launch of all displacements gets."""
        return self.tensor if self.descriptor is None else self.descriptor

    @property
    def step(self) -> int:
        """Bytes from one row to the next."""
        return self.tensor.stride(0) * self.tensor.element_size()

    @property
    def rows_of_displacement(self) -> int:
        """Rows of a displacement in the descriptor."""
        return self.tensor.shape[1] if self.tensor.dim() > 2 else 1

    def part(self, number: int, rows: slice) -> Tensor | TensorDescriptor:
        """Return what a launch gets, by its number and its displacements. A descriptor is moved there."""
        if self.is_by_launch:
            return self.tensor[number]
        if self.descriptor is None:
            return self.tensor[rows]
        self.descriptor.base = self.tensor[rows]
        self.descriptor.shape[0] = (rows.stop - rows.start) * self.rows_of_displacement
        return self.descriptor


class RepeatedLaunch:
    """Launch of a kernel for one chunk of a group of displacements after another.

    Args:
        kernel: The kernel.
        arguments: All arguments of the kernel in order. A launch gets its part of each :class:`PartOf`.
        programs: Number of programs for each displacement.
        options: Options of the launch, such as ``num_warps``.
        programs_by_launch: Number of programs of each launch, whatever its displacements, instead of ``programs``.
    """

    def __init__(
        self, kernel: Any, arguments: Sequence[Any], programs: int, options: Mapping[str, Any],
        programs_by_launch: int | None = None,
    ) -> None:  # fmt: skip
        self._kernel, self._options = kernel, options
        self._programs, self._programs_by_launch = programs, programs_by_launch
        self._parts = [(place, part) for place, part in enumerate(arguments) if isinstance(part, PartOf)]
        self._arguments = [part.whole if isinstance(part, PartOf) else part for part in arguments]
        self._key = _key(kernel, self._arguments, options, self._parts)
        self._direct: _DirectLaunch | None = None

    def __call__(self, number: int, rows: slice) -> None:
        """Launch the kernel.

        Args:
            number: Number of the chunk in its group.
            rows: Displacements of the chunk, as a range of those of the group.
        """
        programs = self._programs_by_launch or self._programs * (rows.stop - rows.start)
        ready = _ready.get(self._key)
        if ready is None or _told.listener is not None or not _is_triton_alone():
            self._direct = None
            for place, part in self._parts:
                self._arguments[place] = part.part(number, rows)
            _start(self._kernel, programs, self._arguments, self._options, self._key)
            return
        if self._direct is None:
            self._direct = _DirectLaunch(ready, self._arguments, self._parts)
        self._direct(programs, number, rows)


class _DirectLaunch:
    """Repeated launch of a compiled kernel: addresses that move from one chunk to the next, among those that stay.

    ``arguments`` and ``parts`` are of a :class:`RepeatedLaunch`, which keeps their tensors alive.
    """

    def __init__(self, ready: Ready, arguments: Sequence[Any], parts: Sequence[tuple[int, PartOf]]) -> None:
        self._ready, self._stream = ready, current_stream()
        self.addresses = _addresses(arguments)
        self._moving: list[tuple[int, int, int, bool]] = []
        self._descriptors: list[tuple[TensorDescriptor, int, int, int]] = []
        for place, part in parts:
            address = part.tensor.data_ptr()
            if part.descriptor is None:
                self._moving.append((place, address, part.step, part.is_by_launch))
            else:
                part.descriptor.base = _Address(address)
                self._descriptors.append((part.descriptor, address, part.step, part.rows_of_displacement))

    def __call__(self, programs: int, number: int, rows: slice) -> None:
        start, addresses = rows.start, self.addresses
        for place, address, step, is_by_launch in self._moving:
            addresses[place] = address + step * (number if is_by_launch else start)
        for descriptor, address, step, rows_of_displacement in self._descriptors:
            descriptor.base.value = address + step * start
            descriptor.shape[0] = (rows.stop - start) * rows_of_displacement
        self._ready(programs, self._stream, addresses)


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch a kernel once.

    Args:
        kernel: The kernel.
        programs: Number of programs.
        *arguments: All arguments of the kernel in order.
        **options: Options of the launch, such as ``num_warps``.
    """
    _start(kernel, programs, arguments, options, _key(kernel, arguments, options))


def _start(kernel: Any, programs: int, arguments: Sequence[Any], options: Mapping[str, Any], key: object) -> None:
    """Launch a kernel, directly where that is possible, and tell the listener of this thread."""
    listener = _told.listener
    if listener is not None:
        with listener.launching():
            _launch_by_triton(kernel, programs, arguments, options, key)
        ready = _ready.get(key)
        listener.launched(Launch(kernel, programs, options, None if ready else key, ready), arguments)
        return
    ready = _ready.get(key)
    if ready is None or not _is_triton_alone():
        _launch_by_triton(kernel, programs, arguments, options, key)
    else:
        ready(programs, current_stream(), _addresses(arguments))


def _launch_by_triton(
    kernel: Any, programs: int, arguments: Sequence[Any], options: Mapping[str, Any], key: object
) -> None:
    """Launch a kernel through ``kernel[grid]``, and keep what was compiled, if it can be called directly."""
    compiled = kernel[programs,](*arguments, **options)
    if key is None or not isinstance(compiled, CompiledKernel) or not _is_triton_alone():
        return
    if compiled.metadata.target.backend == "cuda":
        if len(_ready) >= _MOST_COMPILED:
            _ready.clear()
        _ready[key] = Ready(compiled)


def are_direct() -> bool:
    """Return True if compiled kernels are called directly: nothing interprets, replaces or hears launches."""
    return not knobs.runtime.interpret and _is_triton_alone()


def _is_triton_alone() -> bool:
    """Return False where another program has put its own function in the place of Triton's launch, or listens to it."""
    runtime = knobs.runtime
    is_heard = runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls
    return not is_heard and bool(JITFunction.run.__module__ == "triton.runtime.jit")


def current_stream() -> int:
    """Return the current stream of the current card."""
    active = driver.active
    stream: int = active.get_current_stream(active.get_current_device())
    return stream


def _key(
    kernel: Any, arguments: Sequence[Any], options: Mapping[str, Any], parts: Sequence[tuple[int, PartOf]] = ()
) -> object:
    """Return all that a kernel can be specialised for; None where only Triton can launch it.

    The key is finer than Triton's: it has the values of integers where Triton asks whether they are 1 or multiples of
    16, and the place of an address within 16 bytes for every tensor.
    """
    if type(kernel) is not JITFunction or not _is_triton_alone():
        return None
    plain_numbers, any_address = _unspecialised(kernel)
    if any(part.step % 16 and part.descriptor is None and place not in any_address for place, part in parts):
        return None
    specialised = [part if type(part) in VALUES else _kind_of(part) for part in arguments]
    for place in plain_numbers:
        specialised[place] = -(2**31) <= arguments[place] < 2**31
    return (id(kernel), driver.active.get_current_device(), *options.items(), *specialised)


def _kind_of(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16
    if isinstance(argument, TensorDescriptor):
        return argument.base.dtype, argument.padding, *argument.block_shape
    return argument


@cache
def _unspecialised(kernel: JITFunction[Any]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the places of integers whose value does not matter, and of addresses whose alignment does not."""
    unspecialised, unaligned = (
        frozenset(place for place, name in enumerate(kernel.arg_names) if name in names)
        for names in (kernel.do_not_specialize, kernel.do_not_specialize_on_alignment)
    )
    return unspecialised, unaligned


def _addresses(arguments: Sequence[Any]) -> list[Any]:
    return [
        part if type(part) in VALUES else part.data_ptr() if isinstance(part, Tensor) else part for part in arguments
    ]
