"""Targets of the design, each beside its measurement; on a CPU the same at small shapes.

Evaluations are timed by the public API, noise included, in turn with the baselines of the targets. The design states
its targets for an H200. On another card they are scaled by its measured roofs, see ``nntk.bench.measure.design``.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import baselines, data, design, memory, reference, roofline, timing
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites import ops
from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.section import Section, Setting

_FAMILIES = {"lowrank(1)": 1.0, "rademacher": 0.60, "flipout(8)": 0.55, "gaussian": 0.45}
"""Families of displacements, and the target of each relative to the same number of unperturbed forwards."""
_AGAINST_VMAP = {"gaussian": 10.0, "rademacher": 15.0}
_GAMMA = 1e-2
_TOLERANCE = {"bf16": 2e-2, "fp32": 1e-5}
_BYTES = 2**28
"""Budget of temporary memory whose keeping is judged."""
_ROUNDS = 5


def _kernel(
    model: nn.Module, directions: str, samples: int, precision: str, seed: int, max_memory: int | None = None
) -> nntk.NonlocalNTK:
    return nntk.NonlocalNTK(
        model, gamma=_GAMMA, samples=samples, directions=directions, precision=precision, propagation="difference",
        seed=seed, max_memory=max_memory,
    )  # fmt: skip


def _row(
    case: str,
    target: float,
    measured: float,
    seconds: float,
    error: float | None = None,
    bound: design.Bound | None = None,
    setting: Setting | None = None,
) -> Row:
    """Return a row; with a bound, the target is scaled by the roofs of the setting's device."""
    scaled = target
    if bound and setting and setting.device.type == "cuda":
        scaled = design.scaled(target, bound, design.rates_of(roofline.roofs(setting.device)))
    row = {"case": case, "target": scaled, "design_target": target, "measured": measured}
    row |= {"share": measured / scaled, "time_s": seconds}
    return row if error is None else row | {"error": error}


