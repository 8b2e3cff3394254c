"""Compiled kernels that are called directly, by what Triton (3.6 to 3.9) keeps of them; see launches.py.

``compiled.run`` gets the grid, the stream and all arguments of a launch in order. It encodes each descriptor as a
tensor map, flattens the arguments, and hands them to a function in C. A launch that is repeated with the same addresses
can keep what that function gets: :meth:`Ready.prepare`.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

from triton.compiler import CompiledKernel

Submit = Callable[[int], object]
"""Launch of a kernel with arguments of its own, which gets the stream."""

_STREAM = 3
"""Place of the stream among the arguments of a launch, behind the three sizes of the grid, and before the function."""


class Ready:
    """Compiled kernel that is called directly.

    Args:
        compiled: The kernel, for a card of NVIDIA.
    """

    def __init__(self, compiled: CompiledKernel) -> None:
        self._run = compiled.run
        # The function, what the launch needs to know of it, and three times what only hooks would get.
        self._fixed = (compiled.function, compiled.packed_metadata, None, None, None)
        self._kept: list[Any] = []
        self._lock = threading.Lock()
        self._in_c, self._keep = _parts_of(compiled, self._kept)

    def __call__(self, programs: int, stream: int, arguments: Sequence[Any]) -> None:
        """Launch the kernel with addresses, and with descriptors of addresses."""
        self._run(programs, 1, 1, stream, *self._fixed, *arguments)

    def prepare(self, programs: int, arguments: Sequence[Any]) -> Submit:
        """Return the launch with some arguments, which may be repeated: tensor maps are encoded once."""
        in_c, kept = self._in_c, []
        if in_c is not None:
            with self._lock:
                self._keep(programs, 1, 1, 0, *self._fixed, *arguments)
                kept = self._kept.copy()
        grid, rest = kept[:_STREAM], kept[_STREAM + 1 :]
        if in_c is None or rest[:1] != [self._fixed[0]]:
            return lambda stream: self(programs, stream, arguments)
        return lambda stream: in_c(*grid, stream, *rest)


def _parts_of(compiled: CompiledKernel, kept: list[Any]) -> tuple[Callable[..., object] | None, Any]:
    """Take a launcher apart.

    Returns:
        The function in C, None where the launcher is another one than is known here. And a launcher that fills a list
        with what the function in C would get; with nothing where that has names.
    """

    def fill(*given: Any, **named: Any) -> None:
        kept[:] = () if named else given

    try:
        from triton.backends.nvidia.driver import wrap_handle_tensordesc

        run, signature = compiled.run, dict(compiled.src.signature)
        maps = getattr(compiled.metadata, "tensordesc_meta", None)
        closure = getattr(run.launch, "__closure__", None)
        names = run.launch.__code__.co_freevars if closure else ()
        in_c = dict(zip(names, closure or (), strict=True))["launcher"].cell_contents if closure else run.launch
        # Memory that each launch gets anew is not kept.
        if not callable(in_c) or run.global_scratch_size or run.profile_scratch_size:
            return None, None
        keep = copy.copy(run)
        keep.launch = wrap_handle_tensordesc(fill, signature, maps)
    except (ImportError, AttributeError, KeyError, TypeError):
        return None, None
    return in_c, keep
