"""Growth of the time and memory of differences along one axis at a time, with fitted exponents."""

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
"""Number of rounds. A round times all values of an axis in turn, so that a slower machine affects each."""

Shape = tuple[tuple[int, ...], int, int]
"""Widths of the network, samples M, inputs N."""


def shapes(axis: str, device: torch.device) -> list[tuple[int, Shape]]:
    """Return the values of an axis and their shapes; the other sizes are such that this axis dominates the time.

    Args:
        axis: ``"M"``, ``"N"`` or ``"d"``.
        device: Device; on a GPU shapes are larger, to fill it.

    Returns:
        Pairs of a value and a shape; the values double approximately.
    """
    factor = 16 if device.type == "cuda" else 1
    if axis == "M":
        return [(m, ((64, 128, 128, 1), m, 128)) for m in (256 * factor, 512 * factor, 1024 * factor, 2048 * factor)]
    if axis == "N":
        return [(n * factor, ((64, 64, 1), 64, n * factor)) for n in (4096, 8192, 16384, 32768)]
    widths = [(64, w, w, 1) for w in (512, 768, 1024, 1536)]
    samples = 512 if device.type == "cuda" else 32
    return [(sum((a + 1) * b for a, b in zip(w, w[1:], strict=False)), (w, samples, 64 * factor)) for w in widths]


def prepare(shape: Shape, device: str, seed: int) -> Callable[[], Tensor]:
    """Prepare a call that returns the differences at a shape."""
    widths, samples, inputs = shape
    model = data.he_network(widths, nn.ReLU, seed, torch.device(device))
    x = torch.randn(inputs, widths[0], generator=torch.Generator().manual_seed(seed)).to(device)
    kernel = nntk.NonlocalNTK(model, gamma=0.01, samples=samples, propagation="difference", seed=seed)
    # The first call of a process loads and allocates objects that do not belong to the measured call.
    nntk.NonlocalNTK(model, gamma=0.01, samples=2, propagation="difference").differences(x[:2])
    return partial(kernel.differences, x)


def exponent(values: Sequence[float], durations: Sequence[float]) -> float:
    """Fit an exponent: the slope of a straight line through logarithms, by least squares.

    Args:
        values: Sizes along the axis.
        durations: Measurement at each size.

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
        shapes_by_value = shapes(axis, setting.device)
        calls = {value: prepare(shape, str(setting.device), setting.seed) for value, shape in shapes_by_value}
        cases = {str(value): every_round(call) for value, call in calls.items()}
        timings = side_by_side(cases, _ROUNDS, setting.device)
        rows = []
        for value, shape in shapes_by_value:
            name, precision = f"{axis} = {value}", "fp32" if setting.device.type == "cpu" else "bf16"
            row: Row = {"case": name, "axis": axis, "value": value}
            row |= roofline.beside(name, work_of(calls[value]), precision, timings[str(value)], setting.device)
            row["peak_bytes"] = memory.peak(prepare, shape, str(setting.device), setting.seed, device=setting.device)
            rows.append(row)
            yield row
        yield from _exponents(axis, [row for row in rows if "failure" not in row])


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
