"""Losses, and the reduction of their values."""

from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.registry import COMPOSED, NoRule


def _reduce(losses: Any, size_average: Any, reduce: Any, reduction: str) -> Any:
    """Return the values of a loss, their mean or their sum."""
    if size_average is not None or reduce is not None:
        raise NoRule("model calls a loss with size_average or reduce, which have no rule; reduction= has one.")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _weighted(losses: Any, weight: Any) -> Any:
    return losses if weight is None else losses * weight


def _mse_loss(
    x: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None
) -> Any:
    return _reduce(_weighted(torch.square(x - target), weight), size_average, reduce, reduction)


def _l1_loss(
    x: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None
) -> Any:
    return _reduce(_weighted(torch.abs(x - target), weight), size_average, reduce, reduction)


def _huber_loss(x: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Any:
    """Return half of the square up to delta, and beyond it the tangent line."""
    size = torch.abs(x - target)
    inner = torch.clamp(size, max=delta)
    losses = torch.square(inner) * 0.5 + (size - inner) * delta
    return _reduce(_weighted(losses, weight), None, None, reduction)


def _smooth_l1_loss(
    x: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", beta: float = 1.0
) -> Any:
    if beta == 0:
        return _l1_loss(x, target, size_average, reduce, reduction)
    return _reduce(_huber_loss(x, target, "none", beta) / beta, size_average, reduce, reduction)


def _binary_cross_entropy(
    x: Any, target: Any, weight: Any = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Any:
    # The logarithms are those of PyTorch, which are at least -100.
    logs = (torch.clamp(torch.log(part), min=-100.0) for part in (x, 1 - x))
    log_x, log_rest = logs
    return _reduce(_weighted(-(target * log_x + (1 - target) * log_rest), weight), size_average, reduce, reduction)


def _binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:  # fmt: skip
    positive, negative = target * F.softplus(-x), (1 - target) * F.softplus(x)
    return _reduce(_weighted(_weighted(positive, pos_weight) + negative, weight), size_average, reduce, reduction)


def _kl_div(
    x: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", log_target: bool = False
) -> Any:
    losses = torch.exp(target) * (target - x) if log_target else torch.xlogy(target, target) - target * x
    if reduction == "batchmean":
        return _reduce(losses, size_average, reduce, "sum") / x.shape[0]
    return _reduce(losses, size_average, reduce, reduction)


def _nll_loss(
    x: Any, target: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    """Return minus the logarithms [N, C, ...] at the classes [N, ...]."""
    axis = 1 if x.dim() > 1 else 0
    is_counted = target != ignore_index
    classes = torch.where(is_counted, target, 0)
    weights = is_counted.to(x.dtype)
    if weight is not None:
        weights = weights * weight[classes]
    losses = -x.gather(axis, classes.unsqueeze(axis)).squeeze(axis) * weights
    if reduction == "mean":
        return _reduce(losses, size_average, reduce, "sum") / weights.sum()
    return _reduce(losses, size_average, reduce, reduction)


def _cross_entropy(
    x: Any, target: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Return the cross entropy of logits [N, C, ...] and classes, or probabilities of classes."""
    axis = 1 if x.dim() > 1 else 0
    logs = F.log_softmax(x, axis)
    if not target.is_floating_point() and not label_smoothing:
        return _nll_loss(logs, target, weight, size_average, ignore_index, reduce, reduction)
    if weight is not None:
        raise NoRule(
            "model calls cross_entropy with weights and with smoothed labels or probabilities, without a rule."
        )
    count = x.shape[axis]
    if not target.is_floating_point():
        losses = _nll_loss(logs, target, None, None, ignore_index, None, "none")
        is_counted = (target != ignore_index).to(x.dtype)
        losses = losses * (1 - label_smoothing) - logs.sum(axis) * is_counted * (label_smoothing / count)
        if reduction == "mean":
            return _reduce(losses, size_average, reduce, "sum") / is_counted.sum()
        return _reduce(losses, size_average, reduce, reduction)
    smoothed = target * (1 - label_smoothing) + label_smoothing / count if label_smoothing else target
    losses = -(logs * smoothed).sum(axis)
    if reduction == "mean":
        return _reduce(losses, size_average, reduce, "sum") / max(1, x.numel() // count)
    return _reduce(losses, size_average, reduce, reduction)


COMPOSED.update(
    {
        F.mse_loss: _mse_loss,
        F.l1_loss: _l1_loss,
        F.huber_loss: _huber_loss,
        F.smooth_l1_loss: _smooth_l1_loss,
        F.binary_cross_entropy: _binary_cross_entropy,
        F.binary_cross_entropy_with_logits: _binary_cross_entropy_with_logits,
        F.kl_div: _kl_div,
        F.nll_loss: _nll_loss,
        F.cross_entropy: _cross_entropy,
    }
)
