"""Continuous functions that are evaluated at displaced values in float64, and subtracted there.

The subtraction leaves nine digits of a displacement of a millionth. Smaller ones are refused.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, rounded_primal, with_tangent
from nntk.propagation.registry import COMPOSED, RULES, NoRule, Rule, function_name, functions_named
from nntk.propagation.rules.linear import linear_rule

_LARGEST_ERROR = {torch.float32: 1e-7, torch.float64: 1e-9}
"""Largest error of a subtraction in float64 relative to the difference, by the dtype of the differences."""


def subtracted_rule(function: Callable[..., Any]) -> Rule:
    """Return the rule of a continuous function of floating values, which returns a tensor.

    Args:
        function: The function.

    Returns:
        The rule.
    """

    def apply(ctx: PropagationContext, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
        leaves, tree = tree_flatten((arguments, options))
        positions = [position for position, leaf in enumerate(leaves) if is_displaced(leaf)]
        displaced = [
            primal(leaves[i]).double() + leaves[i].tangent.double() * ctx.broadcast_scales(leaves[i].dim())
            for i in positions
        ]
        rows = []
        for parts in zip(*(part.flatten(0, 1) for part in displaced), strict=True):
            own = list(primal(leaves))
            for position, part in zip(positions, parts, strict=True):
                own[position] = part
            own_arguments, own_options = tree_unflatten(own, tree)
            rows.append(function(*own_arguments, **own_options) - value)
        change = torch.stack(rows).unflatten(0, ctx.leading_shape)
        if change.numel():
            error = torch.finfo(torch.float64).eps * value.abs().max()
            if not bool(error <= _LARGEST_ERROR[ctx.dtype] * change.abs().max()) and bool(change.any()):
                raise NoRule(f"model calls {function_name(function)}, which loses digits at so small displacements.")
        return with_tangent(ctx, value, (change / ctx.broadcast_scales(value.dim())).to(ctx.dtype))

    return apply


_NAMES = (
    "i1", "i0e", "i1e", "bessel_j1", "modified_bessel_i0", "modified_bessel_i1", "log_ndtr", "polygamma", "mvlgamma",
    "multigammaln", "gammainc", "gammaincc", "renorm", "airy_ai", "bessel_y0", "bessel_y1", "modified_bessel_k0",
    "modified_bessel_k1", "scaled_modified_bessel_k0", "scaled_modified_bessel_k1", "spherical_bessel_j0",
)  # fmt: skip
for _function in functions_named(*_NAMES):
    RULES[_function] = subtracted_rule(_function)
for _function in (torch.linalg.eigvalsh, torch.linalg.svdvals, torch.ctc_loss, torch.vander):
    RULES[_function] = subtracted_rule(_function)
RULES[torch.affine_grid_generator] = linear_rule(torch.affine_grid_generator)


def _grid_sample(
    x: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    """Sample values at the positions of a grid, linearly in the values; a displaced grid must not jump."""
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    if is_displaced(grid) and mode == "nearest":
        raise NoRule("model calls grid_sample with a displaced grid and the mode nearest, which has no rule.")
    ctx, apply = (grid.ctx, _sampled) if is_displaced(grid) else (x.ctx, _sampled_linearly)
    with torch._C.DisableTorchFunctionSubclass():
        return apply(ctx, x, grid, **options)


_sampled = subtracted_rule(F.grid_sample)


def _sampled_linearly(ctx: PropagationContext, x: Any, grid: Any, **options: Any) -> Any:
    value = ctx.cached(lambda: F.grid_sample(primal(x), primal(grid), **options))
    places = rounded_primal(ctx, grid)
    tangent = torch.vmap(lambda dx: F.grid_sample(dx, places, **options))(x.tangent.flatten(0, 1))
    return with_tangent(ctx, value, tangent.unflatten(0, ctx.leading_shape))


def _affine_grid(theta: Any, size: Any, align_corners: bool | None = None) -> Any:
    return torch.affine_grid_generator(theta, list(size), bool(align_corners))


COMPOSED[F.grid_sample] = _grid_sample
COMPOSED[F.affine_grid] = _affine_grid
