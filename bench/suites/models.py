"""Models other than MLPs: differences as ``auto`` chooses and by rules, beside displaced copies and plain inference."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import baselines, memory, reference, roofline
from nntk.bench.measure.timing import every_round, side_by_side
from nntk.bench.measure.work import work_of
from nntk.bench.networks import BinaryCnn, LongShortTermMemory, Mixture, ResNet, SpikingNetwork, Transformer
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_GAMMA, _SMALL_GAMMA, _ROUNDS = 0.1, 1e-4, 5
_BASELINE, _FORWARDS, _AUTO = "torch.func.vmap, float32", "unperturbed forwards", "nntk, as auto chooses"
_RULES, _COPIES = f"nntk, rules, gamma {_SMALL_GAMMA:g}", f"nntk, float64 copies, gamma {_SMALL_GAMMA:g}"
_CHECKED, _TOLERANCE = 8, 1e-5
"""Inputs at which rules are held against float64, and the largest error."""
_MORE_SAMPLES = 4
"""Factor of displacements by which the memory is measured again."""

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet, relu": (lambda: ResNet(nn.ReLU), (32, 3, 16, 16), 16),
    "ResNet, sign": (lambda: ResNet(nntk.activations.Sign), (32, 3, 16, 16), 16),
    "transformer, gelu": (lambda: Transformer(nn.GELU), (32, 24), 16),
    "transformer, sign": (lambda: Transformer(nntk.activations.Sign), (32, 24), 16),
    "LSTM": (LongShortTermMemory, (128, 8, 8), 64),
    "spiking network": (SpikingNetwork, (128, 64), 64),
    "binary CNN": (BinaryCnn, (128, 1, 8, 8), 64),
    "mixture of experts": (Mixture, (128, 64), 64),
}
"""Networks, the shapes of their inputs, and numbers of displacements."""


def network(name: str, setting: Setting) -> tuple[nn.Module, Tensor]:
    """Return a seeded network of less than a million parameters, and its inputs."""
    generator = torch.Generator().manual_seed(setting.seed)
    make, shape, _ = _NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = make().to(setting.device).eval()
    if name.startswith("transformer"):
        return model, torch.randint(0, 1000, shape, generator=generator).to(setting.device)
    return model, torch.randn(shape, generator=generator).to(setting.device)


def prepare(name: str, device: str, seed: int, samples: int) -> Callable[[], Tensor]:
    """Prepare a call that returns the differences of a network, as ``auto`` chooses."""
    model, x = network(name, Setting(torch.device(device), seed))
    kernel = nntk.NonlocalNTK(model, gamma=_GAMMA, samples=samples, seed=seed)
    # The first call measures errors and loads objects that do not belong to the measured call.
    nntk.NonlocalNTK(model, gamma=_GAMMA, samples=_MORE_SAMPLES, seed=seed).differences(x[:2])
    kernel.plan(x)
    return partial(kernel.differences, x)


def _rows(setting: Setting) -> Iterator[Row | str]:
    for name, (_, _, samples) in _NETWORKS.items():
        model, x = network(name, setting)

        def kernel(
            gamma: float, propagation: str, samples: int = samples, model: nn.Module = model
        ) -> nntk.NonlocalNTK:
            return nntk.NonlocalNTK(model, gamma=gamma, samples=samples, propagation=propagation, seed=setting.seed)

        yield f"{name}: checking against float64"
        checked = kernel(_SMALL_GAMMA, "difference", 4)
        inputs = x[:_CHECKED]
        error = reference.relative_error(checked.differences(inputs), reference.float64_differences(checked, inputs))
        auto = kernel(_GAMMA, "auto")
        plan = auto.plan(x)
        yield f"{name}: timing, {_ROUNDS} rounds"
        calls: dict[str, Callable[[], object]] = {
            _BASELINE: partial(baselines.stacked_differences, model, x, _GAMMA, samples, setting.seed),
            _FORWARDS: partial(baselines.plain_forwards, model, x, 2 * samples),
            _AUTO: partial(auto.differences, x),
            _RULES: partial(kernel(_SMALL_GAMMA, "difference").differences, x),
            _COPIES: partial(kernel(_SMALL_GAMMA, "direct").differences, x),
        }
        timings = side_by_side({case: every_round(call) for case, call in calls.items()}, _ROUNDS, setting.device)
        for case, call in calls.items():
            row: Row = {"case": f"{name}: {case}", "network": name, "num_params": checked.num_params}
            precision = plan.precision if case == _AUTO else "fp64" if case == _COPIES else "fp32"
            row |= roofline.beside(row["case"], work_of(call), precision, timings[case], setting.device)
            if "failure" not in row:
                row["speed_up"] = timings[case].ratio_to(timings[_BASELINE])
            if case == _AUTO:
                row["route"] = f"{plan.route}, {plan.precision}"
                row["peak_bytes"], row["more_bytes"] = (
                    memory.peak(prepare, name, str(setting.device), setting.seed, count, device=setting.device)
                    for count in (samples, _MORE_SAMPLES * samples)
                )
            if case == _RULES:
                row["error"] = error
                if not error <= _TOLERANCE:
                    row = {"case": row["case"], "error": error, "failure": f"error {error:.1e} > {_TOLERANCE:.0e}"}
            yield row


MODELS = Section(
    name="models",
    title="Models other than MLPs: differences at antithetic displacements",
    caption=f"Median of {_ROUNDS} rounds side by side, noise included; gamma {_GAMMA:g} where no other is named. The "
    "first four networks: 16 displacements of 32 inputs; the others: 64 of 128. The error is that of rules against "
    "float64 evaluation at the same displacements. Memory is that of a fresh process beyond the result; the second "
    f"column has {_MORE_SAMPLES} times the displacements.",
    columns=(
        Column("case", "case"),
        Column("time", "median_s", "seconds"),
        Column("speed-up", "speed_up", "times"),
        Column("roof", "roof"),
        Column("of it", "roof_share", "percent"),
        Column("route", "route"),
        Column("error", "error", ".1e"),
        Column("memory", "peak_bytes", "bytes"),
        Column(f"{_MORE_SAMPLES} M", "more_bytes", "bytes"),
    ),
    rows=_rows,
)
