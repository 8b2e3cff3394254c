"""Operands of products, rounded to the precision of an evaluation; in float32 and float64 they are what they are."""

from typing import Any

import torch
from torch import Tensor

from nntk.kernels.philox import parse
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import DisplacedTensor, primal, rounded_primal


def value_operand(ctx: PropagationContext, operand: Any) -> Tensor:
    """Return an unperturbed value as an operand, [*shape]; it is rounded once for all displacements."""
    value: Tensor = rounded_primal(ctx, operand)
    return ctx.cached(lambda: ctx.products.round(value)) if ctx.products.rounds else value


def displaced_operand(ctx: PropagationContext, x: DisplacedTensor) -> Tensor:
    """Return displaced values a + s da as an operand, [M, members, *shape]."""
    scales = ctx.broadcast_scales(x.tangent.dim() - 2)
    return ctx.products.round(torch.addcmul(x.rounded_primal, x.tangent, scales))


def difference_operand(ctx: PropagationContext, x: DisplacedTensor) -> Tensor:
    """Return the difference of an operand without the factors of the noise, [M, members, *shape].

    What it is multiplied by lacks :attr:`~nntk.propagation.context.PropagationContext.noise_factors`. Noise is exact in
    bfloat16 without them, and all displacements have nearly the same factor, whose rounding would not average out.
    """
    return ctx.products.round(x.tangent / ctx.broadcast_factors(primal(x).dim()))


def noise_operand(ctx: PropagationContext, weight: DisplacedTensor) -> Tensor:
    """Return the noise E of a parameter as an operand, [M, *shape]."""
    assert weight.param_index is not None, "the noise is that of a parameter"
    noise = ctx.group.noise(weight.param_index, primal(weight).shape, ctx.chunk)
    # Numbers of the other families are exact in bfloat16 by definition.
    return ctx.products.round(noise) if parse(ctx.group.directions).name == "lowrank" else noise
