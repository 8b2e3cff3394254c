"""Commands on every rank of a group."""

import contextlib
import io
import os
from pathlib import Path

from nntk.bench.cli import app
from nntk.bench.suites.distributed import scaling


def kernel_command(rank, size, folder, words_of_ranks):
    """Run ``nntk-bench kernel`` several times, with the words of each rank; return statuses and what was printed."""
    os.environ["WORLD_SIZE"] = str(size)
    os.chdir(Path(folder))
    results = []
    for words in words_of_ranks:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = app.main(["kernel", *(words if isinstance(words[0], str) else words[rank])])
        results.append((status, out.getvalue(), errors.getvalue()))
    return results


def distributed_suite(rank, size, folder, tolerance):
    """Run the suite ``distributed`` at small sizes; return the status and what was printed."""
    os.environ["WORLD_SIZE"] = str(size)
    scaling.ROUNDS, scaling.TOLERANCE = 2, tolerance
    scaling.problems = lambda device: (
        (3, 6, 1),
        [scaling.Problem(kind, axis, 24, 40) for kind in ("strong", "weak") for axis in "MN"],
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = app.main(["run", "--suite", "distributed", "--output", folder])
    return status, out.getvalue()
