"""The exponential of a matrix: f(A') - f(A) is a block of f of a matrix twice as large, for any analytic f."""

from typing import Any

import torch

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import rule
from nntk.propagation.rules.matrices.systems import displaced_matrices, tangents_of


@rule("matrix_exp", also=[torch.linalg.matrix_exp])
def _matrix_exp(ctx: PropagationContext, a: Any) -> Any:
    """Return the exponential; its unit difference is the upper right block of that of [[A', dA], [0, A]]."""
    base = primal(a).double()
    value, size = ctx.cached(lambda: torch.linalg.matrix_exp(primal(a))), base.shape[-1]
    displaced, change = displaced_matrices(ctx, a), tangents_of(ctx, a)
    lower = torch.cat((torch.zeros_like(base), base), -1).expand(*ctx.leading_shape, *base.shape[:-1], 2 * size)
    blocks = torch.cat((torch.cat((displaced, change), -1), lower), -2)
    ctx.tangent_sizes.append(2 * blocks.numel())
    tangent = torch.linalg.matrix_exp(blocks)[..., :size, size:]
    return with_tangent(ctx, value, tangent.to(ctx.dtype))
