r"""Differences of an MLP's outputs at displaced parameters, in plain torch: definition, CPU backend, tests' oracle.

With the unit displacement E of a layer's weight, e of its bias and the scale s, the unperturbed h and z, and
:math:`d = \Delta h / s`, the layer step is

.. math::
    dz = d W^T + (h + s d) E^T + e, \qquad d' = [\varphi(z + s\,dz) - \varphi(z)] / s.

Nothing is ever subtracted that was not small already, so the relative error does not depend on the scale. The mirrored
half of an antithetic pair has -E and -e: its sign goes to (h + s d), so that both halves are one product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.mlp import Layer, unperturbed
from nntk.kernels.perturb.activations import State, decode
from nntk.kernels.perturb.config import plan
from nntk.kernels.perturb.noise import NOISE, Group, Noise, row_groups
from nntk.kernels.philox.directions import parse

Rounding = Callable[[Tensor], Tensor]
"""Rounds an operand of a product to the precision of the evaluation."""


def round_to_bf16(x: Tensor) -> Tensor:
    """To eight significant bits, ties to even."""
    return x.to(torch.bfloat16).to(x.dtype)


def round_to_tf32(x: Tensor) -> Tensor:
    """To eleven significant bits, ties away from zero, as the GPU's conversion of float32 does."""
    bits = x.float().view(torch.int32)
    # The carry may run into the exponent: that is rounding up to the next power of two. An infinity stays what it is,
    # and the bits of a NaN might run over into the sign.
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
    return torch.where(torch.isfinite(x), rounded, x)


ROUNDINGS: dict[str, Rounding] = {"fp32": lambda x: x, "tf32": round_to_tf32, "bf16": round_to_bf16}


@dataclass(frozen=True)
class _Tile:
    """Some displacements of a group, as one evaluation sees them."""

    noise: Noise
    rows: slice
    """Which rows of the group."""
    scales: Tensor
    """[rows, 1, 1, 1], or [1, 1, 1, 1] where all share one scale."""
    signs: Tensor
    """[halves, 1, 1]: +1, and -1 for the mirrored half of an antithetic pair."""
    rounded: Rounding

    def bias(self, layer: Layer) -> Tensor | None:
        """Unit displacement of the whole bias with its signs: [rows, halves, 1, H]; None if it stays."""
        if layer.bias is None or layer.bias_ordinal is None:
            return None
        return self.signs * self.noise.bias(layer.bias_ordinal, layer.bias, self.rows)[:, None, None, :]


@dataclass(frozen=True)
class _Unmoved:
    """The unperturbed pass, made in float64 and rounded once."""

    layers: list[tuple[Tensor, State]]
    """Of every layer, its inputs h and what its activation keeps of z."""
    outputs: Tensor

    @classmethod
    def of(cls, layers: Sequence[Layer], x: Tensor) -> "_Unmoved":
        """The pass of some inputs, in their dtype."""
        passed, outputs = unperturbed(layers, x)
        kept = [
            (h.to(x.dtype), layer.activation.state(z, x.dtype)) for layer, (h, z) in zip(layers, passed, strict=True)
        ]
        return cls(kept, outputs.to(x.dtype))

    def narrow(self, start: int, stop: int) -> "_Unmoved":
        """The pass of inputs [start, stop)."""
        some = [(h[start:stop], tuple(part[start:stop] for part in state)) for h, state in self.layers]
        return _Unmoved(some, self.outputs[start:stop])


def difference_form(layers: Sequence[Layer], unmoved: _Unmoved, tile: _Tile) -> Tensor:
    """Propagate differences: two products a layer, no cancellation. Returns unit differences [rows, halves, N, C]."""
    d: Tensor | None = None
    for layer, (h, state) in zip(layers, unmoved.layers, strict=True):
        e = tile.bias(layer)
        operand = None if d is None else tile.rounded(d)
        q = None if d is None or layer.weight_ordinal is None else tile.noise.operand(h, d, tile.signs, tile.scales)
        parts = []
        for units in tile.noise.slabs(layer.weight):
            if operand is None:
                dz = _shared_product(layer, h, units, tile)
            elif (moved := _moved_weights(layer, units, tile)) is not None:
                dz = torch.matmul(operand, moved.mT).add_(_shared_product(layer, h, units, tile))
            else:
                dz = torch.matmul(operand, tile.rounded(layer.weight[units]).T)
                if q is not None:
                    tile.noise.product(q.flatten(1, 2), layer, units, tile.rows, onto=dz.flatten(1, 2))
            if e is not None:
                dz += e[..., units]
            parts.append(layer.activation.difference(tuple(part[:, units] for part in state), dz, tile.scales))
        d = _join(parts)
    assert d is not None, "there is at least one layer"
    return d


