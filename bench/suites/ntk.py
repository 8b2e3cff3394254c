"""The nonlocal kernel against every local NTK over inputs, parameters and outputs: time, memory, accuracy."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench import data, memory, reference, roofline
from nntk.bench.results import Row
from nntk.bench.suites import Section, Setting
from nntk.bench.tables import Column
from nntk.bench.timing import every_round, repeat
from nntk.bench.work import work_of

_SAMPLES = 256
_GAMMA = 1e-3
_MOST_BYTES = 2**31
"""Bytes of a whole Jacobian beyond which its method is left out."""

METHODS = ("structured", "jacobian", "vector-products", "nonlocal gaussian", "nonlocal rademacher")


def grid(device: torch.device) -> list[tuple[int, int, int]]:
    """Inputs N, width of the hidden layers, outputs C: one axis at a time from a common corner.

    Args:
        device: On a GPU the shapes are larger.

    Returns:
        The shapes.
    """
    n, width = (1024, 1024) if device.type == "cuda" else (128, 64)
    return [(n, width, 1), (4 * n, width, 1), (n, 4 * width, 1), (n, width, 10)]


def prepare(method: str, shape: tuple[int, int, int], device: str, seed: int) -> Callable[[], Tensor]:
    """A call that gives the kernel of a tanh network by one method."""
    n, width, outputs = shape
    model = data.he_network((64, width, width, outputs), nn.Tanh, seed, torch.device(device))
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)).to(device)
    family = method.removeprefix("nonlocal ")
    if family == method:
        return partial(nntk.local_ntk, model, x, method=method)
    kernel = nntk.NonlocalNTK(model, gamma=_GAMMA, samples=_SAMPLES, directions=family, seed=seed)
    return partial(kernel, x)


def _rows(setting: Setting) -> Iterator[Row | str]:
    device = str(setting.device)
    for shape in grid(setting.device):
        n, width, outputs = shape
        parameters = 65 * width + width * (width + 1) + (width + 1) * outputs
        exact = prepare("structured", shape, device, setting.seed)()
        for method in METHODS:
            name = f"{method} N={n} d={parameters} C={outputs}"
            if method == "jacobian" and 4 * n * outputs * parameters > _MOST_BYTES:
                continue
            yield name
            call = prepare(method, shape, device, setting.seed)
            error = reference.relative_error(call(), exact)
            # The exact ones are held to rounding, the others to four times their Monte-Carlo error.
            predicted = nntk.monte_carlo_error(exact.double(), _SAMPLES, parameters) / float(exact.double().norm())
            allowed = 1e-4 if not method.startswith("nonlocal") else 4 * predicted if outputs == 1 else 1.0
            row: Row = {"case": name, "method": method, "inputs": n, "parameters": parameters, "outputs": outputs}
            row["error"] = error
            if not error <= allowed:
                yield {**row, "failure": f"error {error:.1e} > {allowed:.0e}"}
                continue
            timing = repeat(every_round(call), setting.device, most=11)
            local = setting.device.type == "cpu" or not method.startswith("nonlocal")
            row |= roofline.beside(name, work_of(call), "fp32" if local else "bf16", timing, setting.device)
            row["peak_bytes"] = memory.peak(prepare, method, shape, device, setting.seed, device=setting.device)
            yield row


NTK = Section(
    name="ntk",
    title=f"Kernels of a tanh network 64-w-w-C: local, and nonlocal of {_SAMPLES} displacements at gamma {_GAMMA:g}",
    caption="Error against the structured NTK: rounding, or that of Monte Carlo for the nonlocal kernel. Memory beyond "
    "the result, of a fresh process.",
    columns=(
        Column("method", "method"),
        Column("N", "inputs"),
        Column("d", "parameters"),
        Column("C", "outputs"),
        Column("time", "median_s", "seconds"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("memory", "peak_bytes", "bytes"),
        Column("error", "error", ".1e"),
    ),
    rows=_rows,
)
