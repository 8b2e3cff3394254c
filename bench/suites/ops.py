"""Every op at typical shapes: its speed beside the roof of the machine, after its results were checked.

First, every result is compared with the reference in float64, for two sets of arguments. An op that does nothing, or
returns its last result, shows an error and no speed. A speed above the roof is an error of measurement.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nntk.bench.measure import reference, roofline
from nntk.bench.measure.timing import Timing, captured, repeat, seconds
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.section import Section, Setting
from nntk.kernels.dispatch import REGISTERED, cost_of
from nntk.kernels.philox.source import source_of

_FLOAT64 = {"inner_product", "inner_product_of_gradients", "nonlocal_gradients", "multiply_displacements"}
"""Ops whose products are in float64 for every input."""
ROUNDING = {"fp32": 2e-5, "tf32": 4e-3, "bf16": 4e-2}
"""Largest relative error (Frobenius) by precision; random numbers of a GPU may differ from the reference's by more."""


_SHORT = 1e-3
"""Seconds of a GPU below which a call is timed without the host; its time with the host is another column."""


@dataclass(frozen=True)
class OpCase:
    """One op at one shape.

    Attributes:
        op: Name in ``torch.ops.nntk``.
        shape: Description of the shape for readers.
        arguments: Function that makes the arguments from a seed, on the device of the setting.
        precision: Precision of the products.
        run: Function that is timed and checked; the op itself by default.
        tolerance: Largest relative error; that of the precision by default.
    """

    op: str
    shape: str
    arguments: Callable[[int], tuple[Any, ...]]
    precision: str = "fp32"
    run: Callable[..., Any] | None = None
    tolerance: float | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the case."""
        return (self.run or getattr(torch.ops.nntk, self.op))(*arguments)


def cases(device: torch.device) -> list[OpCase]:
    """Return the cases of the suite; shapes are larger on a GPU, so that one call fills it."""
    large = device.type == "cuda"
    m, n = (4096, 4096) if large else (512, 512)
    make = ArgumentMakers(device)
    precisions = ("bf16", "tf32", "fp32") if large else ("fp32",)
    families = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)")
    widths = (784, 1024, 1024, 10) if large else (64, 256, 256, 1)
    inputs, rows = (1024, 1024) if large else (256, 32)
    return [
        *(
            OpCase("unit_displacements", f"{name} {rows} x 256 x 256", make.unit(rows, name))
            for name in ("gaussian", "rademacher")
        ),
        OpCase("squared_norms", f"gaussian {rows} x 256 x 256", make.stream(rows, "gaussian")),
        OpCase("displacement_gram", f"gaussian {rows} x 256 x 256", make.stream(rows, "gaussian")),
        *(
            OpCase(
                "mlp_differences", f"{name} {precision} M={rows} N={inputs} {'-'.join(map(str, widths))}",
                make.network(widths, inputs, rows, name, precision), precision,
            )
            for name in families for precision in precisions
        ),
        OpCase(
            "displacement_products", f"gaussian M={rows} n={8 * inputs} 256-256",
            make.products(rows, 8 * inputs, 256, 256, "gaussian"),
        ),
        OpCase("radii", f"cauchy M={m * n}", make.radii(m * n)),
        OpCase("radial_weights", f"gaussian from cauchy M={m * n}", make.radial(m * n)),
        OpCase("attention_scores", f"dot M={m} N={n} C=10", make.scores(m, n, 10)),
        OpCase("attention_statistics", f"dot pairs M={m} N={n}", make.softmax(m, n)),
        OpCase("attention_weights", f"dot pairs M={m} N={n}", make.softmax(m, n, True)),
        OpCase("project_displacements", f"gaussian {rows} x 256 x 256, 16", make.stream(rows, "gaussian", 16)),
        OpCase("energy", f"trace M={m} N={n} C=1", make.energy(m, n, 1, "trace")),
        OpCase("energy", f"trace M={m} N={n // 4} C=10", make.energy(m, n // 4, 10, "trace")),
        OpCase("energy", f"full M={m} N={n // 8} C=10", make.energy(m, n // 8, 10, "full")),
        OpCase("inner_product", f"trace M={m} N={n // 4}", make.inner(m, n // 4)),
        OpCase("nonlocal_gradients", f"M={m} N=16 d=16640", make.gradients(m, 16)),
        OpCase("structured_ntk", f"trace N={n} {'-'.join(map(str, widths))}", make.local(widths, n)),
    ]  # fmt: skip


def measure(case: OpCase, device: torch.device, seed: int) -> Row:
    """Check one op, then time it.

    Args:
        case: The op and its shape.
        device: Device of the op.
        seed: Seed of the arguments.

    Returns:
        A row; it has a ``failure`` and no speed if a result is wrong, or if the speed is above the roof.
    """
    rotated = [case.arguments(2 * (seed + number) + 1) for number in range(2)]
    row: Row = {"case": f"{case.op} {case.shape}", "op": case.op, "shape": case.shape, "precision": case.precision}
    # The first call compiles and loads kernels.
    row["first_call_s"] = seconds(lambda: case(*rotated[0]), device)
    row["error"] = max(_error(case, arguments) for arguments in rotated)
    allowed = ROUNDING[case.precision] if case.tolerance is None else case.tolerance
    if not row["error"] <= allowed:
        return {**row, "failure": f"error {row['error']:.1e} > {allowed:.0e}"}
    timing = _timed(case, rotated, device, row)
    # A result that was remembered from another call would be wrong for these arguments.
    repeated = max(_error(case, arguments) for arguments in rotated)
    if not repeated <= allowed:
        return {**row, "error": repeated, "failure": f"error {repeated:.1e} > {allowed:.0e}, after it was timed"}
    cost = cost_of(case.op, rotated[0])
    work = {"flops": cost.flops, "bytes": cost.bytes, "normals": cost.normals, "signs": cost.signs}
    return {**row, **work, **roofline.beside(case.op, cost, precision_of(case), timing, device)}


def _timed(case: OpCase, rotated: Sequence[tuple[Any, ...]], device: torch.device, row: Row) -> Timing:
    """Time a case; a short one on a GPU is recorded and replayed, so that the time of the host does not count."""

    def run(number: int) -> Any:
        return case(*rotated[number % 2])

    timing = repeat(run, device)
    if device.type == "cuda" and timing.median < _SHORT and (replay := captured(run, 2, device)):
        row["eager_s"] = timing.median
        timing = repeat(replay, device)
    return timing


def precision_of(case: OpCase) -> str:
    """Return the precision of a case's products, which names their roof."""
    return "fp64" if case.op in _FLOAT64 else case.precision


