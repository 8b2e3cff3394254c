"""Softmax attention over displacements: scores, streaming statistics and weights; projections of displacements."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.attention import cost, reference
from nntk.kernels.dispatch import register
from nntk.kernels.philox import parse, split_seed
from nntk.kernels.philox.source import source_of, with_fastest_noise

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
"""Names of the scores; ``"given"`` means that the caller computed them."""

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
_STREAM = "Tensor[] parameters, int[] ordinals, Tensor sample_ids, int seed_low, int seed_high, str directions"
_project = register(
    f"project_displacements({_STREAM}, int dim) -> Tensor",
    reference.project_displacements,
    cost.project_displacements,
    lambda parameters, ordinals, sample_ids, low, high, directions, dim: sample_ids.new_empty(
        (sample_ids.shape[0], dim), dtype=torch.float64
    ),
    launcher="nntk.kernels.attention.triton.launch",
    compiled=with_fastest_noise(reference.project_displacements),
)
_multiply = register(
    f"multiply_displacements({_STREAM}, Tensor matrix) -> Tensor",
    reference.multiply_displacements,
    cost.multiply_displacements,
    lambda parameters, ordinals, sample_ids, low, high, directions, matrix: sample_ids.new_empty(
        (sample_ids.shape[0], matrix.shape[0]), dtype=torch.float64
    ),
    launcher="nntk.kernels.attention.triton.launch",
    compiled=with_fastest_noise(reference.multiply_displacements),
)


@dataclass(frozen=True)
class AttentionState:
    """Differences at a set of inputs with everything that determines their attention weights.

    Attributes:
        d: Unit differences, [M, N, C], or plus and minus members of antithetic pairs, [2, M, N, C].
        values: Scores, [M, N] or [2, M, N]; None if they are computed from ``d`` itself, which then has one output.
        keys: Outputs f(x), [N, 1], for the score ``"dot"`` computed from ``d`` itself; None otherwise.
        priors: Prior log weights of the displacements, [M].
        factors: Factors of the scores, [M].
        score: Name of the score, ``"dot"``, ``"distance"`` or ``"given"``.
        statistics: Statistics of the softmax over these displacements, [3, N]; see :func:`attention_statistics`.
    """

    d: Tensor
    values: Tensor | None
    keys: Tensor | None
    priors: Tensor
    factors: Tensor
    score: str
    statistics: Tensor

    def weights(self) -> Tensor:
        """Return the weights [M, N] of a softmax over just these displacements."""
        values = self.d if self.values is None else self.values.unsqueeze(-1)
        return attention_weights(values, self.score, self.priors, self.factors, self.statistics, self.keys)

    def difference(self) -> Tensor:
        """Return the differences [M, N, C]; for antithetic pairs, their odd part."""
        return reference.odd(self.d)


def attend(
    d: Tensor,
    score: str,
    priors: Tensor,
    factors: Tensor,
    keys: Tensor | None = None,
    scores: Tensor | None = None,
) -> AttentionState:
    r"""Compute the statistics of attention over displacements: the first pass, which reads every difference once.

    .. math::
        \alpha_m(x) = \operatorname{softmax}_m \left( \text{prior}_m + a_m t_m(x) \right)

    with scores t and factors a.

    Args:
        d: Unit differences, [M, N, C], or plus and minus members of antithetic pairs, [2, M, N, C].
        score: Name of the score, ``"dot"``, ``"distance"`` or ``"given"``; see :func:`attention_scores`.
        priors: Prior log weights of the displacements, [M]; minus infinity excludes one.
        factors: Factors of the scores of unit differences, [M]: :math:`s_m / (\sqrt C \tau)` for ``"dot"``,
            :math:`s_m^2 / \tau` for ``"distance"``, :math:`1 / \tau` for ``"given"``.
        keys: Outputs f(x) at the unperturbed parameters, [N, C]; required for ``"dot"``.
        scores: Scores for ``"given"``, [M, N], or [2, M, N] if ``d`` has both members of pairs.

    Returns:
        Differences and statistics for :func:`nntk.kernels.assemble.attended_energy`. For several outputs the state
        also holds the scores, which are C times fewer than the differences.

    Raises:
        ValueError: If a shape does not fit or a name is unknown.

    Example:
        >>> attend(torch.ones(4, 1, 2), "distance", torch.zeros(4), torch.ones(4)).weights().flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    checks.choice("score", score, SCORES)
    values = None
    if score == "given":
        if scores is None or scores.shape != d.shape[:-1]:
            raise ValueError(
                f"scores must be {tuple(d.shape[:-1])} for score 'given', "
                f"got {None if scores is None else tuple(scores.shape)}."
            )
        values, keys = scores, None
    elif d.shape[-1] != 1:
        values, keys, score = attention_scores(d, score, keys), None, "given"
    if score != "dot":
        keys = None
    statistics = attention_statistics(d if values is None else values.unsqueeze(-1), score, priors, factors, keys)
    return AttentionState(d, values, keys, priors, factors, score, statistics)


