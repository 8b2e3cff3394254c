"""Ridge classification of held-out digits by kernels of untrained relu and sign networks."""

import statistics
from collections.abc import Iterator

from torch import nn

import nntk
from nntk.bench.measure import data
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_WIDTHS = (64, 256, 256, 1)
_NETWORKS = (("sign", nntk.activations.Sign, 0.1), ("relu", nn.ReLU, 0.01))
SAMPLES = 2048


def classify(network: str, seed: int, setting: Setting, samples: int = SAMPLES) -> Row:
    """Measure the held-out accuracy of the NNTK and the autograd NTK of one untrained network, for one data shuffle."""
    activation, gamma = next((activation, gamma) for name, activation, gamma in _NETWORKS if name == network)
    digits = data.load(seed, setting.device)
    model = data.he_network(_WIDTHS, activation, seed, setting.device)
    kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=seed)
    return {
        "case": network,
        "seed": seed,
        "gamma": gamma,
        "samples": samples,
        "training": data.TRAINING,
        "held_out": len(digits.labels) - data.TRAINING,
        "ridge": data.RIDGE,
        "nonlocal_accuracy": data.held_out_accuracy(kernel(digits.images), digits.labels),
        "local_accuracy": data.held_out_accuracy(nntk.local_ntk(model, digits.images), digits.labels),
    }


def _rows(setting: Setting, seeds: int) -> Iterator[Row | str]:
    for network, _, _ in _NETWORKS:
        rows = []
        for seed in range(setting.seed, setting.seed + seeds):
            yield f"{network} network, seed {seed}"
            rows.append(classify(network, seed, setting, SAMPLES))
            yield rows[-1]
        if seeds > 1:
            yield {
                "case": f"{network}, mean",
                "gamma": rows[0]["gamma"],
                **{key: statistics.mean(row[key] for row in rows) for key in ("nonlocal_accuracy", "local_accuracy")},
            }


_COLUMNS = (
    Column("network", "case"),
    Column("seed", "seed"),
    Column("gamma", "gamma", "g"),
    Column("NNTK", "nonlocal_accuracy", "percent"),
    Column("autograd NTK", "local_accuracy", "percent"),
)
_CAPTION = (
    f"{data.TRAINING} for training, the others held out; one-hot targets, ridge {data.RIDGE} of the mean diagonal, "
    f"{SAMPLES} displacements. Autograd sees a sign network's last layer only."
)
_TITLE = "Held-out digits right, by ridge regression with an untrained 64-256-256-1 network's kernel"

ONE_SEED = Section("digits", _TITLE, _CAPTION, _COLUMNS, lambda setting: _rows(setting, 1))
THREE_SEEDS = Section("digits", _TITLE, _CAPTION, _COLUMNS, lambda setting: _rows(setting, 3))
