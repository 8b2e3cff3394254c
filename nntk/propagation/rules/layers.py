"""Layers with displaced weights: the layer step d W^T + (h + s d) E^T + e, for convolutions too; embeddings."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.kernels.cpu import lanes
from nntk.kernels.perturb import displacement_products
from nntk.kernels.philox import split_seed
from nntk.kernels.philox.reference import unit_slabs
from nntk.kernels.philox.slabs import Slab, alignment
from nntk.kernels.philox.source import source_of
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import DisplacedTensor, is_displaced, primal, rounded_primal, with_tangent
from nntk.propagation.registry import NoRule, rule
from nntk.propagation.rules.bilinear.operands import (
    difference_operand,
    displaced_operand,
    noise_operand,
    value_operand,
)
from nntk.propagation.rules.window import Window

_FEWEST_ROWS = 128
"""Rows of a product from which on a displaced weight is formed in less time than it saves."""


_MOST_KEPT = 1 << 20
"""Numbers of displaced weights that are kept for layers that are called again, such as at the next step of time."""


@rule("linear")
def _affine(ctx: PropagationContext, x: Any, weight: Any, bias: Any = None) -> Any:
    if primal(weight).dim() != 2:
        raise NoRule("model calls linear with a vector as weight, which has no rule.")
    value = ctx.cached(lambda: F.linear(*primal((x, weight, bias))))
    if is_displaced(x) and _displaces_weights(ctx, weight, bias, value.numel() // len(weight)):
        return with_tangent(
            ctx, value, _displaced_products(ctx, x, weight, bias).view(*ctx.leading_shape, *value.shape)
        )
    tangent = None
    if is_displaced(x):
        tangent = ctx.products.matmul(ctx.products.round(x.tangent), value_operand(ctx, weight).T)
    if is_displaced(weight):
        width = primal(weight).shape[1]
        if tangent is None:
            products = _weight_products(ctx, weight, value_operand(ctx, x).reshape(-1, width))
        else:
            products = _weight_products(ctx, weight, displaced_operand(ctx, x).reshape(*ctx.leading_shape, -1, width))
        tangent = _accumulate(ctx, tangent, products.reshape(*products.shape[:2], *value.shape), weight)
    return _with_bias(ctx, value, tangent, bias, (-1,))


def _displaces_weights(ctx: PropagationContext, weight: Any, bias: Any, rows: int) -> bool:
    """Return True if displaced weights are formed for a layer: both members of a pair then share a product.

    The form is d (W + s E)^T + h E^T + e. It pays off on a CPU, for enough rows of a parameter whose noise is at hand.
    Where operands are rounded, W + s E would lose digits of s E, and so d and h + s d are the operands.
    """
    if ctx.products.rounds:
        return False
    are_parameters = is_displaced(weight) and all(
        part.param_index is not None for part in (weight, bias) if is_displaced(part)
    )
    return are_parameters and ctx.group.holds_noise and rows >= _FEWEST_ROWS and weight.device.type == "cpu"


def _displaced_products(ctx: PropagationContext, x: DisplacedTensor, weight: DisplacedTensor, bias: Any) -> Tensor:
    """Return the difference of a layer by products with its displaced weights, [M, members, n, H]."""
    noise, displaced = _displaced_weights(ctx, weight)
    width, e = noise.shape[2], _bias_noise(ctx, bias)
    own = x.tangent.reshape(len(displaced), -1, width) @ displaced.mT
    h = rounded_primal(ctx, x).reshape(-1, width)
    shared = h @ noise.mT if e is None else torch.baddbmm(e[:, None], h.expand(len(noise), -1, -1), noise.mT)
    return own.view(*ctx.leading_shape, *shared.shape[1:]).addcmul_(shared[:, None], ctx.broadcast_factors(2))


def _bias_noise(ctx: PropagationContext, bias: Any) -> Tensor | None:
    """Return the noise of a bias, [M, H]; None if it is not displaced."""
    if not is_displaced(bias):
        return None
    noise: Tensor = ctx.group.noise(bias.param_index, primal(bias).shape, ctx.chunk)
    return noise


def _displaced_weights(ctx: PropagationContext, weight: DisplacedTensor) -> tuple[Tensor, Tensor]:
    """Return the noise E of a parameter, [M, *shape], and the displaced parameters W + s E, [M members, *shape]."""
    assert weight.param_index is not None, "the noise is that of a parameter"
    w = rounded_primal(ctx, weight)
    noise = ctx.group.noise(weight.param_index, w.shape, ctx.chunk)
    if weight.param_index in ctx.displaced_weights:
        return noise, ctx.displaced_weights[weight.param_index]
    steps = ctx.broadcast_factors(w.dim()) * ctx.broadcast_scales(w.dim())
    displaced = torch.addcmul(w, noise[:, None], steps).flatten(0, 1)
    ctx.tangent_sizes.append(displaced.numel())
    if displaced.numel() + sum(kept.numel() for kept in ctx.displaced_weights.values()) <= _MOST_KEPT:
        ctx.displaced_weights[weight.param_index] = displaced
    return noise, displaced


def _weight_products(ctx: PropagationContext, weight: DisplacedTensor, q: Tensor) -> Tensor:
    """Return products with the unit displacement of a weight, [M, members, n, H], or [M, 1, n, H] if members agree.

    For a parameter they lack the factors of the noise, which :func:`_accumulate` supplies.

    Args:
        ctx: Context of the evaluation.
        weight: The weight, [H, ...].
        q: Operand of displaced values, [M, members, n, K], or of unperturbed ones, [n, K].

    Returns:
        The products.
    """
    shared = q.dim() == 2
    if weight.param_index is None:
        return ctx.products.matmul(q, _computed_difference(ctx, weight).flatten(3).mT)
    shape, q_rows = primal(weight).shape, q if shared else q.flatten(1, 2)
    if ctx.group.holds_noise:
        products = ctx.products.matmul(q_rows, noise_operand(ctx, weight).flatten(2).mT)
    else:
        stream = (ctx.sample_ids, ctx.group.seed, ctx.group.directions)
        products = displacement_products(q_rows, shape[0], weight.param_index, *stream, ctx.max_bytes)
    return products[:, None] if shared else products.unflatten(1, q.shape[1:3])


def _computed_difference(ctx: PropagationContext, weight: DisplacedTensor) -> Tensor:
    """Return the difference of a weight that is no parameter, as an operand: where it is rounded, without factors."""
    return difference_operand(ctx, weight) if ctx.products.rounds else weight.tangent


def _accumulate(ctx: PropagationContext, total: Tensor | None, products: Tensor, weight: DisplacedTensor) -> Tensor:
    """Add the products with a displaced weight to a total in place; without a total they become it.

    The noise of a parameter is multiplied by its factors. A weight that is computed from displaced values has them in
    its difference already, unless this was rounded.

    Args:
        ctx: Context of the evaluation.
        total: Difference so far, [M, members, *shape], which is overwritten; None if there is none.
        products: Products as :func:`_weight_products` returns them, [M, members or 1, *shape].
        weight: The weight.

    Returns:
        The total.
    """
    if weight.param_index is None and not ctx.products.rounds:
        return products if total is None else total.add_(products)
    factors = ctx.broadcast_factors(products.dim() - 2)
    return products * factors if total is None else total.addcmul_(products, factors)


def _with_bias(
    ctx: PropagationContext, value: Tensor, tangent: Tensor | None, bias: Any, shape: tuple[int, ...]
) -> Any:
    """Return a layer's result, after adding the difference of the bias in this shape of the value's last axes."""
    if is_displaced(bias):
        e = bias.tangent.view(*ctx.leading_shape, *[1] * (value.dim() - len(shape)), *shape)
        tangent = e if tangent is None else tangent.add_(e)
    assert tangent is not None, "a rule is called for displaced operands alone"
    return with_tangent(ctx, value, tangent)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    ctx: PropagationContext, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    dims, settings = primal(weight).dim() - 2, {"stride": stride, "padding": padding, "dilation": dilation}
    convolve = partial(getattr(F, f"conv{dims}d"), groups=groups, **settings)
    if dims < 3 and groups == 1 and multiplies_patches(primal(weight).device):
        return _convolved(
            ctx, x, weight, bias, convolve, lambda value: _patch_products(ctx, x, weight, value, **settings)
        )
    return _convolved(ctx, x, weight, bias, convolve)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    ctx: PropagationContext, x: Any, weight: Any, bias: Any = None, *arguments: Any, **options: Any
) -> Any:
    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        function = getattr(F, f"conv_transpose{weight.dim() - 2}d")
        result: Tensor = function(x, weight, bias, *arguments, **options)
        return result

    return _convolved(ctx, x, weight, bias, convolve)


def _convolved(
    ctx: PropagationContext, x: Any, weight: Any, bias: Any, convolve: Callable[..., Tensor],
    weight_products: Callable[[Tensor], Tensor] | None = None,
) -> Any:  # fmt: skip
    """Return the result of a convolution of any kind.

    Args:
        ctx: Context of the evaluation.
        x: Inputs of the layer.
        weight: Weight of the layer.
        bias: Bias of the layer, or None.
        convolve: The convolution of inputs with a weight, and a bias if given.
        weight_products: Function from the value to the part of the difference that the weight's displacement adds;
            None to convolve with one displacement after another.

    Returns:
        The value with its difference.

    Raises:
        NoRule: If the inputs have no batch axis.
    """
    dims = primal(weight).dim()
    if primal(x).dim() != dims:
        raise NoRule("model calls a convolution on inputs without a batch axis, which has no rule.")
    value = ctx.cached(lambda: convolve(*primal((x, weight, bias))))
    rows = math.prod(value.shape) // value.shape[1]
    if is_displaced(x) and _displaces_weights(ctx, weight, bias, rows):
        return with_tangent(ctx, value, _displaced_convolutions(ctx, x, weight, bias, convolve, value.shape))
    tangent = None
    if is_displaced(x):
        differences = ctx.products.round(x.tangent).flatten(0, 2)
        flat = ctx.products.multiply(convolve, differences, value_operand(ctx, weight))
        tangent = flat.unflatten(0, x.tangent.shape[:3])
    if is_displaced(weight):
        products = weight_products(value) if weight_products else _one_by_one(ctx, x, weight, convolve)
        tangent = _accumulate(ctx, tangent, products, weight)
    return _with_bias(ctx, value, tangent, bias, (-1, *[1] * (dims - 2)))


def _displaced_convolutions(
    ctx: PropagationContext, x: DisplacedTensor, weight: DisplacedTensor, bias: Any, convolve: Callable[..., Tensor],
    shape: torch.Size,
) -> Tensor:  # fmt: skip
    """Return the difference by convolutions with one displaced weight after another, [M, members, *shape]."""
    noise, displaced = _displaced_weights(ctx, weight)
    h, d, e, factors = rounded_primal(ctx, x), x.tangent, _bias_noise(ctx, bias), ctx.noise_factors.tolist()
    weights = displaced.unflatten(0, ctx.leading_shape)
    tangent: Tensor = h.new_empty(*ctx.leading_shape, *shape)

    def convolve_displacement(m: int) -> None:
        shared = convolve(h, noise[m], None if e is None else e[m])
        for member, factor in enumerate(factors[m]):
            torch.add(convolve(d[m, member], weights[m, member]), shared, alpha=factor, out=tangent[m, member])

    # Each thread has convolutions of its own: a small one that all threads share is little faster than on one.
    lanes.run(range(len(d)), lambda: convolve_displacement, len(d), products=True)
    return tangent


def multiplies_patches(device: torch.device) -> bool:
    """Return True if convolutions on a device are products with patches, False for one displacement after another."""
    # On a GPU a few large launches are fastest, and the layer step generates noise where it is used. On a CPU patches
    # cost nine times the memory traffic, and each convolution is fast.
    return device.type != "cpu"


def _patch_products(
    ctx: PropagationContext, x: Any, weight: DisplacedTensor, value: Tensor, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """Return products of all patches, [n P, C k], with the weight's displacement, by the layer step."""
    window = Window.from_settings(tuple(primal(weight).shape[2:]), stride, padding, dilation)
    if is_displaced(x):
        q = window.patches(displaced_operand(ctx, x).flatten(0, 2)).unflatten(0, (*ctx.leading_shape, -1))
        ctx.tangent_sizes.append(q.numel())
    else:
        q = ctx.cached(lambda: window.patches(ctx.products.round(primal(x).to(ctx.dtype))))
    n, channels, *size = value.shape
    flat = _weight_products(ctx, weight, q)
    products = flat.reshape(*flat.shape[:2], n, *size, channels)
    result: Tensor = products.movedim(-1, 3)
    return result


