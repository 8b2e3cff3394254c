"""How Numba compiles the kernels of a CPU, and what it says of it."""

import logging
from typing import Any

from numba import njit
from numba.core import event

_log = logging.getLogger("nntk")


def _keeps_code() -> bool:
    """Return True if Numba finds a folder in which it may keep machine code."""
    try:
        njit(cache=True)(_nothing)
    except RuntimeError:
        _log.warning("Compiled kernels are not kept on disk, since no folder is writable: set NUMBA_CACHE_DIR.")
        return False
    return True


def _nothing() -> None:
    """Do nothing: an example of what is compiled."""


_CACHE = _keeps_code()

compiled = njit(cache=_CACHE, nogil=True, error_model="numpy", fastmath={"contract"})
"""Decorator of kernels: no division raises, products and sums may fuse, other Python threads run on, and machine code
is kept on disk."""

exact = njit(cache=_CACHE, nogil=True, error_model="numpy")
"""Decorator of kernels whose numbers must be the same wherever they stand in a vector: what fuses is written out."""

inlined = njit(cache=_CACHE, nogil=True, error_model="numpy", inline="always")
"""Decorator of functions that become part of the loop that calls them."""

compiled_sum = njit(cache=_CACHE, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
"""Decorator of sums, whose terms may be added in any order: several at a time."""


class _Announcement(event.Listener):
    """Says once that kernels are compiled; loading them from disk is no compilation."""

    was_made = False

    def on_start(self, event: Any) -> None:
        if not self.was_made:
            self.was_made = True
            _log.warning("Compiling kernels for this CPU; they are kept on disk for later processes.")

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcement())  # type: ignore[no-untyped-call]
