"""Models other than MLPs: differences by propagation rules, beside displaced copies and plain inference."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import baselines, reference, roofline
from nntk.bench.measure.timing import every_round, side_by_side
from nntk.bench.measure.work import work_of
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_BASELINE, _RULES = "torch.func.vmap, float32", "nntk, propagated by rules"
_AUTO = "nntk, as auto chooses"
_GAMMA, _SAMPLES, _INPUTS, _ROUNDS = 1e-2, 16, 32, 5
_TOLERANCE = 1e-4


class ResNet(nn.Module):
    """ResNet of three residual blocks with 32, 64 and 128 channels, batch norms in evaluation mode, a pooled head."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first, self.second, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width, out in ((32, 32), (32, 64), (64, 128)):
            stride = out // width
            self.first.append(nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)))
            self.second.append(nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)))
            self.skips.append(nn.Conv2d(width, out, 1, stride) if stride > 1 else nn.Identity())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten outputs of images [N, 3, ...]."""
        h: Tensor = self.activation(self.stem(x))
        for first, second, skip in zip(self.first, self.second, self.skips, strict=True):
            h = self.activation(second(self.activation(first(h))) + skip(h))
        outputs: Tensor = self.head(h.mean((2, 3)))
        return outputs


class Transformer(nn.Module):
    """Transformer block of width 192 with six heads on 24 embedded tokens, and a head on the last token."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation()
        self.embedding, self.places = nn.Embedding(1000, 192), nn.Parameter(torch.randn(24, 192) / 10)
        self.queries, self.mixed = nn.Linear(192, 3 * 192), nn.Linear(192, 192)
        self.norms = nn.ModuleList(nn.LayerNorm(192) for _ in range(3))
        self.register_buffer("later", torch.ones(24, 24, dtype=torch.bool).triu(1))
        self.later: Tensor
        self.wide, self.narrow, self.head = nn.Linear(192, 768), nn.Linear(768, 192), nn.Linear(192, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return twenty outputs of tokens [N, 24]."""
        h = self.embedding(tokens) + self.places
        parts = self.queries(self.norms[0](h)).unflatten(-1, (3, 6, 32)).permute(2, 0, 3, 1, 4)
        # Attention is written out, since vmap has no rule for the fused op, which would slow the baseline.
        scores = (parts[0] @ parts[1].mT / 32**0.5).masked_fill(self.later, -torch.inf)
        attended = torch.softmax(scores, -1) @ parts[2]
        h = h + self.mixed(attended.transpose(1, 2).flatten(2))
        h = h + self.narrow(self.activation(self.wide(self.norms[1](h))))
        outputs: Tensor = self.head(self.norms[2](h[:, -1]))
        return outputs


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
