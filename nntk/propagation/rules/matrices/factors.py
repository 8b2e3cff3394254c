"""Factors of matrices: those of Cholesky, and products of Householder's reflections."""

from typing import Any

import torch

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import COMPOSED, composed
from nntk.propagation.rules.matrices.systems import displaced_matrices, tangents_of


def _lower_factor(ctx: PropagationContext, a: Any) -> Any:
    """Return L with A = L L^T; the difference is L Z, where Z is the lower triangle of W = L^-1 dA L'^-T.

    The diagonal of W is the sum of dl / l and dl / l', and so that of Z is W / (1 + l / l').
    """
    value = ctx.cached(lambda: torch.linalg.cholesky(primal(a)))
    factor = torch.linalg.cholesky(displaced_matrices(ctx, a))
    # The upper triangle is not read.
    change = tangents_of(ctx, a).tril()
    change = change + change.tril(-1).mT
    left = torch.linalg.solve_triangular(value.double(), change, upper=False)
    w = torch.linalg.solve_triangular(factor, left.mT, upper=False).mT
    ratios = value.diagonal(dim1=-2, dim2=-1) / factor.diagonal(dim1=-2, dim2=-1)
    z = w.tril(-1) + torch.diag_embed(w.diagonal(dim1=-2, dim2=-1) / (1 + ratios))
    return with_tangent(ctx, value, (value.double() @ z).to(ctx.dtype))


def _cholesky(a: Any, upper: bool = False, out: None = None) -> Any:
    matrices = a.mT if upper else a
    with torch._C.DisableTorchFunctionSubclass():
        factor = _lower_factor(matrices.ctx, matrices)
    return factor.mT if upper else factor


composed("cholesky")(_cholesky)
COMPOSED[torch.linalg.cholesky] = _cholesky


def _householder_product(vectors: Any, factors: Any) -> Any:
    """Apply the reflections I - t v v^T to the first columns of the identity, the last one first."""
    rows, columns = vectors.shape[-2:]
    reflections = torch.tril(vectors, -1) + torch.eye(rows, columns, dtype=vectors.dtype, device=vectors.device)
    product = torch.eye(rows, columns, dtype=vectors.dtype, device=vectors.device)
    for k in reversed(range(factors.shape[-1])):
        v = reflections[..., k : k + 1]
        product = product - factors[..., k : k + 1, None] * (v @ (v.mT @ product))
    return product


COMPOSED[torch.linalg.householder_product] = _householder_product
COMPOSED[torch.orgqr] = COMPOSED[torch.Tensor.orgqr] = _householder_product
