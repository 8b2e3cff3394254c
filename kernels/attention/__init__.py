"""Softmax attention over displacements: scores, streaming statistics, weights; and projections of displacements."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.attention import cost, reference
from nntk.kernels.dispatch import register
from nntk.kernels.philox import parse, split_seed

__all__ = [
    "SCORES",
    "AttentionState",
    "attend",
    "attention_scores",
    "attention_statistics",
    "attention_weights",
    "multiply_displacements",
    "project_displacements",
    "project_parameters",
]

SCORES = ("dot", "distance", "given")

_scores = register(
    "attention_scores(Tensor d, Tensor? keys, str score) -> Tensor",
    reference.attention_scores,
    cost.attention_scores,
    lambda d, keys, score: d.new_empty(d.shape[:-1]),
    launcher="nntk.kernels.attention.triton.launch",
)
_statistics = register(
    "attention_statistics(Tensor values, Tensor? keys, Tensor priors, Tensor factors, str score) -> Tensor",
    reference.attention_statistics,
    cost.attention_statistics,
    lambda values, *_: values.new_empty((3, values.shape[-2]), dtype=torch.float64),
    launcher="nntk.kernels.attention.triton.launch",
)
_weights = register(
    "attention_weights(Tensor values, Tensor? keys, Tensor priors, Tensor factors, Tensor statistics, str score)"
    " -> Tensor",
    reference.attention_weights,
    cost.attention_weights,
    lambda values, *_: values.new_empty(values.shape[-3:-1]),
    launcher="nntk.kernels.attention.triton.launch",
)
_STREAM = "Tensor[] parameters, int[] ordinals, Tensor rows, int seed_low, int seed_high, str directions"
_project = register(
    f"project_displacements({_STREAM}, int dim) -> Tensor",
    reference.project_displacements,
    cost.project_displacements,
    lambda parameters, ordinals, rows, low, high, directions, dim: rows.new_empty(
        (rows.shape[0], dim), dtype=torch.float64
    ),
    launcher="nntk.kernels.attention.triton.launch",
)
_multiply = register(
    f"multiply_displacements({_STREAM}, Tensor matrix) -> Tensor",
    reference.multiply_displacements,
    cost.multiply_displacements,
    lambda parameters, ordinals, rows, low, high, directions, matrix: rows.new_empty(
        (rows.shape[0], matrix.shape[0]), dtype=torch.float64
    ),
    launcher="nntk.kernels.attention.triton.launch",
)


@dataclass(frozen=True)
class AttentionState:
    """Differences and what makes their weights.

    Attributes:
        d: Unit differences, [M, N, C] or both halves of antithetic pairs [2, M, N, C].
        values: Scores [M, N] or [2, M, N]; None where they are made from ``d`` itself, which has one output.
        keys: Outputs f(x) [N, 1] that scores ``"dot"`` from ``d`` itself take.
        priors: Log weights by displacement, [M].
        factors: Factors of the scores by displacement, [M].
        score: ``"dot"``, ``"distance"`` or ``"given"``.
        statistics: Of the softmax over these displacements, [3, N]; see :func:`attention_statistics`.
    """

    d: Tensor
    values: Tensor | None
    keys: Tensor | None
    priors: Tensor
    factors: Tensor
    score: str
    statistics: Tensor

    def weights(self) -> Tensor:
        """The weights [M, N] of a softmax over just these displacements."""
        values = self.d if self.values is None else self.values.unsqueeze(-1)
        return attention_weights(values, self.score, self.priors, self.factors, self.statistics, self.keys)

    def difference(self) -> Tensor:
        """The differences [M, N, C], of pairs their odd part."""
        return reference.odd(self.d)


def attend(
    d: Tensor,
    score: str,
    priors: Tensor,
    factors: Tensor,
    keys: Tensor | None = None,
    given: Tensor | None = None,
) -> AttentionState:
    r"""Attention over displacements: pass one, which sees every difference once.

    Args:
        d: Unit differences, [M, N, C] or both halves [2, M, N, C].
        score: ``"dot"``, ``"distance"`` or ``"given"``; see :func:`attention_scores`.
        priors: Log weights by displacement, [M]; minus infinity excludes one.
        factors: Factors of the scores of unit differences, [M]: :math:`s_m / (\sqrt C \tau)` for ``"dot"``,
            :math:`s_m^2 / \tau` for ``"distance"``, :math:`1 / \tau` for ``"given"``.
        keys: Outputs f(x) at the unmoved parameters, [N, C]; for ``"dot"``.
        given: Scores for ``"given"``, [M, N], or [2, M, N] where ``d`` has both halves.

    Returns:
        What :func:`nntk.kernels.assemble.attended_energy` takes. For several outputs it holds the scores, a C-th of
        the differences; for one nothing.

    Raises:
        ValueError: If a shape or a name does not fit.

    Example:
        >>> attend(torch.ones(4, 1, 2), "distance", torch.zeros(4), torch.ones(4)).weights().flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    checks.choice("score", score, SCORES)
    values = None
    if score == "given":
        if given is None or given.shape != d.shape[:-1]:
            raise ValueError(
                f"given must be scores {tuple(d.shape[:-1])}, got {None if given is None else tuple(given.shape)}."
            )
        values, keys = given, None
    elif d.shape[-1] != 1:
        values, keys, score = attention_scores(d, score, keys), None, "given"
    if score != "dot":
        keys = None
    statistics = attention_statistics(d if values is None else values.unsqueeze(-1), score, priors, factors, keys)
    return AttentionState(d, values, keys, priors, factors, score, statistics)


