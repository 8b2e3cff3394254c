"""Ridge regression on more inputs than a kernel matrix in memory allows: time of an evaluation, and peak memory."""

import time
from collections.abc import Iterator

import torch
from torch import nn

import nntk
from nntk.bench.measure import data, memory
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

SIZES = (50_000, 200_000)
SAMPLES = 512
_WIDTHS = (64, 64, 64, 1)
_HELD_OUT = 10_000


def fit(number: int, setting: Setting, samples: int = SAMPLES) -> Row:
    """Fit targets of another network at ``number`` inputs, by the normal equations of the features."""
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(number + _HELD_OUT, _WIDTHS[0], generator=generator).to(setting.device)
    model = data.he_network(_WIDTHS, nn.ReLU, setting.seed, setting.device)
    with torch.no_grad():
        y = data.he_network(_WIDTHS, nn.Tanh, setting.seed + 1, setting.device)(x).flatten().double()
    inference = _seconds_of_inference(model, x[:number])
    with memory.watched(setting.device) as peak:
        start = time.perf_counter()
        operator = nntk.NonlocalNTK(model, samples=samples, seed=setting.seed).operator(x[:number])
        gram, projected = operator.gram_and_projection(y[:number])
        ridge = 1e-3 * gram.diagonal().mean()
        weights = torch.linalg.solve(
            gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), projected
        )
        duration = time.perf_counter() - start
    residual = y[number:] - operator.expand(weights, x[number:])
    evaluation = duration / (2 * samples * number)
    return {
        "case": f"N = {number:,}",
        "inputs": number,
        "samples": samples,
        "fit_s": duration,
        "evaluation_s": evaluation,
        "inference_s": inference,
        "in_inferences": evaluation / inference,
        "peak_bytes": peak(),
        "explained": float(1 - residual.square().mean() / y[number:].var()),
    }


@torch.no_grad()
def _seconds_of_inference(model: nn.Module, x: torch.Tensor) -> float:
    """Return the time of inference of one input, in batches of a thousand; the best of three passes."""
    passes = []
    for _ in range(3):
        start = time.perf_counter()
        for part in x.split(1000):
            model(part)
        passes.append((time.perf_counter() - start) / len(x))
    return min(passes)


def _rows(setting: Setting) -> Iterator[Row | str]:
    for number in SIZES:
        yield f"{number:,} inputs"
        yield fit(number, setting, SAMPLES)


RIDGE = Section(
    name="ridge",
    title=f"Ridge regression without a matrix: {SAMPLES} displacements, relu {'-'.join(map(str, _WIDTHS))}, float32",
    caption="Normal equations of the features, summed in float64 over chunks of inputs; the time from inputs to "
    "coefficients, of one displaced evaluation and of inference for one input; memory beyond inputs and targets; the "
    "explained variance of 10,000 held-out targets of a tanh network.",
    columns=(
        Column("inputs", "case"),
        Column("fit", "fit_s", "seconds"),
        Column("an evaluation", "evaluation_s", "seconds"),
        Column("an inference", "inference_s", "seconds"),
        Column("ratio", "in_inferences", ".2f"),
        Column("memory", "peak_bytes", "bytes"),
        Column("explained", "explained", "percent"),
    ),
    rows=_rows,
)
