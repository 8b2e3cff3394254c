"""Throughput: differences and kernels against torch.func over stacked parameters and the local NTKs, side by side."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

import nntk
from nntk.bench import baselines, data, reference
from nntk.bench.results import Row
from nntk.bench.suites import Section, Setting
from nntk.bench.tables import Column
from nntk.bench.timing import Case, Timing, side_by_side

_WIDTHS = (64, 256, 256, 1)
_GAMMA = 1e-2
_INPUTS = 256
_BASELINE = "torch.func.vmap"


def _batches(setting: Setting) -> list[Tensor]:
    """Disjoint batches of digits: every round works on inputs that the last one did not leave in a cache."""
    images = data.load(setting.seed, setting.device).images
    return [images[first : first + _INPUTS] for first in range(0, 4 * _INPUTS, _INPUTS)]


def _time(setting: Setting, cases: Mapping[str, Callable[[Tensor, int], object]], rounds: int) -> dict[str, Timing]:
    """Time cases on a fresh batch, with a fresh seed, every round."""
    batches = _batches(setting)

    def bind(case: Callable[[Tensor, int], object]) -> Case:
        return lambda number: case(batches[number % len(batches)], setting.seed + number)

    return side_by_side({name: bind(case) for name, case in cases.items()}, rounds, setting.device)


def _timed_row(name: str, timing: Timing, baseline: Timing) -> Row:
    low, high = timing.quartiles
    return {
        "case": name,
        "median_s": timing.median,
        "low_s": low,
        "high_s": high,
        "speed_up": timing.ratio_to(baseline),
        "samples_s": list(timing.samples),
    }


_FORMS = [
    (f"nntk {directions}, {form}", directions, form)
    for directions in ("gaussian", "rademacher")
    for form in ("difference", "direct")
]
_TOLERANCES = {"difference": 1e-5, "direct": 1e-3}


def _differences(setting: Setting) -> Iterator[Row | str]:
    samples = 128
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)

    def kernel(directions: str, form: str, samples: int, seed: int) -> nntk.NonlocalNTK:
        return nntk.NonlocalNTK(
            model, gamma=_GAMMA, samples=samples, directions=directions, propagation=form, seed=seed
        )

    yield "checking against float64"
    errors = {}
    for name, directions, form in _FORMS:
        few = kernel(directions, form, 16, setting.seed)
        x = _batches(setting)[0]
        errors[name] = reference.relative_error(few.differences(x), few, x)

    yield "timing differences, seven rounds"
    cases: dict[str, Callable[[Tensor, int], object]] = {
        _BASELINE: lambda x, seed: baselines.stacked_differences(model, x, _GAMMA, samples, seed),
        "unperturbed forwards": lambda x, seed: baselines.plain_forwards(model, x, 2 * samples),
    }
    for name, directions, form in _FORMS:
        cases[name] = lambda x, seed, directions=directions, form=form: kernel(  # type: ignore[misc]
            directions, form, samples, seed
        ).differences(x)
    timings = _time(setting, cases, rounds=7)
    for name, timing in timings.items():
        row = _timed_row(name, timing, timings[_BASELINE])
        row["evaluations_per_s"] = 2 * samples * _INPUTS / timing.median
        if name in errors:
            row["error"] = errors[name]
            tolerance = _TOLERANCES[name.rpartition(" ")[2]]
            if not errors[name] <= tolerance:
                row = {"case": name, "error": errors[name], "failure": f"error {errors[name]:.1e} > {tolerance:.0e}"}
        yield row


DIFFERENCES = Section(
    name="difference throughput",
    title=f"Differences: 128 antithetic displacements, {_INPUTS} digits, relu 64-256-256-1, float32",
    caption="Median of seven rounds side by side, making the noise included. One evaluation: one input at one "
    "displaced parameter vector.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("evaluations", "evaluations_per_s", "per second"),
        Column("speed-up", "speed_up", "times"),
        Column("error", "error", ".1e"),
    ),
    rows=_differences,
)


def _kernels(setting: Setting) -> Iterator[Row | str]:
    samples = 512
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)

    def nonlocal_kernel(directions: str) -> Callable[[Tensor, int], Tensor]:
        return lambda x, seed: nntk.NonlocalNTK(model, gamma=_GAMMA, samples=samples, directions=directions, seed=seed)(
            x
        )

    def local_kernel(method: str) -> Callable[[Tensor, int], Tensor]:
        return lambda x, seed: nntk.local_ntk(model, x, method=method)

    cases = {
        _BASELINE: lambda x, seed: baselines.stacked_kernel(model, x, _GAMMA, samples, seed),
        "nntk gaussian": nonlocal_kernel("gaussian"),
        "nntk rademacher": nonlocal_kernel("rademacher"),
        "local NTK, structured": local_kernel("structured"),
        "local NTK, jacobian": local_kernel("jacobian"),
        "local NTK, vector-products": local_kernel("vector-products"),
    }
    yield "checking against the NTK"
    x = _batches(setting)[0]
    ntk = nntk.local_ntk(nn.Sequential(*model).double(), x.double(), method="structured")
    model.float()
    errors = {name: float((case(x, setting.seed).double() - ntk).norm() / ntk.norm()) for name, case in cases.items()}
    num_params = sum(parameter.numel() for parameter in model.parameters())
    predicted = nntk.monte_carlo_error(ntk, samples, num_params) / float(ntk.norm())

    yield "timing kernels, five rounds"
    timings = _time(setting, cases, rounds=5)
    for name, timing in timings.items():
        row = {**_timed_row(name, timing, timings[_BASELINE]), "error": errors[name]}
        # Four standard errors: one seed in thousands is farther off by chance.
        tolerance = 1e-5 if name.startswith("local") else 4 * predicted
        if not errors[name] <= tolerance:
            row = {"case": name, "error": errors[name], "failure": f"error {errors[name]:.1e} > {tolerance:.1e}"}
        yield row


KERNELS = Section(
    name="kernel throughput",
    title=f"Kernels: {_INPUTS} digits, relu 64-256-256-1, gamma 0.01, 512 antithetic displacements, float32",
    caption="Median of five rounds side by side, making the noise included; error against the float64 NTK: for the "
    "nonlocal kernels the Monte-Carlo error.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("speed-up", "speed_up", "times"),
        Column("error", "error", ".1e"),
    ),
    rows=_kernels,
)
