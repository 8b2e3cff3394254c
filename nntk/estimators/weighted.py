"""Differences with their weights: what every estimator assembles a kernel from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nntk.attention import Attention
from nntk.displacements import Displacements
from nntk.kernels.attention import AttentionState, attend
from nntk.models.data.inputs import Batch, concatenate

_LEAST_CHUNK = 64
"""Least number of displacements that are assembled together, whatever the budget."""


class WeightedDifferences(NamedTuple):
    """Unit differences of all displacements with their weights, at the inputs of the rows and of the columns.

    Attributes:
        d1: Unit differences at the inputs of the rows, [M, N1, C].
        d2: Unit differences at the inputs of the columns, [M, N2, C]; None for a symmetric kernel.
        weights1: Weights, [M], or [M, N1] where they depend on the input.
        weights2: Weights at the inputs of the columns, [M, N2]; None where ``weights1`` says it all.
        squared_norms: Squared norms of the unit displacements, [M], float64.
    """

    d1: Tensor
    d2: Tensor | None
    weights1: Tensor
    weights2: Tensor | None
    squared_norms: Tensor


def all_differences(displacements: Displacements, x1: Batch, x2: Batch | None) -> WeightedDifferences:
    """Return the differences and weights of all displacements.

    Args:
        displacements: The displacements.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.

    Returns:
        Differences and weights.
    """
    if displacements.settings.attends_to_outputs:
        queries = query_outputs(displacements, x1, x2)
        first, second, norms = attend_to_outputs(displacements, x1, x2, queries, displacements.indices)
        for state in (first, second):
            if state is not None:
                displacements.warn_if_few_effective(state.statistics)
        if second is None:
            return WeightedDifferences(first.difference(), None, first.weights(), None, norms)
        return WeightedDifferences(
            first.difference(), second.difference(), first.weights(), second.weights(), norms
        )  # fmt: skip
    weights = displacements.sample_weights
    unit, norms = displacements.unit_differences(joint_inputs(x1, x2), displacements.indices, displacements.pairs)
    return WeightedDifferences(
        unit[:, : len(x1)], None if x2 is None else unit[:, len(x1) :], weights, None, norms
    )  # fmt: skip


def query_outputs(displacements: Displacements, x1: Batch, x2: Batch | None) -> Tensor | None:
    """Return the outputs at the unperturbed parameters, [N1 + N2, C], where the scores of attention need them."""
    weights = displacements.settings.weights
    if not isinstance(weights, Attention) or weights.score != "dot":
        return None
    return displacements.model.outputs(joint_inputs(x1, x2))


def attend_to_outputs(
    displacements: Displacements, x1: Batch, x2: Batch | None, queries: Tensor | None, indices: Tensor
) -> tuple[AttentionState, AttentionState | None, Tensor]:
    """Return differences under attention on outputs, for some displacements.

    Args:
        displacements: The displacements.
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for a symmetric kernel.
        queries: Outputs from :func:`query_outputs` at the same inputs.
        indices: Positions of the displacements, [m].

    Returns:
        States at the inputs of the rows and of the columns, and the squared norms of the unit displacements, [m].
    """
    attention, settings = displacements.settings.weights, displacements.settings
    assert isinstance(attention, Attention), "the caller checked"
    is_custom = callable(attention.score)
    pairs = "none" if not settings.antithetic else "odd" if is_custom else "both"
    unit, norms = displacements.unit_differences(joint_inputs(x1, x2), indices, pairs)
    priors = displacements.priors[indices]
    factors = attention.score_factors(displacements.scales[indices], unit.shape[-1])

    def state(x: Batch, columns: slice) -> AttentionState:
        custom = None
        if is_custom:  # Only then the numbers of the displacements are read, which waits for a GPU.
            first, last = (int(displacements.sample_ids[indices[place]]) for place in (0, -1))
            custom = attention.custom_scores(x, range(first, last + 1), settings.antithetic)
        score = "given" if callable(attention.score) else attention.score
        keys = None if queries is None else queries[columns]
        return attend(unit[..., columns, :], score, priors, factors, keys, custom)

    first = state(x1, slice(0, len(x1)))
    return first, None if x2 is None else state(x2, slice(len(x1), None)), norms


def joint_inputs(x1: Batch, x2: Batch | None) -> Batch:
    """Return the inputs of rows and columns together: one pass, and one generation of the noise, serves both."""
    return x1 if x2 is None else concatenate((x1, x2))


def chunks(displacements: Displacements, x: Batch) -> Sequence[Tensor]:
    """Return the positions of displacements in chunks that are assembled together, as the budget allows."""
    size = bytes_per_displacement(displacements, len(x), displacements.model.num_outputs(x))
    return torch.split(displacements.indices, chunk_size(displacements, size))


def chunk_size(displacements: Displacements, displacement_bytes: int) -> int:
    """Return the number of displacements that are assembled together, given the bytes that each takes."""
    budget = displacements.settings.budget(displacements.model.device)
    return max(_LEAST_CHUNK, budget // displacement_bytes)


def bytes_per_displacement(displacements: Displacements, inputs: int, outputs: int) -> int:
    """Return the bytes that a displacement takes during assembly.

    Args:
        displacements: The displacements.
        inputs: Number of inputs of rows and columns together.
        outputs: Number C of outputs.
    """
    # Four copies: the differences, and the features that assembly makes of them. Attention doubles them, for both
    # members of pairs, and adds scores in float64: of both members three times over, and the weight.
    attends, itemsize = displacements.settings.attends_to_outputs, displacements.model.dtype.itemsize
    return max(1, inputs) * ((8 if attends else 4) * outputs * itemsize + (56 if attends else 0))
