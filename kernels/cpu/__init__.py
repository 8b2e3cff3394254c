"""What the compiled kernels of a CPU share; importing this imports no compiler."""

import importlib.util
import logging
import os
from functools import cache

_log = logging.getLogger("nntk")


@cache
def serves() -> bool:
    """Return True if Numba compiles kernels for this CPU; otherwise plain torch serves, and a log line says so once."""
    missing = ""
    if importlib.util.find_spec("numba") is None:
        missing = "Numba is not installed (pip install 'nntk[cpu]')"
    elif os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        missing = "NUMBA_DISABLE_JIT is set"
    if missing:
        _log.warning("%s: the CPU is served by plain torch, which is several times slower.", missing)
    return not missing
