"""Models other than MLPs: differences by propagation rules, beside displaced copies and plain inference."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import baselines, reference, roofline
from nntk.bench.measure.timing import every_round, side_by_side
from nntk.bench.measure.work import work_of
from nntk.bench.networks import ResNet, Transformer
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_BASELINE, _RULES = "torch.func.vmap, float32", "nntk, propagated by rules"
_AUTO = "nntk, as auto chooses"
_GAMMA, _SAMPLES, _INPUTS, _ROUNDS = 1e-2, 16, 32, 5
_TOLERANCE = 1e-4

_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet, relu": lambda: ResNet(nn.ReLU),
    "ResNet, sign": lambda: ResNet(nntk.activations.Sign),
    "transformer, gelu": lambda: Transformer(nn.GELU),
    "transformer, sign": lambda: Transformer(nntk.activations.Sign),
}


def network(name: str, setting: Setting) -> tuple[nn.Module, Tensor]:
    """Return a seeded network of less than a million parameters, and its inputs."""
    generator = torch.Generator().manual_seed(setting.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = _NETWORKS[name]().to(setting.device).eval()
    if name.startswith("ResNet"):
        return model, torch.randn(_INPUTS, 3, 16, 16, generator=generator).to(setting.device)
    return model, torch.randint(0, 1000, (_INPUTS, 24), generator=generator).to(setting.device)


def _kernel(model: nn.Module, seed: int, propagation: str, samples: int = _SAMPLES) -> nntk.NonlocalNTK:
    return nntk.NonlocalNTK(model, gamma=_GAMMA, samples=samples, propagation=propagation, seed=seed)


def _rows(setting: Setting) -> Iterator[Row | str]:
    for name in _NETWORKS:
        model, x = network(name, setting)

        kernel = partial(_kernel, model, setting.seed)
        yield f"{name}: checking against float64"
        checked = kernel("difference", 4)
        error = reference.relative_error(checked.differences(x[:8]), reference.float64_differences(checked, x[:8]))
        yield f"{name}: timing, {_ROUNDS} rounds"
        calls: dict[str, Callable[[], object]] = {
            _BASELINE: partial(baselines.stacked_differences, model, x, _GAMMA, _SAMPLES, setting.seed),
            "unperturbed forwards": partial(baselines.plain_forwards, model, x, 2 * _SAMPLES),
            "nntk, displaced copies in float64": partial(kernel("direct").differences, x),
            _RULES: partial(kernel("difference").differences, x),
            _AUTO: partial(kernel("auto").differences, x),
        }
        timings = side_by_side({case: every_round(call) for case, call in calls.items()}, _ROUNDS, setting.device)
        for case, call in calls.items():
            row: Row = {"case": f"{name}: {case}", "network": name, "num_params": checked.num_params}
            precision = "fp64" if "float64" in case else "fp32"
            if case == _AUTO:
                precision = kernel("auto").plan(x).precision
            row |= roofline.beside(row["case"], work_of(call), precision, timings[case], setting.device)
            if "failure" not in row:
                row["speed_up"] = timings[case].ratio_to(timings[_BASELINE])
            if case == _RULES:
                row["error"] = error
                if not error <= _TOLERANCE:
                    row = {"case": row["case"], "error": error, "failure": f"error {error:.1e} > {_TOLERANCE:.0e}"}
            yield row


MODELS = Section(
    name="models",
    title=f"Models other than MLPs: differences at {_SAMPLES} antithetic displacements, {_INPUTS} inputs",
    caption=f"Median of {_ROUNDS} rounds side by side, noise included; gamma {_GAMMA}, images 3 x 16 x 16, 24 tokens. "
    "The error is that of float32 differences against float64 evaluation at the same displacements.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("speed-up", "speed_up", "times"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("error", "error", ".1e"),
    ),
    rows=_rows,
)