def _error(case: OpCase, arguments: tuple[Any, ...]) -> float:
    """Return the largest relative error against the reference in float64, on a CPU with the same noise."""
    results = case(*arguments)
    expected_by = REGISTERED[case.op].reference
    noise = {}
    if "source" in inspect.signature(expected_by).parameters:
        noise["source"] = source_of(_listed(results)[0].device)
    expected = expected_by(*_doubled(arguments), **noise)
    pairs = zip(_listed(results), _listed(expected), strict=True)
    return max(reference.relative_error(result, reference_result) for result, reference_result in pairs)


def _listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _doubled(argument: Any) -> Any:
    """Convert float32 to float64, and precisions of products, which float64 does not have, to ``fp32``."""
    if isinstance(argument, list | tuple):
        return type(argument)(_doubled(part) for part in argument)
    if isinstance(argument, Tensor):
        return argument.double() if argument.dtype == torch.float32 else argument
    if isinstance(argument, torch.dtype):
        return torch.float64
    return "fp32" if argument in ("bf16", "tf32") else argument


def _rows(setting: Setting) -> Iterator[Row | str]:
    yield "measuring the roofs"
    roofline.roofs(setting.device)
    for case in cases(setting.device):
        yield f"{case.op} {case.shape}"
        yield measure(case, setting.device, setting.seed)


OPS = Section(
    name="ops",
    title="Every op beside the roof of the machine",
    caption="Time: median until quartiles lie within 2 %, 30 runs or 2 s; on a GPU short calls are replayed from a "
    "graph, and have a time with the host beside it. Roof: what limits the least work "
    "of the call, products or memory, of those measured; random numbers have none. Error against float64.",
    columns=(
        Column("op", "op"),
        Column("shape", "shape"),
        Column("time", "median_s", "seconds"),
        Column("with the host", "eager_s", "seconds"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("error", "error", ".1e"),
    ),
    rows=_rows,
)
