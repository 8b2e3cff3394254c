"""Solutions of linear systems and inverses: X' - X = A'^-1 (dB - dA X), where A' is the displaced matrix."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.registry import COMPOSED, NoRule, composed, rule


def displaced_matrices(ctx: PropagationContext, a: Any) -> Tensor:
    """Return displaced matrices in float64, [M, members, ..., n, k], or unperturbed ones [..., n, k] of a constant."""
    if not is_displaced(a):
        base: Tensor = primal(a).double()
        return base
    displaced: Tensor = primal(a).double() + a.tangent.double() * ctx.broadcast_scales(primal(a).dim())
    return displaced


def tangents_of(ctx: PropagationContext, a: Any) -> Any:
    """Return differences of matrices in float64, [M, members, ..., n, k]; zero for a constant."""
    if not is_displaced(a):
        return torch.zeros((), dtype=torch.float64, device=ctx.scales.device)
    return a.tangent.double()


def _align(ctx: PropagationContext, operand: Any, parts: Tensor, dims: int) -> Tensor:
    """Return parts of an operand [M, members, ...], with axes of length one where the result has more batch axes."""
    if not is_displaced(operand):
        return parts
    return parts.reshape(*ctx.leading_shape, *[1] * (dims + 2 - parts.dim()), *parts.shape[2:])


def _solution(ctx: PropagationContext, a: Any, b: Any, x: Tensor, solve: Any, change_of: Any = None) -> Tensor:
    """Return the unit difference of the solution x of a x = b, [M, members, *shape]."""
    dims = x.dim()
    displaced = _align(ctx, a, displaced_matrices(ctx, a), dims)
    da = _align(ctx, a, tangents_of(ctx, a), dims) if is_displaced(a) else None
    db = _align(ctx, b, tangents_of(ctx, b), dims) if is_displaced(b) else 0.0
    if da is not None and change_of is not None:
        da = change_of(da)
    right = db - da @ x.double() if da is not None else db
    right = torch.as_tensor(right).expand(*ctx.leading_shape, *x.shape)
    result: Tensor = solve(displaced, right).to(ctx.dtype)
    return result


def _linalg_solve(a: Any, b: Any, *, left: bool = True, out: None = None) -> Any:
    if b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1]):
        return _linalg_solve(a, b.unsqueeze(-1), left=left).squeeze(-1) if left else _refuse_vectors()
    if not left:
        return _linalg_solve(a.mT, b.mT).mT
    return _solve(a, b)


def _refuse_vectors() -> Any:
    raise NoRule("model solves for vectors with left=False, which has no rule.")


def _solve(a: Any, b: Any) -> Any:
    ctx = a.ctx if is_displaced(a) else b.ctx
    with torch._C.DisableTorchFunctionSubclass():
        value = ctx.cached(lambda: torch.linalg.solve(*primal((a, b))))
        return with_tangent(ctx, value, _solution(ctx, a, b, value, torch.linalg.solve))


@rule(also=[torch.linalg.inv, torch.inverse, torch.Tensor.inverse])
def _inverse(ctx: PropagationContext, a: Any) -> Any:
    value = ctx.cached(lambda: torch.linalg.inv(primal(a)))
    tangent = -torch.linalg.solve(displaced_matrices(ctx, a), tangents_of(ctx, a) @ value)
    return with_tangent(ctx, value, tangent.to(ctx.dtype))


def _solve_triangular(
    a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False, out: None = None
) -> Any:
    """Solve with the triangle of a matrix alone, whose diagonal may be taken to be one."""
    if not left:
        return _solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    ctx = a.ctx if is_displaced(a) else b.ctx
    offset = int(unitriangular)

    def triangle(t: Tensor) -> Tensor:
        return t.triu(offset) if upper else t.tril(-offset)

    def solve(matrices: Tensor, right: Tensor) -> Tensor:
        x: Tensor = torch.linalg.solve_triangular(matrices, right, upper=upper, unitriangular=unitriangular)
        return x

    with torch._C.DisableTorchFunctionSubclass():
        value = ctx.cached(lambda: solve(*primal((a, b))))
        return with_tangent(ctx, value, _solution(ctx, a, b, value, solve, triangle))


COMPOSED[torch.linalg.solve] = _linalg_solve
COMPOSED[torch.linalg.solve_triangular] = _solve_triangular


@composed("cholesky_solve")
def _cholesky_solve(b: Any, factor: Any, upper: bool = False, *, out: None = None) -> Any:
    lower = factor.mT if upper else factor
    half = _solve_triangular(lower, b, upper=False)
    return _solve_triangular(lower.mT, half, upper=True)


@composed("cholesky_inverse")
def _cholesky_inverse(factor: Any, upper: bool = False, *, out: None = None) -> Any:
    return _cholesky_solve(torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device), factor, upper)


@rule(also=[torch.linalg.pinv, torch.pinverse, torch.Tensor.pinverse])
def _pseudoinverse(ctx: PropagationContext, a: Any, *arguments: Any, **options: Any) -> Any:
    """Return the pseudoinverse B of A; its difference is the sum of three terms, for matrices of any rank."""
    if options.get("hermitian") or (len(arguments) > 1 and arguments[1] is True):
        raise NoRule("model calls pinv with hermitian=True, which has no rule.")
    base = primal(a)
    value = ctx.cached(lambda: torch.linalg.pinv(base, *arguments, **options))
    displaced, change = displaced_matrices(ctx, a), tangents_of(ctx, a).mT
    inverse = torch.linalg.pinv(displaced, *arguments, **options)
    identity_n, identity_k = (torch.eye(size, dtype=value.dtype, device=value.device) for size in base.shape[-2:])
    first = -inverse @ (change.mT @ value)
    second = inverse @ (inverse.mT @ (change @ (identity_n - base @ value)))
    third = (identity_k - inverse @ displaced) @ (change @ (value.mT @ value))
    return with_tangent(ctx, value, (first + second + third).to(ctx.dtype))