def _shared_product(layer: Layer, h: Tensor, units: slice, tile: _Tile) -> Tensor:
    """+-h E^T, all of dz at layer 0: one product for both halves of a pair."""
    if layer.weight_ordinal is None:
        return h.new_zeros(tile.rows.stop - tile.rows.start, len(tile.signs), len(h), units.stop - units.start)
    return tile.noise.product(tile.rounded(h), layer, units, tile.rows)[:, None] * tile.signs


def _moved_weights(layer: Layer, units: slice, tile: _Tile) -> Tensor | None:
    """W + s E where the kernels multiply by it: in float32 products of d and q are fewer, and the same."""
    if layer.weight_ordinal is None:
        return None
    return tile.noise.moved_weights(layer, units, tile.rows, tile.scales * tile.signs)


def direct_form(layers: Sequence[Layer], unmoved: _Unmoved, tile: _Tile) -> Tensor:
    """Evaluate f(theta + delta), subtract f(theta): one product a layer; loses digits as the scale falls."""
    h = unmoved.layers[0][0]
    step = tile.scales * tile.signs
    for layer in layers:
        e = tile.bias(layer)
        parts = []
        for units in tile.noise.slabs(layer.weight):
            if layer.weight_ordinal is None:
                z = torch.matmul(h, layer.weight[units].T)
            else:
                z = tile.noise.displaced_product(h, layer, units, tile.rows, step)
            if layer.bias is not None:
                bias = layer.bias[units]
                z = z + (bias if e is None else torch.addcmul(bias, e[..., units], tile.scales))
            parts.append(layer.activation.value(z))
        h = _join(parts)
    return torch.sub(h, unmoved.outputs).div_(tile.scales)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


Form = Callable[[Sequence[Layer], _Unmoved, _Tile], Tensor]
FORMS: dict[str, Form] = {"difference": difference_form, "direct": direct_form}


def mlp_differences(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    rows: Tensor,
    scales: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    pairs: str,
    propagation: str,
    precision: str,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """The op ``nntk::mlp_differences`` for every backend; ordinals of -1 mark tensors that stay."""
    layers = [
        Layer(weight, bias, activation, None if w < 0 else w, None if b < 0 else b)
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]
    signs = torch.tensor([1.0] if pairs == "none" else [1.0, -1.0], dtype=x.dtype, device=x.device)[:, None, None]
    widths = [x.shape[1], *(weight.shape[0] for weight in weights)]
    family, rounded = parse(directions), ROUNDINGS[precision]
    cut = plan(len(x), len(rows), widths, family, len(signs), x.element_size(), max_bytes)
    shared = len(scales) > 0 and bool((scales == scales[0]).all())

    shape = (len(rows), len(x), widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    norms = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    # No inputs are one empty piece: the norms are wanted all the same.
    for inputs in _pieces(0, max(1, len(x)), cut.group_inputs):
        unmoved = _Unmoved.of(layers, x[inputs])
        for group in row_groups(family, rows, cut.group_rows):
            noise = NOISE[family.name](
                Group(family, rows[group], layers, (seed_low, seed_high), cut, rounded, precision)
            )
            for tile_inputs in _pieces(inputs.start, inputs.stop, cut.tile_inputs):
                here = unmoved.narrow(tile_inputs.start - inputs.start, tile_inputs.stop - inputs.start)
                for tile_rows in _pieces(0, len(group), cut.tile_rows):
                    at = group[tile_rows]
                    s = (scales[:1] if shared else scales[at]).to(x.dtype)[:, None, None, None]
                    d = FORMS[propagation](layers, here, _Tile(noise, tile_rows, s, signs, rounded))
                    if pairs == "both":
                        out[:, at, tile_inputs] = d.transpose(0, 1)
                    else:
                        out[at, tile_inputs] = d[:, 0] if pairs == "none" else (d[:, 0] - d[:, 1]).mul_(0.5)
            norms[group] = noise.squared_norms
    return out, norms


def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    max_bytes: int,
) -> Tensor:
    """The op ``nntk::displacement_products`` for every backend."""
    family, (length, width) = parse(directions), q.shape[-2:]
    # Of the weight only its shape is asked.
    layer = Layer(q.new_zeros(()).expand(height, width), weight_ordinal=ordinal)
    cut = plan(length, len(rows), [width, height], family, 1, q.element_size(), max_bytes)
    out = q.new_empty(len(rows), length, height)
    for group in row_groups(family, rows, cut.group_rows):
        noise = NOISE[family.name](Group(family, rows[group], [layer], (seed_low, seed_high), cut, ROUNDINGS["fp32"]))
        for units in noise.slabs(layer.weight):
            for inputs in _pieces(0, length, cut.tile_inputs):
                for tile in _pieces(0, len(group), cut.tile_rows):
                    operand = q[inputs] if q.dim() == 2 else q[group[tile], inputs]
                    out[group[tile], inputs, units] = noise.product(operand, layer, units, tile)
    return out


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
