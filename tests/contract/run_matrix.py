"""Judge every architecture, or every situation in every kind of model, and write a table.

python tests/contract/run_matrix.py --out table.md                # architectures; needs the extra "zoo"
python tests/contract/run_matrix.py --situations --out table.md
"""

import argparse
import importlib
import logging
import signal
import sys
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "architectures")]

import torch  # noqa: E402
from judge import Report, report  # noqa: E402
from registry import ARCHITECTURES  # noqa: E402

FILES = ("vision", "sequences", "discrete", "structures", "huggingface")
COLUMNS = ("gamma 0.1", "gamma 0.001", "NTK limit", "repeats", "unchanged", "pickles")


def architectures(only):
    """Yield the name of every architecture, and a function that makes it."""
    for name in FILES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    yield from ((name, make) for name, make in ARCHITECTURES.items() if only in name)


def situations(only):
    """Yield the name of every situation in every base, and a function that makes it."""
    from situations import BASES, SITUATIONS

    for name, (expected, make) in SITUATIONS.items():
        if only in name:
            for base in BASES:
                yield f"{name}, {base} ({expected})", lambda make=make, base=base: make(base)


class TooLong(Exception):
    """A model took longer than the limit."""


def judged(make, limit, **settings):
    """Return the report on one model; an error of the judge itself, or of the model, is a column of its own."""

    def stop(*_):
        raise TooLong(f"longer than {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        return report(*make(), **settings)
    except Exception as error:
        return Report({"gamma 0.1": f"WRONG: it could not be judged: {type(error).__name__}: {error}"})
    finally:
        signal.alarm(0)


def table(rows):
    """Return Markdown: one line for each model, and what is not right below."""
    short = {"right": "right", "refused": "refused", "WRONG": "**WRONG**", "-": "-"}
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes = []
    for name, found in rows:
        cells = [found.columns.get(column, "-") for column in COLUMNS]
        lines.append(
            f"| {name} | "
            + " | ".join(next(v for k, v in short.items() if cell.startswith(k)) for cell in cells)
            + " |"
        )
        notes += [
            f"* {name}, {c}: {text}" for c, text in zip(COLUMNS, cells, strict=True) if text not in ("right", "-")
        ]
    counts = {kind: sum(found.verdict.startswith(kind) for _, found in rows) for kind in ("right", "refused", "WRONG")}
    summary = f"{len(rows)} models: " + ", ".join(f"{number} {kind}" for kind, number in counts.items()) + "."
    return "\n".join([summary, "", *lines, "", *notes, ""])


def main():
    """Judge, print every row, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of the table")
    parser.add_argument("--only", default="", help="part of the name")
    parser.add_argument("--situations", action="store_true", help="situations in every kind of model")
    parser.add_argument("--nonlocal-only", action="store_true", help="leave the local NTK out")
    parser.add_argument("--limit", type=int, default=120, help="seconds for one model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    settings = {"gammas": (0.1,), "samples": 4} if arguments.situations else {}
    settings["local"] = not arguments.nonlocal_only
    for name, make in (situations if arguments.situations else architectures)(arguments.only):
        start = time.perf_counter()
        rows.append((name, judged(make, arguments.limit, **settings)))
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {rows[-1][1].verdict[:300]}", flush=True)
    if arguments.out:
        arguments.out.write_text(table(rows))
    sys.exit(any(found.verdict.startswith("WRONG") for _, found in rows))


if __name__ == "__main__":
    main()