def _one_by_one(ctx: PropagationContext, x: Any, weight: DisplacedTensor, convolve: Callable[..., Tensor]) -> Tensor:
    """Convolve with one displacement of the weight after another."""
    if weight.param_index is None:
        # For a weight that is computed from displaced values, the two members are not mirror images.
        return _each_member(ctx, x, weight, convolve)
    noise = noise_operand(ctx, weight)
    if not is_displaced(x):
        return _convolutions(ctx, convolve, repeat(value_operand(ctx, x), len(noise)), noise)[:, None]
    products = _convolutions(ctx, convolve, displaced_operand(ctx, x).flatten(1, 2), noise)
    return products.view(*ctx.leading_shape, -1, *products.shape[2:])


def _convolutions(
    ctx: PropagationContext, convolve: Callable[..., Tensor], values: Iterable[Tensor], weights: Tensor
) -> Tensor:
    """Return the convolutions of values with a weight each, [K, ...], of weights [K, ...]."""
    pairs = list(zip(values, weights, strict=True))
    if weights.device.type != "cpu" or len(pairs) < 2:
        return torch.stack([ctx.products.multiply(convolve, *pair) for pair in pairs])
    first = convolve(*pairs[0])
    results = first.new_empty(len(pairs), *first.shape)
    results[0] = first

    def convolve_pair(number: int) -> None:
        results[number] = convolve(*pairs[number])

    lanes.run(range(1, len(pairs)), lambda: convolve_pair, len(pairs), products=True)
    return results


