r"""Differences of the displacements of one rank, with weights relative to what this rank has seen.

The weight of a displacement among all, :math:`\alpha_m(x) = e^{l_m(x) - \max l} / \sum e^{l - \max l}`, needs the
largest log weight and the sum over the displacements of all ranks. A rank knows its own largest one, and its own sums:
its statistics. Its features are relative to these, and one factor for each input,

.. math::
    c_r(x) = \frac{e^{(\max_r l - \max l) / 2}}{\sqrt{\sum e^{l - \max l}}},

brings them to the scale of all. The statistics of all ranks are all that must be exchanged for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.displacements import Displacements, remedy
from nntk.estimators.weighted import attend_to_outputs, query_outputs
from nntk.kernels.attention.reference import finite
from nntk.kernels.fixed_weights import check_statistics, effective_samples, warn_if_few
from nntk.models.view import ModelView
from nntk.settings import KernelSettings


@dataclass(frozen=True)
class RelativeDifferences:
    """Differences of some displacements with their relative weights.

    Attributes:
        unit: Unit differences, [m, n, C].
        weights: Weights relative to ``statistics``, [m, J], float64; J is n, or 1 where weights ignore the input.
        squared_norms: Squared norms of the unit displacements, [m], float64.
        statistics: Statistics of the softmax over the displacements, [3, J], float64.
    """

    unit: Tensor
    weights: Tensor
    squared_norms: Tensor
    statistics: Tensor

    def features(self, settings: KernelSettings, num_params: int) -> Tensor:
        """Return features [m, n, C] in the dtype of the differences, whose products are summed to the energy form.

        The differences are overwritten.
        """
        roots = (self.weights * (num_params / self.squared_norms)[:, None]).sqrt().to(self.unit.dtype)
        if settings.normalization == "paper":
            roots = roots / num_params
        return self.unit.mul_(roots[:, :, None])


class RankEvaluation:
    """Evaluation of some displacements at some inputs on one rank; nothing is exchanged.

    Args:
        settings: Settings of the kernel.
        view: View of the model.
        x: Inputs, as the view takes them.
        numbers: Numbers m of the displacements, which may be none.
        outputs: Number C of outputs.

    Attributes:
        displacements: The displacements.
    """

    def __init__(self, settings: KernelSettings, view: ModelView, x: Tensor, numbers: range, outputs: int) -> None:
        self._settings, self._view, self._x, self._outputs = settings, view, x, outputs
        # Weights are relative to these displacements; the draws of a stochastic model are those of the whole kernel.
        self.displacements = Displacements(settings, view, numbers, is_group=True)
        self._is_empty = not len(x)
        self._queries = None if self._is_empty else query_outputs(self.displacements, x, None)

    @property
    def empty_statistics(self) -> Tensor:
        """Statistics of no displacement, [3, J]."""
        columns = len(self._x) if self._settings.attends_to_outputs else 1
        return torch.tensor([[-torch.inf], [0.0], [0.0]], dtype=torch.float64, device=self._view.device).repeat(
            1, columns
        )

    def at(self, indices: Tensor, x: slice = slice(None)) -> RelativeDifferences:
        """Return the differences of some displacements.

        Args:
            indices: Their positions among the displacements of this evaluation, [m].
            x: Which inputs.

        Returns:
            Differences and weights. Weights that ignore the input are relative to all displacements of the evaluation,
            others to those at ``indices``.
        """
        inputs, displacements = self._x[x], self.displacements
        attends = self._settings.attends_to_outputs
        if not len(inputs) or not len(indices):
            unit = torch.zeros(
                len(indices), len(inputs), self._outputs, dtype=self._view.dtype, device=self._view.device
            )
            if attends:
                weights, statistics = unit.new_zeros(unit.shape[:2], dtype=torch.float64), self.empty_statistics[:, x]
            else:
                weights, statistics = self._weights(indices)
            return RelativeDifferences(unit, weights, unit.new_ones(len(indices), dtype=torch.float64), statistics)
        if attends:
            queries = None if self._queries is None else self._queries[x]
            state, _, norms = attend_to_outputs(displacements, inputs, None, queries, indices)
            statistics = displacements.on_stream_scale(state.statistics)
            return RelativeDifferences(state.difference(), state.weights().double() * statistics[1], norms, statistics)
        weights, statistics = self._weights(indices)
        unit, norms = displacements.unit_differences(inputs, indices, displacements.pairs)
        return RelativeDifferences(unit, weights, norms, statistics)

    def _weights(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if not len(self.displacements.sample_range):
            return torch.zeros(0, 1, dtype=torch.float64, device=self._view.device), self.empty_statistics
        statistics = self.displacements.sample_statistics
        logarithms = self.displacements.log_sample_weights[indices]
        return (logarithms - finite(statistics[0])).exp()[:, None], statistics


def factors_within(statistics: Tensor, merged: Tensor) -> Tensor:
    """Return the factors of a set of displacements with statistics [3, J] within a set of statistics [3, J]."""
    return ((statistics[0] - finite(merged[0])) / 2).exp() / merged[1].clamp(min=torch.finfo(torch.float64).tiny).sqrt()


def check_weights(settings: KernelSettings, merged: Tensor) -> None:
    """Check that displacements have weights at every input, and warn where few of them count.

    Args:
        settings: Settings of the kernel.
        merged: Statistics of all displacements, [3, J].

    Raises:
        ValueError: If no displacement has a weight at some input.
    """
    if merged.shape[1]:
        effective = effective_samples(merged)
        check_statistics(merged[:, int(effective.argmin())], settings.samples)
        warn_if_few(float(effective.min()), settings.samples, remedy(settings.weights))
