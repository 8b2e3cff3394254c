"""Softmax and its logarithm, and the logarithm of a sum of exponentials."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import NoRule, rule

_MAX_EXPONENT = 60.0
"""Exponent near the largest one of float32; for larger changes of a logit, probabilities are subtracted."""


class _SoftmaxChange:
    r"""The probabilities p of a softmax along an axis, and the change of its logits.

    Attributes:
        axis: The axis, counted from the end.
        log_p: Logarithm of the unperturbed probabilities, in the dtype of the differences.
        p: Unperturbed probabilities.
        s: Scales, shaped for differences.
        reference: Unit difference of the largest logit.
        v: Change of each logit less that of the largest: then no subtraction affects the largest probability, and
            the others keep their digits, however small they are.
        growth: expm1(v).
        mean_growth: Mean t of the growth under p.
        is_large: True where the change of some logit exceeds the largest exponent.
        any_large: True if that is so anywhere.
    """

    def __init__(self, ctx: PropagationContext, z: Any, dim: int) -> None:
        base = primal(z)
        if not base.dim() or not base.shape[dim]:
            raise NoRule("model calls softmax or logsumexp along an axis without entries, or on a number.")
        self.axis = dim % base.dim() - base.dim()
        log_p = ctx.cached(lambda: torch.log_softmax(base, dim))
        self.log_p, largest = ctx.cached(lambda: (log_p.to(ctx.dtype), base.argmax(self.axis, keepdim=True)))
        self.p, self.s = ctx.cached(lambda: log_p.exp().to(ctx.dtype)), ctx.broadcast_scales(base.dim())
        dz = z.tangent
        self.reference = dz.gather(self.axis, largest.expand(*ctx.leading_shape, *largest.shape))
        # A logit of minus infinity remains minus infinity.
        self.v = torch.where(self.log_p == -torch.inf, 0.0, self.s * (dz - self.reference))
        self.growth = torch.expm1(self.v)
        self.mean_growth = (self.p * self.growth).sum(self.axis, keepdim=True)
        self.is_large = self.v.amax(self.axis, keepdim=True) > _MAX_EXPONENT
        self.any_large = bool(self.is_large.any())

    def log_sum(self) -> Tensor:
        """Return the logarithm of the sum of p exp(v), which is zero without a displacement."""
        log_sum = torch.log1p(self.mean_growth)
        if not self.any_large:
            return log_sum
        return torch.where(self.is_large, (self.log_p + self.v).logsumexp(self.axis, keepdim=True), log_sum)


@rule("softmax")
def _softmax(ctx: PropagationContext, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    """Return the softmax with its difference p (expm1(v) - t) / (1 + t) / s."""
    value, change = ctx.cached(lambda: torch.softmax(primal(z), dim)), _SoftmaxChange(ctx, z, dim)
    tangent = change.p * (change.growth - change.mean_growth) / ((1 + change.mean_growth) * change.s)
    if change.any_large:
        subtracted = torch.softmax(change.log_p + change.v, change.axis) - change.p
        tangent = torch.where(change.is_large, subtracted / change.s, tangent)
    return with_tangent(ctx, value, tangent)


@rule("log_softmax")
def _log_softmax(ctx: PropagationContext, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    value, change = ctx.cached(lambda: torch.log_softmax(primal(z), dim)), _SoftmaxChange(ctx, z, dim)
    return with_tangent(ctx, value, (change.v - change.log_sum()) / change.s)


@rule("logsumexp")
def _logsumexp(ctx: PropagationContext, z: Any, dim: Any, keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        return _logsumexp_over_axes(ctx, z, dim, keepdim)
    value, change = ctx.cached(lambda: torch.logsumexp(primal(z), dim, keepdim)), _SoftmaxChange(ctx, z, dim)
    tangent = change.reference + change.log_sum() / change.s
    return with_tangent(ctx, value, tangent if keepdim else tangent.squeeze(change.axis))


def _logsumexp_over_axes(ctx: PropagationContext, z: Any, dims: Any, keepdim: bool) -> Any:
    """Return the logarithm of a sum over several axes, one after another."""
    for axis in sorted((dim % z.dim() for dim in dims), reverse=True):
        z = _logsumexp(ctx, z, axis, keepdim)
    return z
