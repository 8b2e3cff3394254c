r"""Error bars of plugin and unbiased kernels, in which every pair of displacements counts, those of two groups too.

With :math:`G_g` the part of the nonlocal gradient that the displacements of group g make, plugin is
:math:`\sum_{g, g'} \langle G_g, G_{g'} \rangle`. Without a group it loses its line and its column of these blocks,
:math:`\langle G_g, G \rangle + \langle G - G_g, G_g \rangle`. Both follow from the
products :math:`\langle E_m, G \rangle` and :math:`\langle E_m, G_g \rangle` of each displacement. The unbiased form is
made of the pairs of different displacements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.estimators.jackknife import but_one, ends, judge, outer, shares, standard_error, with_axes
from nntk.kernels.assemble.reference import contract, gradient_weights, mirror
from nntk.kernels.fixed_weights import merge


@dataclass(frozen=True)
class Differences:
    """The displacements of a group.

    Attributes:
        unit: Unit differences at the J inputs of the lines and of the entries, [m, J, C].
        weights: Weights that sum to one in the group, [m, J], or [m, 1] where they do not depend on the input.
        squared_norms: Of the unit displacements, [m].
        rows: Their numbers in the stream, [m].
        statistics: Of the softmax over them, [3, J] or [3, 1].
    """

    unit: Tensor
    weights: Tensor
    squared_norms: Tensor
    rows: Tensor
    statistics: Tensor


def join_differences(first: Differences, second: Differences) -> Differences:
    """Two groups as one."""
    share = shares((first.statistics, second.statistics))
    return Differences(
        torch.cat((first.unit, second.unit)),
        torch.cat((first.weights * share[0], second.weights * share[1])),
        torch.cat((first.squared_norms, second.squared_norms)),
        torch.cat((first.rows, second.rows)),
        merge(first.statistics, second.statistics),
    )


def tell_of_differences(
    groups: Sequence[Differences],
    samples: int,
    products: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    lines: int,
    symmetric: bool,
    factor: int,
    unbiased: bool,
    outputs: str,
) -> tuple[Tensor, Tensor, float]:
    """The plugin or the unbiased form of all groups, and its error.

    Args:
        groups: The groups.
        samples: Displacements of all of them.
        products: Of numbers [M, J, C], the rows [M] and the size of a group, with the Gram matrix of displacements and
            with its blocks: see :func:`nntk.estimators.gram_products.gram_products`.
        lines: How many inputs are those of the lines; the others are those of the entries.
        symmetric: Whether all inputs are of lines and entries alike.
        factor: Of a gradient: the number d of parameters, or 1 for the paper's normalisation.
        unbiased: Whether pairs of the same displacement are left out.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Kernel, standard error and effective samples.
    """
    share, effective = judge([group.statistics for group in groups], samples)
    weights = [group.weights.double() * own for group, own in zip(groups, share, strict=True)]
    a = [gradient_weights(g.unit, w, g.squared_norms, factor) for g, w in zip(groups, weights, strict=True)]
    size, first, second = samples // len(groups), slice(lines), slice(0 if symmetric else lines, None)
    by_all, by_own = products(torch.cat(a), torch.cat([group.rows for group in groups]), size)
    total, parts = None, []
    for group, own, moved, within in zip(groups, a, by_all.split(size), by_own.split(size), strict=True):
        column = contract((moved - within)[:, first], own[:, second], outputs)
        if unbiased:
            moved = moved - own * group.squared_norms.double()[:, None, None]
        line = contract(own[:, first], moved[:, second], outputs)
        total = line if total is None else total + line
        parts.append(line + column)
    assert total is not None, "there are groups"
    squares = torch.stack([_squares(w, total) if unbiased else torch.zeros_like(total[:1, :1]) for w in weights])
    rests = (outer(rest, total) - lost for rest, lost in zip(but_one(share), but_one(squares), strict=True))
    kernel, error = total / (1 - squares.sum(0)), standard_error(total, parts, rests)
    return (mirror(kernel), mirror(error), effective) if symmetric else (kernel, error, effective)


def _squares(weights: Tensor, like: Tensor) -> Tensor:
    r"""The sum of :math:`\alpha_m(x) \alpha_m(x')` over a group, with the axes of a kernel."""
    first, second = ends(weights, like.shape[:2])
    return with_axes(first.T @ second, like)
