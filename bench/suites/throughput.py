"""Throughput: differences and kernels against torch.func over stacked parameters and the local NTKs, side by side."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import baselines, data, reference, roofline
from nntk.bench.measure.timing import Case, Timing, side_by_side
from nntk.bench.measure.work import work_of
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting
from nntk.kernels.philox import unit_displacements
from nntk.kernels.philox.reference import unit_displacements as reference_displacements

_WIDTHS = (64, 256, 256, 1)
_GAMMA = 1e-2
_INPUTS = 256
_BASELINE = "torch.func.vmap"


Timed = Callable[[Tensor, int], Any]
"""Function of inputs and a seed that is timed."""


def _batches(setting: Setting) -> list[Tensor]:
    """Return disjoint batches of digits, so that the inputs of a round are not in a cache from the last round."""
    images = data.load(setting.seed, setting.device).images
    return [images[first : first + _INPUTS] for first in range(0, 4 * _INPUTS, _INPUTS)]


def _time(setting: Setting, cases: Mapping[str, Timed], rounds: int) -> dict[str, Timing]:
    """Time cases on a fresh batch, with a fresh seed, every round."""
    batches = _batches(setting)

    def bind(case: Timed) -> Case:
        return lambda number: case(batches[number % len(batches)], setting.seed + number)

    return side_by_side({name: bind(case) for name, case in cases.items()}, rounds, setting.device)


def _timed_row(name: str, case: Timed, timing: Timing, baseline: Timing, precision: str, setting: Setting) -> Row:
    """Return the row of one case; without a speed-up if the speed is above the roof."""
    x = _batches(setting)[0]
    cost = work_of(lambda: case(x, setting.seed))
    row = {"case": name, **roofline.beside(name, cost, precision, timing, setting.device)}
    return row if "failure" in row else {**row, "speed_up": timing.ratio_to(baseline)}


@dataclass(frozen=True)
class _Form:
    """Method for the differences, and the tolerance of its error."""

    name: str
    directions: str
    propagation: str
    precision: str
    tolerance: float


def _forms(device: torch.device) -> list[_Form]:
    """Return the forms of each family on a CPU; on a GPU, which has tensor cores, every family in every precision."""
    if device.type == "cpu":
        forms = [("gaussian", "difference"), ("gaussian", "direct"), ("rademacher", "difference")]
        forms += [("rademacher", "direct"), ("flipout(8)", "difference"), ("lowrank(1)", "difference")]
        tolerances = {"difference": 1e-5, "direct": 1e-3}
        return [
            _Form(f"nntk {directions}, {form}", directions, form, "fp32", tolerances[form])
            for directions, form in forms
        ]
    return [
        _Form(f"nntk {directions}, {precision}", directions, "difference", precision, tolerance)
        for directions in ("gaussian", "rademacher", "flipout(8)", "lowrank(1)")
        for precision, tolerance in (("bf16", 2e-2), ("tf32", 2e-3), ("fp32", 1e-5))
    ]


_NONLOCAL = {"nntk gaussian": "gaussian", "nntk rademacher": "rademacher"}


def _differences(setting: Setting) -> Iterator[Row | str]:
    samples = 128
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)

    def kernel(form: _Form, samples: int, seed: int) -> nntk.NonlocalNTK:
        return nntk.NonlocalNTK(
            model,
            gamma=_GAMMA,
            samples=samples,
            directions=form.directions,
            propagation=form.propagation,
            precision=form.precision,
            seed=seed,
        )

    def differences_by(form: _Form) -> Callable[[Tensor, int], Tensor]:
        return lambda x, seed: kernel(form, samples, seed).differences(x)

    yield "checking against float64"
    errors, forms = {}, {form.name: form for form in _forms(setting.device)}
    for name, form in forms.items():
        checked = kernel(form, 16, setting.seed)
        x = _batches(setting)[0]
        errors[name] = reference.relative_error(checked.differences(x), reference.float64_differences(checked, x))

    yield "timing differences, seven rounds"
    cases: dict[str, Timed] = {
        _BASELINE: lambda x, seed: baselines.stacked_differences(model, x, _GAMMA, samples, seed),
        "unperturbed forwards": lambda x, seed: baselines.plain_forwards(model, x, 2 * samples),
    }
    for name, form in forms.items():
        cases[name] = differences_by(form)
    timings = _time(setting, cases, rounds=7)
    for name, timing in timings.items():
        precision = forms[name].precision if name in forms else "fp32"
        row = _timed_row(name, cases[name], timing, timings[_BASELINE], precision, setting)
        if "failure" not in row:
            row["evaluations_per_s"] = 2 * samples * _INPUTS / timing.median
        if name in errors:
            row["error"] = errors[name]
            tolerance = forms[name].tolerance
            if not errors[name] <= tolerance:
                row = {"case": name, "error": errors[name], "failure": f"error {errors[name]:.1e} > {tolerance:.0e}"}
        yield row


DIFFERENCES = Section(
    name="difference throughput",
    title=f"Differences: 128 antithetic displacements, {_INPUTS} digits, relu 64-256-256-1, float32",
    caption="Median of seven rounds side by side, generation of the noise included. One evaluation: one input at one "
    "displaced parameter vector.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("evaluations", "evaluations_per_s", "per second"),
        Column("speed-up", "speed_up", "times"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("error", "error", ".1e"),
    ),
    rows=_differences,
)


def _kernels(setting: Setting) -> Iterator[Row | str]:
    samples = 256
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)

    def nonlocal_kernel(directions: str, seed: int) -> nntk.NonlocalNTK:
        return nntk.NonlocalNTK(model, gamma=_GAMMA, samples=samples, directions=directions, seed=seed)

    def local_kernel(method: str, max_memory: int | None = None) -> Callable[[Tensor, int], Tensor]:
        return lambda x, seed: nntk.local_ntk(model, x, method=method, max_memory=max_memory)

    cases: dict[str, Timed] = {
        _BASELINE: lambda x, seed: baselines.stacked_kernel(model, x, _GAMMA, samples, seed),
        "nntk gaussian": lambda x, seed: nonlocal_kernel("gaussian", seed)(x),
        "nntk rademacher": lambda x, seed: nonlocal_kernel("rademacher", seed)(x),
        "local NTK, structured": local_kernel("structured"),
        # Each method has the memory with which it is fastest: whole Jacobians, few columns at a time.
        "local NTK, jacobian": local_kernel("jacobian", 2**30),
        "local NTK, vector-products": local_kernel("vector-products", 2**24),
    }
    yield "checking against float64"
    x = _batches(setting)[0]
    ntk = nntk.local_ntk(copy.deepcopy(model).double(), x.double(), method="structured")
    predicted = nntk.monte_carlo_error(ntk, samples, _parameters(model)) / float(ntk.norm())
    failures = {}
    for name, case in cases.items():
        if name in _NONLOCAL:
            kernel = nonlocal_kernel(_NONLOCAL[name], setting.seed)
            expected = reference.float64_kernel(kernel, x)
        else:
            expected = ntk
        # torch.func draws other displacements: its tolerance is the Monte-Carlo error, that of the others rounding.
        tolerance = 4 * predicted if name == _BASELINE else 1e-4
        error = reference.relative_error(case(x, setting.seed), expected)
        if not error <= tolerance:
            failures[name] = f"error {error:.1e} > {tolerance:.0e}"
    errors = {name: reference.relative_error(case(x, setting.seed), ntk) for name, case in cases.items()}

    yield "timing kernels, seven rounds"
    timings = _time(setting, cases, rounds=7)
    for name, timing in timings.items():
        if name in failures:
            yield {"case": name, "error": errors[name], "failure": failures[name]}
            continue
        # On a GPU the nonlocal kernel chooses its precision; the fastest one has the highest roof.
        precision = "bf16" if name in _NONLOCAL and setting.device.type == "cuda" else "fp32"
        row = _timed_row(name, cases[name], timing, timings[_BASELINE], precision, setting)
        yield {**row, "error": errors[name]}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


KERNELS = Section(
    name="kernel throughput",
    title=f"Kernels: {_INPUTS} digits, relu 64-256-256-1, gamma 0.01, 256 antithetic displacements, float32",
    caption="Median of seven rounds side by side, noise included. The error is that against the NTK: for the "
    "nonlocal kernels their Monte-Carlo error; against float64 at the same displacements the tolerance is 1e-4.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("speed-up", "speed_up", "times"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("error", "error", ".1e"),
    ),
    rows=_kernels,
)


@contextmanager
def _busy_process() -> Iterator[None]:
    """Keep one core busy, as another program on the machine does."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


