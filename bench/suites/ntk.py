"""The nonlocal kernel against every local NTK over inputs, parameters and outputs: time, memory, accuracy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data, memory, neural_tangents, reference, roofline
from nntk.bench.measure.timing import every_round, repeat
from nntk.bench.measure.work import work_of
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_SAMPLES = 256
_GAMMA = 1e-3
_MAX_BYTES = 2**31
"""Largest size of a whole Jacobian; beyond it the method is left out."""

METHODS = (
    "nonlocal gaussian",
    "nonlocal rademacher",
    "structured",
    "jacobian",
    "vector-products",
    "neural-tangents",
)
"""Methods of the suite, the last one only where that library is installed."""


def grid(device: torch.device) -> list[tuple[int, int, int]]:
    """Return shapes (inputs N, width of the hidden layers, outputs C) that enlarge one axis at a time.

    Args:
        device: Device; on a GPU the shapes are larger.

    Returns:
        The shapes.
    """
    n, width = (1024, 1024) if device.type == "cuda" else (128, 64)
    return [(n, width, 1), (4 * n, width, 1), (n, 4 * width, 1), (n, width, 10)]


def prepare(method: str, shape: tuple[int, int, int], device: str, seed: int) -> Callable[[], Tensor]:
    """Prepare a call that returns the kernel of a tanh network by one method."""
    model, x = _problem(shape, device, seed)
    if method == "neural-tangents":
        return neural_tangents.ntk(model, x)
    family = method.removeprefix("nonlocal ")
    if family == method:
        return partial(nntk.local_ntk, model, x, method=method)
    # The first call of a process loads compiled kernels, which do not belong to the measured call.
    nntk.NonlocalNTK(model, gamma=_GAMMA, samples=2, directions=family, seed=seed)(x[:2])
    kernel = nntk.NonlocalNTK(model, gamma=_GAMMA, samples=_SAMPLES, directions=family, seed=seed)
    return partial(kernel, x)


def _problem(shape: tuple[int, int, int], device: str, seed: int) -> tuple[nn.Sequential, Tensor]:
    n, width, outputs = shape
    model = data.he_network((64, width, width, outputs), nn.Tanh, seed, torch.device(device))
    return model, torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)).to(device)


@dataclass(frozen=True)
class _Expected:
    """Expected kernels of one shape: the structured NTK, for every pair of outputs and traced."""

    full: Tensor
    traced: Tensor
    parameters: int

    @classmethod
    def compute(cls, shape: tuple[int, int, int], setting: Setting) -> "_Expected":
        model, x = _problem(shape, str(setting.device), setting.seed)
        full = nntk.local_ntk(model, x, outputs="full").double()
        return cls(full, torch.einsum("ijcc->ij", full), sum(parameter.numel() for parameter in model.parameters()))

    def monte_carlo(self, samples: int) -> float:
        """Return the expected relative error of the nonlocal kernel with this number of samples."""
        error: float = nntk.monte_carlo_error(self.full, samples, self.parameters, "trace")
        return error / float(self.traced.norm())


def _rows(setting: Setting) -> Iterator[Row | str]:
    for shape in grid(setting.device):
        n, _, outputs = shape
        expected, medians = _Expected.compute(shape, setting), {}
        d = expected.parameters
        settings = {"shape": f"{n}, {d}, {outputs}", "inputs": n, "parameters": d, "outputs": outputs}
        for method in METHODS:
            if _runs(method, shape, d):
                case = f"{method} N={n} d={d} C={outputs}"
                yield case
                row = {"case": case, "method": method, **settings, **_measured(case, method, shape, expected, setting)}
                medians[method] = row.get("median_s")
                yield {**row, **_crossing(method, medians, expected)}


def _runs(method: str, shape: tuple[int, int, int], parameters: int) -> bool:
    """Return True if a method is installed and has enough memory."""
    n, _, outputs = shape
    if method == "neural-tangents":
        return neural_tangents.installed()
    return method != "jacobian" or 4 * n * outputs * parameters <= _MAX_BYTES


def _measured(case: str, method: str, shape: tuple[int, int, int], expected: _Expected, setting: Setting) -> Row:
    """Measure one method: its error, and, if that is within the tolerance, its time and memory."""
    call = prepare(method, shape, str(setting.device), setting.seed)
    error, local = reference.relative_error(call(), expected.traced), not method.startswith("nonlocal")
    # The tolerance of local kernels is rounding, that of nonlocal ones four times their Monte-Carlo error.
    allowed = 1e-4 if local else 4 * expected.monte_carlo(_SAMPLES)
    if not error <= allowed:
        return {"error": error, "failure": f"error {error:.1e} > {allowed:.0e}"}
    timing = repeat(every_round(call), setting.device, max_runs=11)
    row: Row = {"error": error}
    if method == "neural-tangents":
        row |= timing.row()  # The work of XLA is unknown.
    else:
        precision = "fp32" if local or setting.device.type == "cpu" else "bf16"
        row |= roofline.beside(case, work_of(call), precision, timing, setting.device)
    peak = memory.peak(prepare, method, shape, str(setting.device), setting.seed, device=setting.device)
    return {**row, "peak_bytes": peak}


def _crossing(method: str, medians: Mapping[str, float | None], expected: _Expected) -> Row:
    """Return the number of samples at which the nonlocal kernel needs the time of a local one, and its error there."""
    nonlocal_time = min((time for name, time in medians.items() if time and name.startswith("nonlocal")), default=None)
    time = medians[method]
    if method.startswith("nonlocal") or not nonlocal_time or not time:
        return {}
    samples = max(1, round(_SAMPLES * time / nonlocal_time))
    return {"equal_samples": samples, "equal_error": expected.monte_carlo(samples)}


NTK = Section(
    name="ntk",
    title=f"Kernels of a tanh network 64-w-w-C: local, and nonlocal of {_SAMPLES} displacements at gamma {_GAMMA:g}",
    caption="Error against the structured NTK: rounding, or that of Monte Carlo for the nonlocal kernel. Memory beyond "
    "the result, of a fresh process. M: how many displacements of the faster family take as long as a local NTK, "
    "and the error of their kernel.",
    columns=(
        Column("method", "method"),
        Column("N, d, C", "shape"),
        Column("time", "median_s", "seconds"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("memory", "peak_bytes", "bytes"),
        Column("error", "error", ".1e"),
        Column("M", "equal_samples"),
        Column("its error", "equal_error", ".1e"),
    ),
    rows=_rows,
)
