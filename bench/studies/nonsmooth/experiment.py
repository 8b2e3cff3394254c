"""Networks that jump: sizes of the study, and the rows of one seed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data
from nntk.bench.networks import BinaryCnn, Mixture, SpikingNetwork
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting
from nntk.bench.studies.analysis.ridge import Fit, fit, root

AUTOGRAD, SURROGATE, NONLOCAL, RBF = "NTK by autograd", "NTK by surrogate gradients", "NNTK", "RBF"
SPIKING, BINARY, MIXTURE = "spiking network", "binary CNN", "mixture of experts"
NETWORKS: dict[str, type[nn.Module]] = {SPIKING: SpikingNetwork, BINARY: BinaryCnn, MIXTURE: Mixture}

_NTK_MEMORY = 4 * 2**30
"""Bytes that hold the Jacobians of all inputs, so that none is computed twice."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study; of the digits, the first number is for training and the second is held out."""

    seeds: int = 5
    digits: tuple[int, int] = (300, 400)
    samples: tuple[int, ...] = (32, 128, 512)
    gammas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    gamma_samples: int = 128
    spike_widths: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    sign_widths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    temperatures: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    length_scales: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


@dataclass(frozen=True)
class _Task:
    """Digits in a shuffled order: pixels [N, 64], labels [N] and one-hot targets of the training images."""

    x: Tensor
    labels: np.ndarray
    targets: np.ndarray

    @classmethod
    def load(cls, setting: Setting) -> "_Task":
        training, held_out = setting.size.digits
        digits = data.load(setting.seed, torch.device("cpu"))
        labels = digits.labels[: training + held_out].numpy()
        x = digits.images[: training + held_out].double().to(setting.device)
        return cls(x, labels, np.eye(10)[labels[:training]])

    @property
    def training(self) -> int:
        return len(self.targets)

    def fit(self, kernel: Tensor) -> Fit:
        """Fit a ridge regression by a kernel of the training images, or of all of them."""
        features = root(kernel.cpu() / float(kernel.diagonal()[: self.training].mean()))
        return fit(features, self.targets, self.training, shared=True)

    def loo(self, kernel: Tensor) -> float:
        """Return the mean squared leave-one-out error by the kernel of the training images."""
        return float(self.fit(kernel).loo.mean())

    def row(self, compute: Callable[[Tensor], Tensor], inputs: Tensor, **settings: str | float) -> Row:
        """Return the row of a kernel of all inputs: its errors, and the time to compute it."""
        start = time.perf_counter()
        kernel = compute(inputs).cpu()
        seconds = time.perf_counter() - start
        fitted = self.fit(kernel)
        right = fitted.predictions.argmax(1) == self.labels[self.training :]
        figures = {"loo": float(fitted.loo.mean()), "alpha": float(fitted.alpha[0]), "accuracy": float(right.mean())}
        return {"table": "kernels", **settings, **figures, "kernel_s": seconds}


def replicate(setting: Setting) -> Iterator[Row | str]:
    """Compute the rows of one seed; a string says which part comes next."""
    task = _Task.load(setting)
    yield _reference_row(task, setting.size)
    for name in NETWORKS:
        yield from _network_rows(task, name, setting)


def _reference_row(task: _Task, size: Size) -> Row:
    """Return the row of the RBF kernel, which needs no network."""
    from scipy.spatial.distance import pdist
    from sklearn.metrics.pairwise import rbf_kernel

    def rbf(x: Tensor, scale: float) -> Tensor:
        return torch.from_numpy(rbf_kernel(x.cpu().numpy(), gamma=0.5 / scale**2))

    known = task.x[: task.training]
    scales = (float(np.median(pdist(known.cpu().numpy()))) * np.array(size.length_scales)).tolist()
    best = min(scales, key=lambda scale: task.loo(rbf(known, scale)))
    return task.row(partial(rbf, scale=best), task.x, method=RBF, choice=best)


def _network_rows(task: _Task, name: str, setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    inputs = task.x.unflatten(1, (1, 8, 8)) if name == BINARY else task.x
    model = network(name, setting)
    scale = float(nn.utils.parameters_to_vector(model.parameters()).detach().square().mean().sqrt())

    yield f"{name}, {AUTOGRAD}"
    autograd = partial(nntk.local_ntk, model, max_memory=_NTK_MEMORY)
    yield task.row(autograd, inputs, network=name, method=AUTOGRAD, seen=_seen(model, inputs))

    def surrogate(width: float) -> Callable[[Tensor], Tensor]:
        # Vector products need a forward mode, which surrogate gradients do not have.
        model = network(name, setting, width)
        return partial(nntk.local_ntk, model, method="jacobian", max_memory=_NTK_MEMORY)

    yield f"{name}, {SURROGATE}"
    widths = {SPIKING: size.spike_widths, BINARY: size.sign_widths, MIXTURE: size.temperatures}[name]
    rows, best = _choose(task, surrogate, widths, inputs, network=name, method=SURROGATE)
    yield from rows
    yield task.row(surrogate(best), inputs, network=name, method=SURROGATE, choice=best)

    def nonlocal_ntk(gamma: float, samples: int = size.gamma_samples) -> Callable[[Tensor], Tensor]:
        # All of these networks jump: copies lose no digits that count, and take less time than rules.
        return nntk.NonlocalNTK(model, gamma=gamma, samples=samples, propagation="direct", seed=setting.seed)

    yield f"{name}, {NONLOCAL}"
    rows, best = _choose(task, nonlocal_ntk, size.gammas, inputs, network=name, method=NONLOCAL)
    yield from rows
    place: dict[str, str | float] = {
        "network": name,
        "method": NONLOCAL,
        "choice": best,
        "displacement": best / 2**0.5 / scale,
    }
    for samples in size.samples:
        yield f"{name}, M = {samples}"
        yield task.row(nonlocal_ntk(best, samples), inputs, **place, samples=samples)


def network(name: str, setting: Setting, surrogate: float | None = None) -> nn.Module:
    """Return an untrained network with PyTorch's initialisation, in float64; see nntk.bench.networks for surrogates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        return NETWORKS[name](surrogate=surrogate).double().to(setting.device).eval()


def _seen(model: nn.Module, inputs: Tensor) -> float:
    """Return the fraction of the parameters that are in tensors with a gradient other than zero."""
    outputs = model(inputs)
    weights = torch.linspace(1, 2, outputs.numel(), dtype=outputs.dtype, device=outputs.device).view_as(outputs)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((weights * outputs).sum(), parameters, allow_unused=True)
    seen = sum(g.numel() for g in gradients if g is not None and bool((g != 0).any()))
    return seen / sum(parameter.numel() for parameter in parameters)


def _choose(
    task: _Task,
    kernel: Callable[[float], Callable[[Tensor], Tensor]],
    candidates: Sequence[float],
    inputs: Tensor,
    **settings: str,
) -> tuple[list[Row], float]:
    """Return the rows of a kernel's candidates, and the one of least leave-one-out error on the training images."""
    errors = {value: task.loo(kernel(value)(inputs[: task.training])) for value in candidates}
    rows: list[Row] = [{"table": "choices", **settings, "choice": value, "loo": e} for value, e in errors.items()]
    return rows, min(errors, key=errors.__getitem__)