_NOISE = (256, 256)
"""Shape of the weight whose noise is generated, a few displacements at a time, since no more is needed at once."""


_RANDN = "torch.randn"
_FAMILIES = {"nntk normals": "gaussian", "nntk signs": "rademacher"}


def _noise(setting: Setting) -> Iterator[Row | str]:
    samples, group, shape = 128, 8, _NOISE
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)
    x = _batches(setting)[0]
    groups = torch.arange(samples, device=setting.device).split(group)

    def stream(directions: str) -> Callable[[int], object]:
        return lambda number: [unit_displacements(ids, 0, shape, setting.seed + number, directions) for ids in groups]

    def by_torch(number: int) -> object:
        generator = torch.Generator(setting.device).manual_seed(setting.seed + number)
        return [torch.randn(group, *shape, device=setting.device, generator=generator) for _ in groups]

    def differences(number: int) -> Tensor:
        kernel = nntk.NonlocalNTK(model, gamma=_GAMMA, samples=samples, propagation="difference", seed=number)
        return kernel.differences(x)

    noise = {_RANDN: by_torch, "nntk normals": stream("gaussian"), "nntk signs": stream("rademacher")}
    cases = {
        **noise,
        f"differences by {_BASELINE}": lambda n: baselines.stacked_differences(model, x, _GAMMA, samples, n),
        "differences by nntk, gaussian": differences,
    }
    yield "checking against the definition"
    failures = {name: _noise_failure(directions) for name, directions in _FAMILIES.items()}
    yield "timing noise, alone and beside a busy process"
    quiet = side_by_side(cases, 7, setting.device)
    with _busy_process():
        busy = side_by_side(cases, 3, setting.device)
    for name in cases:
        if failures.get(name):
            yield {"case": name, "failure": failures[name]}
            continue
        row: Row = {"case": name, **quiet[name].row(), "busy_s": busy[name].median}
        row["slowdown"] = busy[name].median / quiet[name].median
        if name in noise:
            row["number_s"] = quiet[name].median / (samples * math.prod(shape))
            row["speed_up"] = quiet[name].ratio_to(quiet[_RANDN])
        yield row


def _noise_failure(directions: str) -> str:
    """Compare a displacement with plain torch, the definition; return what is wrong, or nothing."""
    ids, key = torch.arange(4), (0, 0)
    noise = unit_displacements(ids, 0, _NOISE, 0, directions)
    expected = reference_displacements(ids, 0, list(_NOISE), *key, directions, torch.float32)
    # One rounding of a normal to bfloat16.
    error = float((noise - expected).abs().max() / expected.abs().max())
    return "" if error <= 2.0**-8 else f"error {error:.1e} > {2.0**-8:.0e}"


NOISE = Section(
    name="noise",
    title="Noise of 128 displacements of a 256 x 256 weight, eight at a time; and what a busy process costs",
    caption="Median of seven rounds side by side; beside a process that keeps one core busy, of three. The differences "
    "are those of the table of differences.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("a number", "number_s", "nanoseconds"),
        Column("against torch.randn", "speed_up", "times"),
        Column("beside a busy process", "busy_s", "seconds"),
        Column("slower by", "slowdown", "times"),
    ),
    rows=_noise,
)
