r"""Jackknife of plugin and unbiased kernels, in which every pair of displacements counts, also pairs of two groups.

With :math:`G_g` the part of the nonlocal gradient that the displacements of group g contribute, plugin is
:math:`\sum_{g, g'} \langle G_g, G_{g'} \rangle`. Without group g it loses a row and a column of these blocks,
:math:`\langle G_g, G \rangle + \langle G - G_g, G_g \rangle`. Both follow from the products
:math:`\langle E_m, G \rangle` and :math:`\langle E_m, G_g \rangle` of each displacement. The unbiased form is the sum
over pairs of different displacements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.estimators.errors.events import Contributions, EventsOfInputs
from nntk.estimators.errors.groups import Evaluation, with_known_size
from nntk.estimators.errors.jackknife import (
    combine_weights,
    evaluation_of,
    group_shares,
    leave_one_out,
    outer_product,
    split_rows_and_columns,
    standard_error,
    with_output_axes,
)
from nntk.kernels.assemble.pairs import check_pairs, sum_over_pairs
from nntk.kernels.assemble.reference import contract, gradient_weights
from nntk.kernels.fixed_weights import merge


@dataclass(frozen=True)
class DifferenceGroup:
    """Displacements of a group, with their differences.

    Attributes:
        unit: Unit differences at the J inputs of rows and columns, [m, J, C].
        weights: Weights that sum to one in the group, [m, J], or [m, 1] where they ignore the input.
        squared_norms: Squared norms of the unit displacements, [m].
        sample_ids: Numbers of the displacements in the stream, [m].
        statistics: Statistics of the softmax over the displacements, [3, J] or [3, 1].
    """

    unit: Tensor
    weights: Tensor
    squared_norms: Tensor
    sample_ids: Tensor
    statistics: Tensor


def join_differences(first: DifferenceGroup, second: DifferenceGroup) -> DifferenceGroup:
    """Return two groups as one."""
    shares = group_shares((first.statistics, second.statistics))
    return DifferenceGroup(
        torch.cat((first.unit, second.unit)),
        torch.cat((first.weights * shares[0], second.weights * shares[1])),
        torch.cat((first.squared_norms, second.squared_norms)),
        torch.cat((first.sample_ids, second.sample_ids)),
        merge(first.statistics, second.statistics),
    )


def jackknife_inner(
    groups: Sequence[DifferenceGroup],
    samples: int,
    products: Callable[[Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor]],
    rows: int,
    symmetric: bool,
    num_params: int,
    factor: int,
    unbiased: bool,
    outputs: str,
    event_size: Callable[[], float],
    keep_replicates: bool = False,
) -> Evaluation:
    """Return the plugin or the unbiased form of all groups and its error.

    Args:
        groups: The groups.
        samples: Number of displacements of all groups.
        products: Returns, for coefficients [M, J, C], sample numbers [M], the size of a group, and squared norms [M] or
            None, the products with the Gram matrix of displacements and with its diagonal blocks, with norms without
            the diagonal; see :func:`nntk.estimators.errors.gram_products.gram_products`.
        rows: Number of inputs that belong to the rows; the others belong to the columns.
        symmetric: Rows and columns belong to the same inputs.
        num_params: Number d of displaced parameters.
        factor: Factor of a gradient: d, or 1 for the paper's normalisation.
        unbiased: Leave out the pairs of a displacement with itself.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.
        event_size: Returns the size that an event has where none was seen, for one displacement of weight one.
        keep_replicates: Keep the kernels without one group each.

    Returns:
        The kernel with its error.

    Raises:
        ValueError: If the weights leave no pair of displacements for the unbiased form.
    """
    shares, effective = combine_weights([group.statistics for group in groups], samples)
    weights = [group.weights.double() * share for group, share in zip(groups, shares, strict=True)]
    a = [gradient_weights(g.unit, w, g.squared_norms, factor) for g, w in zip(groups, weights, strict=True)]
    size, first, second = samples // len(groups), slice(rows), slice(0 if symmetric else rows, None)
    norms = torch.cat([group.squared_norms for group in groups]).double() if unbiased else None
    with_all, with_group = products(torch.cat(a), torch.cat([group.sample_ids for group in groups]), size, norms)
    total, parts = None, []
    for group_a, q_all, q_group in zip(a, with_all.split(size), with_group.split(size), strict=True):
        column = contract((q_all - q_group)[:, first], group_a[:, second], outputs)
        row = contract(group_a[:, first], q_all[:, second], outputs)
        total = row if total is None else total + row
        parts.append(row + column)
    assert total is not None, "there are groups"
    energies = (_energies(g, w, factor**2 / num_params, outputs) for g, w in zip(groups, weights, strict=True))
    contributions = with_known_size(Contributions.of(energies).under_shares(shares), samples, event_size)
    bias = 0.0 if unbiased else num_params / effective
    events = EventsOfInputs(contributions, rows, symmetric, total.dim(), 1 + bias)
    if not unbiased:
        rests = (outer_product(rest, total) for rest in leave_one_out(shares))
        error, replicates = standard_error(total, parts, rests, keep_replicates)
        return evaluation_of(total, error, effective, events, symmetric, replicates)
    within = torch.stack([_pairs(w, total) for w in weights])
    pairs = within.sum(0) + _pairs(shares, total)
    check_pairs(pairs, effective)
    # Relative to the pairs of all groups, which are few where one displacement has nearly all the weight.
    rests = ((rest + _pairs(_without(shares, g), total)) / pairs for g, rest in enumerate(leave_one_out(within)))
    error, replicates = standard_error(total / pairs, (part / pairs for part in parts), rests, keep_replicates)
    return evaluation_of(total / pairs, error, effective, events, symmetric, replicates)


def _energies(group: DifferenceGroup, weights: Tensor, factor: float, outputs: str) -> Tensor:
    """Return the contribution of a group to the energy form of each input with itself, [J], or [J, C]."""
    squares = group.unit.double().square() * (factor * weights / group.squared_norms.double()[:, None])[:, :, None]
    energies = squares.sum(0)
    if outputs in ("diagonal", "full"):
        return energies
    return energies.mean(1) if outputs == "mean" else energies.sum(1)


def _pairs(weights: Tensor, kernel: Tensor) -> Tensor:
    """Return the weights of pairs of different displacements, or of different groups, with the axes of a kernel."""
    return with_output_axes(sum_over_pairs(*split_rows_and_columns(weights, kernel.shape[:2])), kernel)


def _without(shares: Tensor, group: int) -> Tensor:
    """Return the shares of all groups but one."""
    return torch.cat((shares[:group], shares[group + 1 :]))
