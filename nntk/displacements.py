r"""Displacements :math:`\delta_m = s_m E_m` of one model: their scales, and their weights before any input is seen."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nntk.attention import Attention
from nntk.differences.request import DifferenceRequest
from nntk.differences.route import unit_differences
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
from nntk.models.data.inputs import Batch
from nntk.models.general import GeneralModel
from nntk.models.view import ModelView
from nntk.settings import KernelSettings

_REMEDIES = {
    "kernel": "Draw from the kernel itself (proposal=None), or from a proposal nearer to it.",
    "attention": "Raise the attention's temperature, or take more samples.",
}


@dataclass(frozen=True)
class Displacements:
    """Displacements of one model, all of a kernel's or one group of them.

    Attributes:
        settings: Settings of the kernel.
        model: View of the model.
        sample_range: Numbers m of the displacements in the random stream, as a range.
        is_group: The displacements are one group of several. Weights are then relative to the group, and no warning is
            given: displacements of little weight in one group may have more in all.
    """

    settings: KernelSettings
    model: ModelView
    sample_range: range
    is_group: bool = False

    @cached_property
    def sample_ids(self) -> Tensor:
        """Numbers m of the displacements in the random stream, [M]."""
        numbers = self.sample_range
        return torch.arange(numbers.start, numbers.stop, device=self.model.device)

    @property
    def indices(self) -> Tensor:
        """Positions of the displacements, 0 to M - 1."""
        return torch.arange(len(self.sample_ids), device=self.sample_ids.device)

    @property
    def distribution(self) -> FixedKernel:
        """Fixed kernel that gives the distribution of lengths."""
        weights = self.settings.weights
        return weights.kernel if isinstance(weights, Attention) else weights

    @property
    def pairs(self) -> str:
        """``"odd"``, the odd part of antithetic pairs, or ``"none"``, one-sided differences."""
        return "odd" if self.settings.antithetic else "none"

    @cached_property
    def unit_squared_norms(self) -> Tensor:
        """Squared norms :math:`|E_m|^2`, [M], float64."""
        return squared_norms(self.model.displaced, self.sample_ids, self.settings.seed, self.settings.directions)

    @cached_property
    def scales(self) -> Tensor:
        r"""Scales :math:`s_m = R_m / |E_m|`, [M], in the model's dtype, with lengths R_m from the distribution.

        A gaussian unit displacement of gaussian length is a normal vector. Its scale is the same for all m, the
        standard deviation of a coordinate, and no norm is needed.
        """
        settings, dtype, d = self.settings, self.model.dtype, self.model.num_params
        source = self.distribution.drawn_from
        if source.name == "gaussian" and settings.directions == "gaussian":
            scale = source.scale(d, settings.gamma) / math.sqrt(2)
            return torch.full(self.sample_ids.shape, scale, dtype=dtype, device=self.model.device)
        lengths = radii(self.sample_ids, settings.seed, self.distribution, d, settings.gamma)
        return (lengths / self.unit_squared_norms.sqrt()).to(dtype)

    @property
    def squared_lengths(self) -> Tensor:
        r"""Squared lengths :math:`|\delta_m|^2`, [M], float64, in squared parameter units."""
        return self.unit_squared_norms * self.scales.double().square()

    def unit_differences(self, x: Batch, indices: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
        """Return the unit differences of some displacements, and the squared norms of the unit displacements.

        Args:
            x: Inputs, as the model's ``inputs`` returns them.
            indices: Positions of the displacements, [m].
            pairs: ``"none"``, ``"odd"`` or ``"both"``.

        Returns:
            [m, N, C], or [2, m, N, C] for ``"both"``, in the model's dtype; and [m], float64.
        """
        return unit_differences(self.model, x, self.request(indices, pairs))

    def request(self, indices: Tensor, pairs: str) -> DifferenceRequest:
        """Return the request for the differences of some displacements.

        Args:
            indices: Positions of the displacements, [m].
            pairs: ``"none"``, ``"odd"`` or ``"both"``.
        """
        settings = self.settings
        return DifferenceRequest(
            self.sample_ids[indices], self.scales[indices], settings.seed, settings.directions, pairs,
            settings.propagation, settings.precision, settings.max_memory, settings.samples,
        )  # fmt: skip

    @cached_property
    def log_priors(self) -> Tensor:
        """Log weights that attention starts from, [M], float64, on a scale that all samples of the stream share."""
        weights = self.settings.weights
        if self.distribution.proposal is None or isinstance(weights, Attention) and not weights.prior:
            return torch.zeros(len(self.sample_ids), dtype=torch.float64, device=self.model.device)
        return log_weights(self.distribution, self.squared_lengths, self.model.num_params, self.settings.gamma)

    @property
    def largest_prior(self) -> Tensor:
        """Largest log prior, or zero where every displacement has weight zero."""
        return finite(self.log_priors.amax())

    @cached_property
    def priors(self) -> Tensor:
        """Log weights that attention starts from, [M], float64, the largest of them zero."""
        if not self.is_group:
            # Called for its check that a displacement remains within the support of the fixed kernel.
            normalise(self.log_priors, self.distribution)
        return self.log_priors - self.largest_prior

    @cached_property
    def log_sample_weights(self) -> Tensor:
        """Log weights that ignore the input, [M], float64, on a scale that all samples of the stream share."""
        settings = self.settings
        if not isinstance(settings.weights, Attention):
            return self.log_priors
        return self.log_priors + settings.weights.parameter_scores(
            self.model.displaced, self.sample_ids, self.scales, settings.seed, settings.directions, settings.antithetic
        )

    @cached_property
    def sample_weights(self) -> Tensor:
        """Weights that ignore the input, [M], float64, summing to one; warns where few displacements count."""
        weights, count = self.settings.weights, len(self.sample_ids)
        if isinstance(weights, FixedKernel) and self.distribution.proposal is None:
            return torch.full((count,), 1 / count, dtype=torch.float64, device=self.model.device)
        if self.is_group:
            return weigh(self.log_sample_weights, summarise(self.log_sample_weights))
        if isinstance(weights, Attention):
            normalised, effective = normalise(self.log_sample_weights, self.distribution)
            warn_if_few(effective, count, _REMEDIES["attention"])
            return normalised
        d, gamma = self.model.num_params, self.settings.gamma
        normalised, statistics = radial_weights(self.distribution, self.squared_lengths, d, gamma)
        warn_if_few(float(effective_samples(statistics)), count, _REMEDIES["kernel"])
        return normalised

    @property
    def sample_statistics(self) -> Tensor:
        """Statistics [3, 1] of the softmax of these weights; they merge with those of other samples of the stream."""
        return summarise(self.log_sample_weights)[:, None]

    def on_stream_scale(self, statistics: Tensor) -> Tensor:
        """Return softmax statistics [3, N] that started from ``priors`` on the scale that all samples share."""
        return torch.cat((statistics[:1] + self.largest_prior, statistics[1:]))

    def warn_if_few_effective(self, statistics: Tensor) -> None:
        """Warn if few displacements count at some input, by the statistics [3, N] of the softmax over them."""
        if statistics.shape[1] and not self.is_group:
            fewest = float(effective_samples(statistics).min())
            warn_if_few(fewest, len(self.sample_ids), f"At one input or more. {_REMEDIES['attention']}")


def displacements_of(
    settings: KernelSettings, model: ModelView, sample_ids: range | None = None, is_group: bool = False
) -> Displacements:
    """Return displacements of a model.

    Args:
        settings: Settings of the kernel.
        model: View of the model.
        sample_ids: Numbers m of the displacements; None for all of the kernel.
        is_group: The displacements are one group of several. A stochastic model then has draws of the group's own, so
            that the scatter of groups shows the error of the draws too.

    Returns:
        The displacements.
    """
    numbers = range(settings.samples) if sample_ids is None else sample_ids
    if is_group and isinstance(model, GeneralModel):
        model = model.with_draws(numbers.start)
    return Displacements(settings, model, numbers, is_group)


def remedy(weights: FixedKernel | Attention) -> str:
    """Return what a user can change where few displacements count."""
    return _REMEDIES["attention" if isinstance(weights, Attention) else "kernel"]
