"""Inverse hyperbolic functions and the angle of a point, by addition theorems."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, rounded_primal, with_tangent
from nntk.propagation.doubts import is_short
from nntk.propagation.registry import NoRule, composed, rule
from nntk.propagation.rules.linear import aligned_tangent

_SMALLEST_RADIUS = 2.0**13
"""Smallest share that may be left of the distance from the origin, in epsilons."""


@rule("asinh", "arcsinh")
def _asinh(ctx: PropagationContext, z: Any) -> Any:
    """Return the inverse of sinh, with its difference asinh(b sqrt(1 + a^2) - a sqrt(1 + b^2)) / s for b = a + u."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    a, u = z.rounded_primal, s * z.tangent
    b = a + u
    product, root_a, root_b = a * b, (1 + a * a).sqrt(), (1 + b * b).sqrt()
    # 1 + root_a root_b - a b, where the product may cancel the roots.
    roots = root_a * root_b
    rest = torch.where(product > 0, (1 + a * a + b * b) / (roots + product.abs()), roots - product)
    tangent = torch.asinh(u * (1 + rest) / (root_a + root_b)) / s
    return with_tangent(ctx, ctx.cached(lambda: torch.asinh(base)), tangent)


@composed("acosh", "arccosh")
def _acosh(z: Any) -> Any:
    return 2 * torch.asinh(torch.sqrt((z - 1) / 2))


@rule("atan2", "arctan2")
def _atan2(ctx: PropagationContext, y: Any, x: Any) -> Any:
    """Return the angle of points (x, y); a small difference is the angle of one point, seen from the other."""
    value = ctx.cached(lambda: torch.atan2(primal(y), primal(x)))
    s = ctx.broadcast_scales(value.dim())

    def state() -> tuple[Tensor, Tensor]:
        base_y, base_x = primal(y), primal(x)
        is_cut = (base_y == 0) & base_y.signbit() & ((base_x < 0) | base_x.signbit())
        if not bool(value.isfinite().all() and base_y.isfinite().all() and base_x.isfinite().all()) or is_cut.any():
            raise NoRule("model calls atan2 on values that are not finite, or on a zero with a negative sign.")
        return value.to(ctx.dtype), torch.hypot(base_y, base_x).to(ctx.dtype)

    angle, radius = ctx.cached(state)
    a, b = rounded_primal(ctx, y), rounded_primal(ctx, x)
    da, db = (aligned_tangent(ctx, part, value.dim()) * s for part in (y, x))
    shape = (*ctx.leading_shape, *value.shape)
    displaced_y, displaced_x = (part.expand(shape) for part in (a + da, b + db))
    # The angle jumps by a full turn where y changes its sign at a negative x.
    short = ctx.cached(lambda: is_short(primal(y)).expand(value.shape))
    ctx.doubts.meet_jumps(displaced_y, da.expand(shape), short, lambda: displaced_x < 0)
    displaced_radius, smallest = torch.hypot(displaced_y, displaced_x), _SMALLEST_RADIUS * torch.finfo(ctx.dtype).eps
    ctx.doubts.meet_sensitive(displaced_radius, radius, smallest, zero_is_exact=False)
    far = torch.atan2(displaced_y, displaced_x) - angle
    near = torch.atan2(b * da - a * db, b * displaced_x + a * displaced_y)
    # A point at the origin has no angle from which the other could be seen.
    is_near = (far.abs() < 0.5) & (radius > 0) & (displaced_radius > 0)
    return with_tangent(ctx, value, torch.where(is_near, near, far) / s)
