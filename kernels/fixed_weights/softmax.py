"""Weights from log weights, their normaliser never formed: what a softmax keeps of a set, and how two sets merge."""

import math
import sys
import warnings

import torch
from torch import Tensor


class EffectiveSampleWarning(UserWarning):
    """A few displacements have nearly all the weight: the Monte-Carlo error is that of few samples."""


def summarise(log_weights: Tensor) -> Tensor:
    r"""The statistics of a softmax: :math:`\max l`, and the sums of :math:`w = e^{l - \max l}` and of its square.

    Args:
        log_weights: Log weights l, [M] or [M, N], float64; minus infinity for none.

    Returns:
        [3] or [3, N], float64; minus infinity, 0, 0 where nothing has a weight.

    Example:
        >>> summarise(torch.zeros(4, dtype=torch.float64))
        tensor([0., 4., 4.], dtype=torch.float64)
    """
    none = log_weights.new_full(log_weights.shape[1:], -math.inf)
    top = log_weights.amax(0) if len(log_weights) else none
    relative = _relative(log_weights, top)
    return torch.stack((top, relative.sum(0), relative.square().sum(0)))


def merge(statistics_a: Tensor, statistics_b: Tensor) -> Tensor:
    """The statistics of two sets of displacements together, from those of each.

    Args:
        statistics_a: Of the one, [3] or [3, N]: see :func:`summarise`.
        statistics_b: Of the other, of the same shape.

    Returns:
        Of both, of the same shape. Those of an empty set, minus infinity, 0, 0, change nothing.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> empty = summarise(torch.zeros(0, dtype=torch.float64))
        >>> merge(empty, summarise(torch.zeros(4, dtype=torch.float64)))
        tensor([0., 4., 4.], dtype=torch.float64)
    """
    if statistics_a.shape != statistics_b.shape or statistics_a.shape[:1] != (3,):
        raise ValueError(
            f"statistics must be two of [3] or [3, N], got {tuple(statistics_a.shape)} and {tuple(statistics_b.shape)}."
        )
    top = torch.maximum(statistics_a[0], statistics_b[0])
    a, b = _relative(statistics_a[0], top), _relative(statistics_b[0], top)
    total = statistics_a[1] * a + statistics_b[1] * b
    return torch.stack((top, total, statistics_a[2] * a.square() + statistics_b[2] * b.square()))


def weigh(log_weights: Tensor, statistics: Tensor) -> Tensor:
    """The weights of a softmax whose statistics are known.

    Args:
        log_weights: Of these displacements, [M] or [M, N].
        statistics: Of all displacements, [3] or [3, N].

    Returns:
        The weights, in the shape and dtype of the log weights; zeros where nothing has a weight.
    """
    return _relative(log_weights, statistics[0]) * share(statistics[1])


def share(total: Tensor) -> Tensor:
    """What a weight of one is of a sum of weights: zero where nothing has a weight."""
    return torch.where(total == 0, 0.0, total.reciprocal())


def effective_samples(statistics: Tensor) -> Tensor:
    r"""How many equal weights have the same variance: :math:`1 / \sum_m \alpha_m^2`, between 1 and M.

    Args:
        statistics: Of all displacements, [3] or [3, N].

    Returns:
        A number, or [N]; zero where nothing has a weight.
    """
    total, squares = statistics[1], statistics[2]
    return torch.where(total == 0, 0.0, total.square() / squares)


def _relative(log_weights: Tensor, top: Tensor) -> Tensor:
    """The weights relative to the largest; a difference of two infinities is no number, and no weight."""
    return torch.where(log_weights == -math.inf, 0.0, torch.exp(log_weights - top))


def warn_if_few(effective: float, samples: int, remedy: str) -> None:
    """Warn where weights leave less than a tenth of the samples; the warning names the user's line.

    Args:
        effective: Effective number of samples.
        samples: Number M of displacements.
        remedy: What to change, as a sentence.
    """
    if effective < samples / 10:
        warnings.warn(
            f"the weights leave {effective:.3g} effective of {samples} displacements: the Monte-Carlo error is that of "
            f"so few. {remedy}",
            EffectiveSampleWarning,
            stacklevel=_users_level(),
        )


def _users_level() -> int:
    """How far up the caller's callers is the first line outside of this package and the decorators around it."""
    frame, level, own = sys._getframe(1), 1, ("nntk", "torch", "functools")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in own:
        frame, level = frame.f_back, level + 1
    return level