def _each_member(ctx: PropagationContext, x: Any, weight: DisplacedTensor, convolve: Callable[..., Tensor]) -> Tensor:
    """Convolve with the difference of a computed weight in each member, [M, members, *shape]."""
    tangents = _computed_difference(ctx, weight)
    if is_displaced(x):
        values: Iterable[Tensor] = displaced_operand(ctx, x).flatten(0, 1)
    else:
        values = repeat(value_operand(ctx, x), len(tangents) * ctx.members)
    products: Tensor = _convolutions(ctx, convolve, values, tangents.flatten(0, 1)).unflatten(0, ctx.leading_shape)
    return products


@rule("embedding")
def _embedding(
    ctx: PropagationContext, tokens: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, **options: Any
) -> Any:
    """Return the rows that are looked up; noise that is not held is generated for their slabs alone."""
    if max_norm is not None or is_displaced(tokens):
        raise NoRule("model calls embedding with max_norm or with displaced tokens, which have no rule.")
    indices = primal(tokens)
    value = ctx.cached(lambda: F.embedding(indices, primal(weight)))
    if weight.param_index is None or ctx.group.holds_noise:
        return with_tangent(ctx, value, weight.tangent[:, :, indices])
    shape = tuple(primal(weight).shape)
    align = alignment(shape)
    blocks, block_of_index = ctx.cached(
        lambda: torch.unique(indices.div(align, rounding_mode="floor"), return_inverse=True)
    )
    slabs = [Slab(weight.param_index, shape, n * align, min(n * align + align, shape[0])) for n in blocks.tolist()]
    source, key = source_of(ctx.sample_ids.device), split_seed(ctx.group.seed)
    noise = unit_slabs(ctx.group.directions, ctx.sample_ids, slabs, key, ctx.dtype, source)
    table = torch.cat([F.pad(slab, (0, 0, 0, align - slab.shape[1])) for slab in noise], 1)
    e = table[:, block_of_index * align + indices % align]
    return with_tangent(ctx, value, e[:, None] * ctx.broadcast_factors(value.dim()))
