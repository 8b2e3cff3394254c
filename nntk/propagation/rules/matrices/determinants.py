"""Determinants and their logarithms: the change of the logarithm is an integral of tr(A^-1 dA)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import NoRule, composed, rule
from nntk.propagation.rules.matrices.systems import displaced_matrices, tangents_of

_NODES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(5))
_NEAR = 0.02
"""Largest norm of A^-1 dA for which five places give all digits."""


def _log_change(ctx: PropagationContext, a: Any) -> tuple[Tensor, Tensor]:
    """Return the unit difference of log |det A| by the integral, and True where that is accurate."""
    base, da, s = primal(a).double(), tangents_of(ctx, a), ctx.broadcast_scales(primal(a).dim()).double()
    ratio = torch.linalg.solve(base, da)
    identity = torch.eye(base.shape[-1], dtype=base.dtype, device=base.device)
    total = torch.zeros((), dtype=base.dtype, device=base.device)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        inner = torch.linalg.solve(identity + (0.5 + 0.5 * node) * s * ratio, ratio)
        total = total + inner.diagonal(dim1=-2, dim2=-1).sum(-1) * (0.5 * weight)
    return total, torch.linalg.matrix_norm(s * ratio) < _NEAR


def _signed_logarithm(ctx: PropagationContext, a: Any) -> tuple[Any, Any]:
    def state() -> tuple[Tensor, Tensor]:
        sign, logarithm = torch.linalg.slogdet(primal(a))
        if not bool(logarithm.isfinite().all()):
            raise NoRule("model takes the logarithm of the determinant of a singular matrix.")
        return sign, logarithm

    sign, logarithm = ctx.cached(state)
    s = ctx.broadcast_scales(sign.dim()).double()
    displaced_sign, displaced = torch.linalg.slogdet(displaced_matrices(ctx, a))
    near, is_near = _log_change(ctx, a)
    change = torch.where(is_near, near, (displaced - logarithm) / s)
    return (
        with_tangent(ctx, sign, ((displaced_sign - sign) / s).to(ctx.dtype)),
        with_tangent(ctx, logarithm, change.to(ctx.dtype)),
    )


@rule(also=[torch.linalg.slogdet])
def _linalg_slogdet(ctx: PropagationContext, a: Any) -> Any:
    result: Any = torch.return_types
    return result.linalg_slogdet(_signed_logarithm(ctx, a))


@rule("slogdet")
def _slogdet(ctx: PropagationContext, a: Any) -> Any:
    return torch.return_types.slogdet(_signed_logarithm(ctx, a))


@composed("logdet")
def _logdet(a: Any) -> Any:
    sign, logarithm = torch.linalg.slogdet(a)
    if not bool((primal(sign) > 0).all()):
        raise NoRule("model calls logdet of a matrix with a negative determinant.")
    return logarithm


@rule("det", also=[torch.linalg.det])
def _determinant(ctx: PropagationContext, a: Any) -> Any:
    value = ctx.cached(lambda: torch.linalg.det(primal(a)))
    s = ctx.broadcast_scales(value.dim()).double()
    change = (torch.linalg.det(displaced_matrices(ctx, a)) - value) / s
    if ctx.cached(lambda: bool((value != 0).all())):
        near, is_near = _log_change(ctx, a)
        change = torch.where(is_near, value * torch.expm1(s * near) / s, change)
    return with_tangent(ctx, value, change.to(ctx.dtype))