def _evaluations(setting: Setting) -> Iterator[Row | str]:
    large = setting.device.type == "cuda"
    widths, inputs, rows = ((784, 1024, 1024, 10), 1024, 1024) if large else ((64, 128, 1), 64, 32)
    precision = "bf16" if large else "fp32"
    model = data.he_network(widths, nn.ReLU, setting.seed, setting.device, biases=0.1)
    generator = torch.Generator(setting.device).manual_seed(setting.seed)
    x = torch.randn(inputs, widths[0], device=setting.device, generator=generator)
    dtype = torch.bfloat16 if large else torch.float32
    forwards = data.he_network(widths, nn.ReLU, setting.seed, setting.device, biases=0.1).to(dtype)
    # The number of forwards is that of the evaluations, in batches that fill a card.
    batch = x.to(dtype).repeat(32, 1)
    cases: dict[str, timing.Case] = {
        "forwards": lambda number: baselines.plain_forwards(forwards, batch, 2 * rows // 32),
        "vmap": lambda number: baselines.stacked_differences(model, x, _GAMMA, rows, number, stacked=32),
    }
    errors = {}
    for name in _FAMILIES:
        yield f"checking {name} against float64"
        checked = _kernel(model, name, 8, precision, setting.seed)
        errors[name] = reference.relative_error(checked.differences(x), reference.float64_differences(checked, x))
        cases[name] = partial(_differences, model, x, name, rows, precision)
    yield "timing evaluations"
    times = timing.side_by_side(cases, _ROUNDS, setting.device)
    for name, target in _FAMILIES.items():
        row = _row(
            f"{name}, {precision}: evaluations, of {precision} forwards", target,
            times[name].ratio_to(times["forwards"]), times[name].median, errors[name],
            design.evaluations_of_forwards(name, widths, inputs), setting,
        )  # fmt: skip
        if not errors[name] <= _TOLERANCE[precision]:
            row["failure"] = f"error {errors[name]:.1e} > {_TOLERANCE[precision]:.0e}"
        yield row
    for name, target in _AGAINST_VMAP.items():
        yield _row(
            f"{name}, {precision}: against torch.func.vmap in fp32", target, times[name].ratio_to(times["vmap"]),
            times[name].median, bound=design.evaluations_of_float32(name, widths, inputs), setting=setting,
        )  # fmt: skip
    if large:
        yield "memory"
        for name in _FAMILIES:
            peak = memory.peak(_prepared, model, x, name, rows, precision, device=setting.device)
            yield _row(f"{name}: budget of memory, over what is taken", 1.0, _BYTES / peak, times[name].median)


def _differences(model: nn.Module, x: Tensor, directions: str, rows: int, precision: str, seed: int) -> Tensor:
    return _kernel(model, directions, rows, precision, seed).differences(x)


def _prepared(model: nn.Module, x: Tensor, directions: str, rows: int, precision: str) -> Callable[[], Tensor]:
    return lambda: _kernel(model, directions, rows, precision, 0, _BYTES).differences(x)


def _kernels(setting: Setting) -> Iterator[Row | str]:
    large = setting.device.type == "cuda"
    widths, inputs, rows = ((256, 832, 832, 1), 4096, 1024) if large else ((16, 32, 1), 64, 32)
    model = data.he_network(widths, nn.ReLU, setting.seed, setting.device, biases=0.1)
    generator = torch.Generator(setting.device).manual_seed(setting.seed)
    x = torch.randn(inputs, widths[0], device=setting.device, generator=generator)
    yield "timing kernels"
    jacobians = partial(nntk.local_ntk, method="jacobian", max_memory=2**34 if large else 2**24)
    times = timing.side_by_side(
        {
            "nonlocal": lambda number: nntk.NonlocalNTK(model, gamma=_GAMMA, samples=rows, seed=number)(x),
            "jacobian": lambda number: jacobians(model, x),
        },
        _ROUNDS,
        setting.device,
    )
    yield _row(
        "kernel: against contraction of Jacobians", 5.0, times["nonlocal"].ratio_to(times["jacobian"]),
        times["nonlocal"].median, bound=design.kernel_of_contraction("gaussian", widths, inputs, rows), setting=setting,
    )  # fmt: skip


def _ops(setting: Setting) -> Iterator[Row | str]:
    large = setting.device.type == "cuda"
    rows, inputs = (4096, 4096) if large else (128, 128)
    make = ArgumentMakers(setting.device)
    for case in (
        ops.OpCase("radial_weights", f"gaussian from cauchy M={rows * inputs}", make.radial(rows * inputs)),
        ops.OpCase("attention_statistics", f"dot pairs M={rows} N={inputs}", make.softmax(rows, inputs)),
        ops.OpCase("attention_weights", f"dot pairs M={rows} N={inputs}", make.softmax(rows, inputs, True)),
    ):
        yield case.op
        row = ops.measure(case, setting.device, setting.seed)
        if "failure" in row:
            yield {"case": case.op, "failure": row["failure"]}
        else:
            yield _row(f"{case.op}: of its roof", 0.8, row["roof_share"], row["median_s"], row["error"])
    for outputs in (1, 10):
        yield from _assembly(make, rows // 4, inputs, outputs, setting)


def _assembly(make: ArgumentMakers, rows: int, inputs: int, outputs: int, setting: Setting) -> Iterator[Row | str]:
    yield f"energy, C = {outputs}"
    arguments = [make.energy(rows, inputs, outputs, "trace")(seed) for seed in (1, 2)]
    matrices = [differences.movedim(1, -1).reshape(-1, inputs).contiguous() for differences, *_ in arguments]
    times = timing.side_by_side(
        {
            "energy": lambda number: torch.ops.nntk.energy(*arguments[number % 2]),
            "gemm": lambda number: matrices[number % 2].T @ matrices[number % 2],
        },
        4 * _ROUNDS,
        setting.device,
    )
    yield _row(
        f"energy, C = {outputs}: against PyTorch's product in fp32", 3.0, times["energy"].ratio_to(times["gemm"]),
        times["energy"].median, bound=design.sum_of_product(outputs * rows, inputs), setting=setting,
    )  # fmt: skip


PARTS = {"evaluations": _evaluations, "kernel": _kernels, "operations": _ops}
"""Parts of the suite, which are measured one after another; the rows of one part belong together."""


def _rows(setting: Setting) -> Iterator[Row | str]:
    for part in PARTS.values():
        yield from part(setting)


TARGETS = Section(
    name="targets",
    title="Targets of the design",
    caption="Evaluations: differences at 1024 antithetic displacements of 1024 inputs, relu 784-1024-1024-10, noise "
    "included, beside the same number of dense forwards.\nKernel: 256-832-832-1, 4096 inputs, 1024 displacements. "
    "Medians of ratios, side by side. On a CPU small shapes in float32.\n"
    "The design's targets are for an H200; those of another card are scaled by its measured roofs.",
    columns=(
        Column("what", "case"),
        Column("target", "target", ".2f"),
        Column("on an H200", "design_target", ".2f"),
        Column("measured", "measured", ".2f"),
        Column("of it", "share", "percent"),
        Column("time", "time_s", "seconds"),
        Column("error", "error", ".1e"),
    ),
    rows=_rows,
)
