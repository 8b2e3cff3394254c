"""Commands on every rank of a group."""

import contextlib
import io
import os
from pathlib import Path

from nntk.bench.cli import app


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