def attention_scores(d: Tensor, score: str, keys: Tensor | None = None) -> Tensor:
    r"""Compute raw scores of displacements at every input.

    .. math::
        t_{mn} = \langle f(x_n), D_m(x_n) \rangle \quad\text{(dot)}, \qquad
        t_{mn} = -|D_m(x_n)|^2 / 2 \quad\text{(distance)}

    The output at displaced parameters is :math:`f + D_m`. Terms that all displacements share cancel in the softmax and
    are left out. For one output, the statistics and weights below compute these scores themselves.

    Args:
        d: Differences in any units, [M, N, C], or plus and minus members of antithetic pairs, [2, M, N, C].
        score: Name of the score, ``"dot"`` or ``"distance"``.
        keys: Outputs f at the unperturbed parameters, [N, C]; required for ``"dot"``.

    Returns:
        [M, N] or [2, M, N], in the dtype of ``d``. With an axis of size 1 appended they are ``values`` for the score
        ``"given"``.

    Raises:
        ValueError: If a shape does not fit or a name is unknown.

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
    r"""Compute statistics of the softmax over displacements: the largest exponent and two sums for each input.

    With exponents :math:`e_{mn} = \text{prior}_m + a_m t_{mn}` and :math:`w_{mn} = \sum_\pm e^{e_{mn} - \max}`, these
    are max, :math:`\sum_m w_{mn}` and :math:`\sum_m w_{mn}^2`. Those of two sets of displacements merge exactly
    (:func:`nntk.kernels.fixed_weights.merge`), so the weights and scores of all displacements are never held together.

    Args:
        values: Differences of one output, or scores for ``"given"``, [M, N, 1]; for plus and minus members of
            antithetic pairs, [2, M, N, 1].
        score: Name of the score, ``"dot"``, ``"distance"`` or ``"given"``.
        priors: Prior log weights of the displacements, [M]; minus infinity excludes one.
        factors: Factors a of the scores, [M]: scale of the displacement over temperature.
        keys: Outputs at the unperturbed parameters, [N, 1]; required for ``"dot"``.

    Returns:
        [3, N], float64; minus infinity, 0, 0 where no displacement has a weight.

    Raises:
        ValueError: If a shape does not fit or a name is unknown.

    Example:
        >>> attention_statistics(torch.zeros(4, 1, 1), "given", torch.zeros(4), torch.ones(4)).flatten()
        tensor([0., 4., 4.], dtype=torch.float64)
    """
    checks.choice("score", score, SCORES)
    _check_exponents(values, score, priors, factors, keys)
    return _statistics(values, keys, priors, factors, score)


def attention_weights(
    values: Tensor, score: str, priors: Tensor, factors: Tensor, statistics: Tensor, keys: Tensor | None = None
) -> Tensor:
    r"""Compute the weights :math:`\alpha_m(x_n)`; the weights of both members of a pair are added.

    Args:
        values: Differences or scores, as for :func:`attention_statistics`.
        score: Name of the score, ``"dot"``, ``"distance"`` or ``"given"``.
        priors: Prior log weights of the displacements, [M].
        factors: Factors of the scores, [M].
        statistics: Statistics of all displacements, [3, N], float64.
        keys: Outputs at the unperturbed parameters, [N, 1]; required for ``"dot"``.

    Returns:
        [M, N] in the dtype of ``values``; over all displacements each column sums to one.

    Raises:
        ValueError: If a shape does not fit or a name is unknown.

    Example:
        >>> values, zero, one = torch.zeros(2, 1, 1), torch.zeros(2), torch.ones(2)
        >>> attention_weights(values, "given", zero, one, attention_statistics(values, "given", zero, one)).flatten()
        tensor([0.5000, 0.5000])
    """
    checks.choice("score", score, SCORES)
    _check_exponents(values, score, priors, factors, keys)
    if statistics.shape != (3, values.shape[-2]):
        raise ValueError(f"statistics must be [3, {values.shape[-2]}], got {tuple(statistics.shape)}.")
    return _weights(values, keys, priors, factors, statistics, score)


def project_displacements(
    parameters: Mapping[int, Tensor], sample_ids: Tensor, seed: int, dim: int, directions: str = "gaussian"
) -> Tensor:
    r"""Compute random projections :math:`\Pi E_m` of unit displacements; neither factor is ever stored.

    Args:
        parameters: Displaced parameters by ordinal; only their shapes are read.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the displacements and of the projection, in [0, 2**64).
        dim: Number k of projections.
        directions: Name of the family of displacements.

    Returns:
        [M, k], float64; :math:`\Pi` has entries N(0, 1) / sqrt(d), rounded to bfloat16 before the division.

    Raises:
        ValueError: If a name is unknown, a number is out of range, or there are no parameters.
        TypeError: If ``sample_ids`` is not an int64 vector, or a number is not an integer.

    Example:
        >>> project_displacements({0: torch.zeros(3, 4)}, torch.arange(2), seed=1, dim=5).shape
        torch.Size([2, 5])
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    checks.integer("dim", dim, 1, 2**16)
    checks.displaced_parameters(parameters)
    return _project(list(parameters.values()), list(parameters), sample_ids, *split_seed(seed), directions, dim)


