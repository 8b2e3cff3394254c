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

from nntk.estimators.errors.jackknife import (
    combine_weights,
    group_shares,
    leave_one_out,
    outer_product,
    split_rows_and_columns,
    standard_error,
    with_output_axes,
)
from nntk.kernels.assemble.reference import contract, gradient_weights, mirror
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
    products: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    rows: int,
    symmetric: bool,
    factor: int,
    unbiased: bool,
    outputs: str,
) -> tuple[Tensor, Tensor, float]:
    """Return the plugin or the unbiased form of all groups and its error.

    Args:
        groups: The groups.
        samples: Number of displacements of all groups.
        products: Returns, for coefficients [M, J, C], sample numbers [M] and the size of a group, the products with the
            Gram matrix of displacements and with its diagonal blocks; see
            :func:`nntk.estimators.errors.gram_products.gram_products`.
        rows: Number of inputs that belong to the rows; the others belong to the columns.
        symmetric: Rows and columns belong to the same inputs.
        factor: Factor of a gradient: the number d of parameters, or 1 for the paper's normalisation.
        unbiased: Leave out the pairs of a displacement with itself.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Kernel and standard error in float64, and effective samples.
    """
    shares, effective = combine_weights([group.statistics for group in groups], samples)
    weights = [group.weights.double() * share for group, share in zip(groups, shares, strict=True)]
    a = [gradient_weights(g.unit, w, g.squared_norms, factor) for g, w in zip(groups, weights, strict=True)]
    size, first, second = samples // len(groups), slice(rows), slice(0 if symmetric else rows, None)
    with_all, with_group = products(torch.cat(a), torch.cat([group.sample_ids for group in groups]), size)
    total, parts = None, []
    for group, group_a, q_all, q_group in zip(groups, a, with_all.split(size), with_group.split(size), strict=True):
        column = contract((q_all - q_group)[:, first], group_a[:, second], outputs)
        if unbiased:
            q_all = q_all - group_a * group.squared_norms.double()[:, None, None]
        row = contract(group_a[:, first], q_all[:, second], outputs)
        total = row if total is None else total + row
        parts.append(row + column)
    assert total is not None, "there are groups"
    squares = torch.stack([_squares(w, total) if unbiased else torch.zeros_like(total[:1, :1]) for w in weights])
    rests = zip(leave_one_out(shares), leave_one_out(squares), strict=True)
    denominators = (outer_product(rest, total) - lost for rest, lost in rests)
    kernel, error = total / (1 - squares.sum(0)), standard_error(total, parts, denominators)
    return (mirror(kernel), mirror(error), effective) if symmetric else (kernel, error, effective)


def _squares(weights: Tensor, kernel: Tensor) -> Tensor:
    r"""Return the sum of :math:`\alpha_m(x) \alpha_m(x')` over a group, with the axes of a kernel."""
    first, second = split_rows_and_columns(weights, kernel.shape[:2])
    return with_output_axes(first.T @ second, kernel)
