"""``nntk-bench compare-kernels``: how alike two kernel matrices in files are."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

import nntk
from nntk.bench.cli.options import (
    CommandError,
    JsonOutput,
    errors_by_argument,
    one_line_errors,
    parse_output,
    printing_beside,
)
from nntk.bench.report.plots import comparison_plot
from nntk.bench.results import tables
from nntk.files.output import Output

SUMMARY = "say how alike two kernel matrices are"
HELP = """\
Compare two kernels of the same inputs, each a symmetric matrix [N, N] in a file of NumPy, such as nntk.write_kernel
writes. It prints their alignment, that of the kernels of centred features, their relative difference, effective ranks,
largest eigenvalues, and the principal angles between their leading eigenvectors; nntk.compare explains them. Matrices
in files count as exact: compare estimates in Python for their Monte-Carlo errors.
"""
EPILOG = """\
examples:
  nntk-bench compare-kernels a.npy b.npy                    the numbers
  nntk-bench compare-kernels a.npy b.npy --plot pair.svg    and a picture of spectra and angles
  nntk-bench compare-kernels a.npy b.npy --top 20 --json -  for another program

Exit status: 0 compared, 2 wrong usage or unusable file.
"""


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="first kernel, .npy")],
    b: Annotated[Path, typer.Argument(metavar="B", help="second kernel, .npy")],
    top: Annotated[
        int, typer.Option(metavar="K", min=1, help="number of leading eigenvectors (default: 5)", show_default=False)
    ] = 5,
    plot: Annotated[
        Output | None,
        typer.Option(parser=parse_output("--plot"), metavar="PATH", help="write the picture, an SVG, to this file"),
    ] = None,
    json: JsonOutput = None,
) -> int:
    """Compare two kernels in files, print the comparison, and write it where that is asked for."""
    kernels = [_read(path) for path in (a, b)]
    names = {"first": "A", "second": "B", "top": "--top"}
    with one_line_errors(ValueError, TypeError), errors_by_argument(names):
        comparison = nntk.compare(*kernels, top=top)
    with one_line_errors(ValueError, OSError), printing_beside(json) as output:
        if output:
            output.write_json({"a": str(a), "b": str(b), **_plain(asdict(comparison))})
        if plot:
            plot.write(comparison_plot(comparison, (a.name, b.name)).file)
        tables.standard_console().print(f"K: {a}\nL: {b}\n{comparison}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _read(path: Path) -> Tensor:
    """Read a matrix from a file of NumPy."""
    with (
        one_line_errors(OSError, prefix=""),
        one_line_errors(ValueError, EOFError, prefix=f"{path}: no matrix of NumPy: "),
    ):
        matrix = np.load(path, allow_pickle=False)
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiub":
        raise CommandError(f"{path}: must hold one matrix of real numbers")
    return torch.from_numpy(matrix.astype(np.float64))


def _plain(value: Any) -> Any:
    """Return tensors as numbers and lists, and everything that holds them as plain data."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
