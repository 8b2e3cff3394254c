"""Weights from log weights without their normaliser: statistics of a softmax over a set, and merging of two sets."""

import math
import sys
import warnings

import torch
from torch import Tensor


class EffectiveSampleWarning(UserWarning):
    """Warning that a few displacements have nearly all the weight, so the Monte-Carlo error is that of few samples."""


def summarise(log_weights: Tensor) -> Tensor:
    r"""Return statistics of a softmax: :math:`\max l` and the sums of :math:`w = e^{l - \max l}` and of :math:`w^2`.

    Args:
        log_weights: Log weights l, [M] or [M, N], float64; minus infinity means no weight.

    Returns:
        [3] or [3, N], float64; minus infinity, 0, 0 where no displacement has a weight.

    Example:
        >>> summarise(torch.zeros(4, dtype=torch.float64))
        tensor([0., 4., 4.], dtype=torch.float64)
    """
    empty = log_weights.new_full(log_weights.shape[1:], -math.inf)
    top = log_weights.amax(0) if len(log_weights) else empty
    relative = _relative(log_weights, top)
    return torch.stack((top, relative.sum(0), relative.square().sum(0)))


def merge(statistics_a: Tensor, statistics_b: Tensor) -> Tensor:
    """Merge the statistics of two sets of displacements.

    Args:
        statistics_a: Statistics of the first set, [3] or [3, N], float64: see :func:`summarise`.
        statistics_b: Statistics of the second set, of the same shape.

    Returns:
        Statistics of the union, of the same shape. Those of an empty set, minus infinity, 0, 0, change nothing.

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
    """Return the weights of a softmax whose statistics are known.

    Args:
        log_weights: Log weights of these displacements, [M] or [M, N].
        statistics: Statistics of all displacements, [3] or [3, N].

    Returns:
        Weights, in the shape and dtype of the log weights; zeros where no displacement has a weight.
    """
    return _relative(log_weights, statistics[0]) * share(statistics[1])


def share(total: Tensor) -> Tensor:
    """Return the reciprocal of a sum of weights, or zero where no displacement has a weight."""
    return torch.where(total == 0, 0.0, total.reciprocal())


def effective_samples(statistics: Tensor) -> Tensor:
    r"""Return the number of equal weights with the same variance: :math:`1 / \sum_m \alpha_m^2`, between 1 and M.

    Args:
        statistics: Statistics of all displacements, [3] or [3, N].

    Returns:
        A scalar tensor, or [N]; zero where no displacement has a weight.
    """
    total, squares = statistics[1], statistics[2]
    return torch.where(total == 0, 0.0, total.square() / squares)


def _relative(log_weights: Tensor, top: Tensor) -> Tensor:
    """Return weights relative to the largest. A difference of two infinities is NaN and means no weight."""
    return torch.where(log_weights == -math.inf, 0.0, torch.exp(log_weights - top))


def warn_if_few(effective: float, samples: int, remedy: str) -> None:
    """Warn if weights leave less than a tenth of the samples effective. The warning points to the line of the user.

    Args:
        effective: Effective number of samples.
        samples: Number M of displacements.
        remedy: Advice on what to change, as a sentence.
    """
    if effective < samples / 10:
        warnings.warn(
            f"the weights leave {effective:.3g} effective of {samples} displacements: the Monte-Carlo error is that of "
            f"so few. {remedy}",
            EffectiveSampleWarning,
            stacklevel=users_level(),
        )


def users_level() -> int:
    """Return the stack level of the first caller outside of this package and of the decorators around it."""
    frame, level, internal = sys._getframe(1), 1, ("nntk", "torch", "functools", "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in internal:
        frame, level = frame.f_back, level + 1
    return level
