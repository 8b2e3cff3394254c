"""How time and memory of the differences grow along one axis at a time, with the fitted exponent of each."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data, memory, roofline
from nntk.bench.measure.timing import every_round, side_by_side
from nntk.bench.measure.work import work_of
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_ROUNDS = 9
"""Of all values of an axis in turn: a machine that becomes slower does so for each."""

Shape = tuple[tuple[int, ...], int, int]
"""Widths of the network, samples M, inputs N."""


def shapes(axis: str, device: torch.device) -> list[tuple[int, Shape]]:
    """The values of an axis and the shapes at them; all other sizes are such that this one sets the time.

    Args:
        axis: ``"M"``, ``"N"`` or ``"d"``.
        device: On a GPU shapes are larger, to fill it.

    Returns:
        A value and a shape each, the value doubling or nearly so.
    """
    large = 16 if device.type == "cuda" else 1
    if axis == "M":
        return [(m, ((64, 128, 128, 1), m, 128)) for m in (256 * large, 512 * large, 1024 * large, 2048 * large)]
    if axis == "N":
        return [(n * large, ((64, 64, 1), 64, n * large)) for n in (4096, 8192, 16384, 32768)]
    widths = [(64, w, w, 1) for w in (128, 192, 256, 384)]
    return [(sum((a + 1) * b for a, b in zip(w, w[1:], strict=False)), (w, 32 * large, 64 * large)) for w in widths]


def prepare(shape: Shape, device: str, seed: int) -> Callable[[], Tensor]:
    """A call that gives the differences at a shape."""
    widths, samples, inputs = shape
    model = data.he_network(widths, nn.ReLU, seed, torch.device(device))
    x = torch.randn(inputs, widths[0], generator=torch.Generator().manual_seed(seed)).to(device)
    kernel = nntk.NonlocalNTK(model, gamma=0.01, samples=samples, propagation="difference", seed=seed)
    # What is loaded and allocated once, at the first call of a process, is not the call's.
    nntk.NonlocalNTK(model, gamma=0.01, samples=2, propagation="difference").differences(x[:2])
    return partial(kernel.differences, x)


def exponent(values: Sequence[float], durations: Sequence[float]) -> float:
    """The slope of a straight line through logarithms, by least squares.

    Args:
        values: Sizes along the axis.
        durations: What was measured at each.

    Returns:
        The exponent p of durations ~ values^p.

    Example:
        >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 12)
        2.0
    """
    x, y = [math.log(value) for value in values], [math.log(max(duration, 1e-12)) for duration in durations]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def _rows(setting: Setting) -> Iterator[Row | str]:
    for axis in ("M", "N", "d"):
        yield f"{axis}, {_ROUNDS} rounds"
        along = shapes(axis, setting.device)
        calls = {value: prepare(shape, str(setting.device), setting.seed) for value, shape in along}
        cases = {str(value): every_round(call) for value, call in calls.items()}
        timings = side_by_side(cases, _ROUNDS, setting.device)
        found = []
        for value, shape in along:
            name, precision = f"{axis} = {value}", "fp32" if setting.device.type == "cpu" else "bf16"
            row: Row = {"case": name, "axis": axis, "value": value}
            row |= roofline.beside(name, work_of(calls[value]), precision, timings[str(value)], setting.device)
            row["peak_bytes"] = memory.peak(prepare, shape, str(setting.device), setting.seed, device=setting.device)
            found.append(row)
            yield row
        yield from _exponents(axis, [row for row in found if "failure" not in row])


def _exponents(axis: str, rows: Sequence[Row]) -> Iterator[Row]:
    if len(rows) > 1:
        values = [row["value"] for row in rows]
        powers = {
            name: exponent(values, [row[key] for row in rows])
            for name, key in (("exponent", "median_s"), ("memory_exponent", "peak_bytes"))
        }
        yield {"case": f"exponents of {axis}", "axis": axis, **powers}


SCALING = Section(
    name="scaling",
    title="Differences along one axis at a time: time, and memory beyond the result",
    caption="M displacements, N inputs, d parameters; time ~ value^exponent, by least squares of logarithms. Memory is "
    "that of a fresh process.",
    columns=(
        Column("axis", "case"),
        Column("time", "median_s", "seconds"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("memory", "peak_bytes", "bytes"),
        Column("exponent", "exponent", ".2f"),
        Column("of memory", "memory_exponent", ".2f"),
    ),
    rows=_rows,
)
