"""Which displacements there are, and what they weigh before any input is seen."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nntk.displacements.attention import Attention
from nntk.kernels.attention.reference import finite
from nntk.kernels.fixed_weights import (
    FixedKernel,
    effective_samples,
    log_weights,
    normalise,
    radial_weights,
    radii,
    squared_norms,
    summarise,
    warn_if_few,
    weigh,
)
from nntk.models.general import General
from nntk.models.mlp import Mlp

_REMEDIES = {
    "kernel": "Draw from the kernel itself (proposal=None), or from a proposal nearer to it.",
    "attention": "Raise the attention's temperature, or take more samples.",
}


@dataclass(frozen=True)
class Displacements:
    r"""The displacements :math:`\delta_m = s_m E_m` of one model: scales and weights, for all m.

    Attributes:
        model: The model.
        weights: A fixed kernel, or attention with one.
        gamma: Length scale of kernels without one of their own.
        rows: Their numbers in the stream, [M].
        seed: Seed of the stream.
        directions: Family of the unit displacements E.
        antithetic: Whether each comes with its mirror image.
        partial: Whether they are one group of several: what has no weight or little in a group may still have in all.
    """

    model: Mlp | General
    weights: FixedKernel | Attention
    gamma: float
    rows: Tensor
    seed: int
    directions: str
    antithetic: bool
    partial: bool = False

    @property
    def places(self) -> Tensor:
        """Where each stands, [M]."""
        return torch.arange(len(self.rows), device=self.rows.device)

    @property
    def law(self) -> FixedKernel:
        """The fixed kernel of the lengths."""
        return self.weights.kernel if isinstance(self.weights, Attention) else self.weights

    @cached_property
    def unit_squared_norms(self) -> Tensor:
        """Squared norms :math:`|E_m|^2`, [M], float64."""
        return squared_norms(self.model.displaced, self.rows, self.seed, self.directions)

    @cached_property
    def scales(self) -> Tensor:
        r"""Scales s, [M], in the model's dtype: :math:`R_m / |E_m|`, so that lengths follow the law's.

        A gaussian unit displacement of gaussian length is a normal vector: there the scale is the same for all, its
        standard deviation, and no norm is needed.
        """
        source, dtype = self.law.drawn_from, self.model.dtype
        if source.name == "gaussian" and self.directions == "gaussian":
            scale = source.scale(self.model.num_params, self.gamma) / math.sqrt(2)
            return torch.full(self.rows.shape, scale, dtype=dtype, device=self.model.device)
        lengths = radii(self.rows, self.seed, self.law, self.model.num_params, self.gamma)
        return (lengths / self.unit_squared_norms.sqrt()).to(dtype)

    @property
    def squared_lengths(self) -> Tensor:
        r"""Squared lengths :math:`|\delta_m|^2`, [M], float64."""
        return self.unit_squared_norms * self.scales.double().square()

    @property
    def by_input(self) -> bool:
        """Whether weights depend on the input."""
        return isinstance(self.weights, Attention) and self.weights.by_input

    @cached_property
    def log_priors(self) -> Tensor:
        """Log weights that attention starts from, [M], float64, on a scale that all rows of the stream share."""
        if self.law.proposal is None or isinstance(self.weights, Attention) and not self.weights.prior:
            return torch.zeros(len(self.rows), dtype=torch.float64, device=self.model.device)
        return log_weights(self.law, self.squared_lengths, self.model.num_params, self.gamma)

    @property
    def largest_prior(self) -> Tensor:
        """The largest of them, or zero where none counts."""
        return finite(self.log_priors.amax())

    @cached_property
    def priors(self) -> Tensor:
        """Log weights that attention starts from, [M], float64, the largest of them zero."""
        if not self.partial:
            # Formed for its checks: that something remains within the kernel's support.
            normalise(self.log_priors, self.law)
        return self.log_priors - self.largest_prior

    @cached_property
    def log_row_weights(self) -> Tensor:
        """Log weights that do not depend on the input, [M], float64, on a scale that all rows of the stream share."""
        if not isinstance(self.weights, Attention):
            return self.log_priors
        return self.log_priors + self.weights.on_parameters(
            self.model.displaced, self.rows, self.scales, self.seed, self.directions, self.antithetic
        )

    @cached_property
    def row_weights(self) -> Tensor:
        """Weights that do not depend on the input, [M], float64, summing to one; warns where few count."""
        if isinstance(self.weights, FixedKernel) and self.law.proposal is None:
            return torch.full((len(self.rows),), 1 / len(self.rows), dtype=torch.float64, device=self.model.device)
        if self.partial:
            return weigh(self.log_row_weights, summarise(self.log_row_weights))
        if isinstance(self.weights, Attention):
            weights, effective = normalise(self.log_row_weights, self.law)
            warn_if_few(effective, len(self.rows), _REMEDIES["attention"])
            return weights
        weights, statistics = radial_weights(self.law, self.squared_lengths, self.model.num_params, self.gamma)
        warn_if_few(float(effective_samples(statistics)), len(self.rows), _REMEDIES["kernel"])
        return weights

    @property
    def row_statistics(self) -> Tensor:
        """Of the softmax that makes these weights, [3, 1]; they merge with those of other rows of the stream."""
        return summarise(self.log_row_weights)[:, None]

    def among_all(self, statistics: Tensor) -> Tensor:
        """Statistics [3, N] of a softmax that started from these priors, to merge with those of other rows."""
        return torch.cat((statistics[:1] + self.largest_prior, statistics[1:]))

    def warn_of(self, statistics: Tensor) -> None:
        """Warn where at some input few displacements count, from the softmax's statistics [3, N]."""
        if statistics.shape[1] and not self.partial:
            fewest = float(effective_samples(statistics).min())
            warn_if_few(fewest, len(self.rows), f"At one input or more. {_REMEDIES['attention']}")


def remedy(weights: FixedKernel | Attention) -> str:
    """What to change where few displacements count."""
    return _REMEDIES["attention" if isinstance(weights, Attention) else "kernel"]
