"""Products of sparse matrices, which no displacement changes, with displaced values."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.registry import RULES, NoRule, Rule, functions_named


def _sparse_product(ctx: PropagationContext, matrix: Any, x: Any) -> Any:
    """Return the product of a sparse matrix [n, k] with values [k, c] or [k]."""
    sparse, displaced = primal(matrix), x
    if is_displaced(matrix) or not isinstance(x, Tensor) or sparse.dim() != 2 or primal(x).dim() > 2:
        raise NoRule("model multiplies with a displaced sparse matrix, or with more than a matrix, without a rule.")
    value, rounded = ctx.cached(lambda: (sparse @ primal(x), sparse.to(ctx.dtype)))
    columns = displaced.tangent.movedim(2, 0)
    product = rounded @ columns.reshape(len(columns), -1)
    return with_tangent(ctx, value, product.reshape(-1, *columns.shape[1:]).movedim(0, 2))


def _with_sparse_matrices(dense: Rule) -> Rule:
    """Return the rule of a product, whose first operand may be sparse; ``dense`` is the rule if it is not."""

    def multiply(ctx: PropagationContext, a: Any, b: Any) -> Any:
        if any(primal(part).layout != torch.strided for part in (a, b)):
            return _sparse_product(ctx, a, b)
        return dense(ctx, a, b)

    return multiply


for _function in functions_named("matmul", "mm", "mv", "__matmul__"):
    RULES[_function] = _with_sparse_matrices(RULES[_function])
for _function in (torch.sparse.mm, torch.smm, torch.Tensor.smm):
    RULES[_function] = _with_sparse_matrices(RULES[torch.mm])