def attention_scores(d: Tensor, score: str, keys: Tensor | None = None) -> Tensor:
    r"""Raw scores of displacements at every input.

    .. math::
        t_{mn} = \langle f(x_n), D_m(x_n) \rangle \quad\text{(dot)}, \qquad
        t_{mn} = -|D_m(x_n)|^2 / 2 \quad\text{(distance)}

    f at the displaced parameters is :math:`f + D_m`; what all displacements share cancels in the softmax, and is left
    out. For one output the statistics and weights below make these scores themselves.

    Args:
        d: Differences, in any units, [M, N, C] or both halves of antithetic pairs [2, M, N, C].
        score: ``"dot"`` or ``"distance"``.
        keys: Outputs f at the unmoved parameters, [N, C]; for ``"dot"``.

    Returns:
        [M, N] or [2, M, N], in the dtype of ``d``: to be given as ``"given"`` values, with an axis of size 1 appended.

    Raises:
        ValueError: If a shape or a name does not fit.

    Example:
        >>> attention_scores(torch.ones(4, 2, 3), "distance")[0]
        tensor([-1.5000, -1.5000])
    """
    checks.choice("score", score, SCORES[:2])
    _check_values(d, keys, score)
    return _scores(d, keys, score)


def attention_statistics(
    values: Tensor, score: str, priors: Tensor, factors: Tensor, keys: Tensor | None = None
) -> Tensor:
    r"""What the softmax over displacements needs of all of them: the largest exponent and two sums, per input.

    With exponents :math:`e_{mn} = \text{prior}_m + a_m t_{mn}` and :math:`w_{mn} = \sum_\pm e^{e_{mn} - \max}`, these
    are max, :math:`\sum_m w_{mn}` and :math:`\sum_m w_{mn}^2`. Those of two sets of displacements merge exactly
    (:func:`nntk.kernels.fixed_weights.merge`), so that neither the weights nor the scores of all need ever be held.

    Args:
        values: Differences of one output, [M, N, 1], or scores themselves for ``"given"``; both halves of antithetic
            pairs as [2, M, N, 1].
        score: ``"dot"``, ``"distance"`` or ``"given"``.
        priors: Log weights by displacement, [M]; minus infinity excludes one.
        factors: Factors a of the scores, [M]: scale of the displacement over temperature.
        keys: Outputs at the unmoved parameters, [N, 1]; for ``"dot"``.

    Returns:
        [3, N], float64; minus infinity, 0, 0 where nothing counts.

    Raises:
        ValueError: If a shape or a name does not fit.

    Example:
        >>> attention_statistics(torch.zeros(4, 1, 1), "given", torch.zeros(4), torch.ones(4)).flatten()
        tensor([0., 4., 4.], dtype=torch.float64)
    """
    checks.choice("score", score, SCORES)
    _check_rows(values, score, priors, factors, keys)
    return _statistics(values, keys, priors, factors, score)


def attention_weights(
    values: Tensor, score: str, priors: Tensor, factors: Tensor, statistics: Tensor, keys: Tensor | None = None
) -> Tensor:
    r"""The weights :math:`\alpha_m(x_n)` themselves, [M, N] in the dtype of ``values``; a pair's halves are added.

    Args:
        values: As for :func:`attention_statistics`.
        score: ``"dot"``, ``"distance"`` or ``"given"``.
        priors: Log weights by displacement, [M].
        factors: Factors of the scores, [M].
        statistics: Those of all displacements, [3, N], float64.
        keys: Outputs at the unmoved parameters, [N, 1]; for ``"dot"``.

    Returns:
        [M, N]; over all displacements each column sums to one.

    Raises:
        ValueError: If a shape or a name does not fit.

    Example:
        >>> values, zero, one = torch.zeros(2, 1, 1), torch.zeros(2), torch.ones(2)
        >>> attention_weights(values, "given", zero, one, attention_statistics(values, "given", zero, one)).flatten()
        tensor([0.5000, 0.5000])
    """
    checks.choice("score", score, SCORES)
    _check_rows(values, score, priors, factors, keys)
    if statistics.shape != (3, values.shape[-2]):
        raise ValueError(f"statistics must be [3, {values.shape[-2]}], got {tuple(statistics.shape)}.")
    return _weights(values, keys, priors, factors, statistics, score)