def project_parameters(parameters: Mapping[int, Tensor], seed: int, dim: int) -> Tensor:
    r"""Compute the same projection of the parameters themselves, :math:`\Pi \theta`.

    Args:
        parameters: Displaced parameters by ordinal.
        seed: Seed of the stream, in [0, 2**64).
        dim: Number k of projections.

    Returns:
        [k], float64.

    Raises:
        ValueError: If a number is out of range, or there are no parameters.
        TypeError: If a number is not an integer.

    Example:
        >>> project_parameters({0: torch.zeros(3, 4)}, seed=1, dim=2)
        tensor([0., 0.], dtype=torch.float64)
    """
    checks.integer("dim", dim, 1, 2**16)
    checks.displaced_parameters(parameters)
    tensors = list(parameters.values())
    source = source_of(tensors[0].device)
    return reference.project_parameters(tensors, list(parameters), *split_seed(seed), dim, source)


def multiply_displacements(
    parameters: Mapping[int, Tensor], sample_ids: Tensor, seed: int, matrix: Tensor, directions: str = "gaussian"
) -> Tensor:
    r"""Multiply unit displacements by a matrix: :math:`W E_m`.

    Args:
        parameters: Displaced parameters by ordinal, in the order of the columns of ``matrix``; only their shapes
            are read.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        matrix: Matrix W, [k, d].
        directions: Name of the family of displacements.

    Returns:
        [M, k], float64.

    Raises:
        ValueError: If a name is unknown, the seed is out of range, or ``matrix`` does not fit the parameters.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed is not an integer.

    Example:
        >>> ones = torch.ones(1, 12)
        >>> multiply_displacements({0: torch.zeros(3, 4)}, torch.arange(2), 1, ones, "rademacher").abs() <= 12
        tensor([[True],
                [True]])
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    num_params = sum(parameter.numel() for parameter in parameters.values())
    if matrix.dim() != 2 or matrix.shape[1] != num_params:
        raise ValueError(f"matrix must be [k, {num_params}], a column for each parameter; got {tuple(matrix.shape)}.")
    return _multiply(list(parameters.values()), list(parameters), sample_ids, *split_seed(seed), directions, matrix)


def _check_values(d: Tensor, keys: Tensor | None, score: str) -> None:
    if d.dim() not in (3, 4) or not d.is_floating_point() or d.dim() == 4 and len(d) != 2:
        raise ValueError(
            f"differences must be a floating tensor [M, N, C] or [2, M, N, C], got {d.dtype} of shape {tuple(d.shape)}."
        )
    if score == "dot" and (keys is None or keys.shape != d.shape[-2:]):
        actual = "None" if keys is None else f"shape {tuple(keys.shape)}"
        raise ValueError(f"keys must be the outputs {tuple(d.shape[-2:])} for score 'dot', got {actual}.")


def _check_exponents(values: Tensor, score: str, priors: Tensor, factors: Tensor, keys: Tensor | None) -> None:
    _check_values(values, keys, score)
    if values.shape[-1] != 1:
        raise ValueError(f"values must have a last axis of 1, got {tuple(values.shape)}; see attention_scores.")
    for name, vector in (("priors", priors), ("factors", factors)):
        if vector.shape != values.shape[-3:-2]:
            raise ValueError(f"{name} must be [{values.shape[-3]}], got {tuple(vector.shape)}.")