def project_displacements(
    parameters: Mapping[int, Tensor], rows: Tensor, seed: int, dim: int, directions: str = "gaussian"
) -> Tensor:
    r"""Random projections :math:`\Pi E_m` of unit displacements; neither factor is ever held.

    Args:
        parameters: The displaced parameters by ordinal; only their shapes are read.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64): of the displacements and of the projection.
        dim: Number k of projections.
        directions: Name of the family of displacements.

    Returns:
        [M, k], float64; :math:`\Pi` has entries N(0, 1) / sqrt(d), rounded to bfloat16 before the division.

    Raises:
        ValueError: If a name is unknown, a number out of range, or there are no parameters.
        TypeError: If ``rows`` is no int64 vector, or a number no integer.

    Example:
        >>> project_displacements({0: torch.zeros(3, 4)}, torch.arange(2), seed=1, dim=5).shape
        torch.Size([2, 5])
    """
    checks.row_numbers(rows)
    parse(directions)
    checks.integer("dim", dim, 1, 2**16)
    checks.displaced(parameters)
    return _project(list(parameters.values()), list(parameters), rows, *split_seed(seed), directions, dim)


def project_parameters(parameters: Mapping[int, Tensor], seed: int, dim: int) -> Tensor:
    r"""The same projection of the parameters themselves, :math:`\Pi \theta`, [k], float64.

    Args:
        parameters: The displaced parameters by ordinal.
        seed: Seed of the stream, in [0, 2**64).
        dim: Number k of projections.

    Returns:
        [k], float64.

    Raises:
        ValueError: If a number is out of range, or there are no parameters.
        TypeError: If a number is no integer.

    Example:
        >>> project_parameters({0: torch.zeros(3, 4)}, seed=1, dim=2)
        tensor([0., 0.], dtype=torch.float64)
    """
    checks.integer("dim", dim, 1, 2**16)
    checks.displaced(parameters)
    return reference.project_parameters(list(parameters.values()), list(parameters), *split_seed(seed), dim)


def multiply_displacements(
    parameters: Mapping[int, Tensor], rows: Tensor, seed: int, matrix: Tensor, directions: str = "gaussian"
) -> Tensor:
    r"""Products :math:`W E_m` of unit displacements with a given matrix.

    Args:
        parameters: The displaced parameters by ordinal, in the order of the columns of ``matrix``; only their shapes
            are read.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        matrix: W, [k, d].
        directions: Name of the family of displacements.

    Returns:
        [M, k], float64.

    Raises:
        ValueError: If a name is unknown, the seed out of range, or ``matrix`` does not fit the parameters.
        TypeError: If ``rows`` is no int64 vector, or the seed no integer.

    Example:
        >>> ones = torch.ones(1, 12)
        >>> multiply_displacements({0: torch.zeros(3, 4)}, torch.arange(2), 1, ones, "rademacher").abs() <= 12
        tensor([[True],
                [True]])
    """
    checks.row_numbers(rows)
    parse(directions)
    num_params = sum(parameter.numel() for parameter in parameters.values())
    if matrix.dim() != 2 or matrix.shape[1] != num_params:
        raise ValueError(f"matrix must be [k, {num_params}], a column for each parameter; got {tuple(matrix.shape)}.")
    return _multiply(list(parameters.values()), list(parameters), rows, *split_seed(seed), directions, matrix)


def _check_values(d: Tensor, keys: Tensor | None, score: str) -> None:
    if d.dim() not in (3, 4) or not d.is_floating_point() or d.dim() == 4 and len(d) != 2:
        raise ValueError(
            f"differences must be a floating tensor [M, N, C] or [2, M, N, C], got {d.dtype} of shape {tuple(d.shape)}."
        )
    if score == "dot" and (keys is None or keys.shape != d.shape[-2:]):
        given = "None" if keys is None else f"shape {tuple(keys.shape)}"
        raise ValueError(f"keys must be the outputs {tuple(d.shape[-2:])} for score 'dot', got {given}.")


def _check_rows(values: Tensor, score: str, priors: Tensor, factors: Tensor, keys: Tensor | None) -> None:
    _check_values(values, keys, score)
    if values.shape[-1] != 1:
        raise ValueError(f"values must have a last axis of 1, got {tuple(values.shape)}; see attention_scores.")
    for name, rows in (("priors", priors), ("factors", factors)):
        if rows.shape != values.shape[-3:-2]:
            raise ValueError(f"{name} must be [{values.shape[-3]}], got {tuple(rows.shape)}.")
