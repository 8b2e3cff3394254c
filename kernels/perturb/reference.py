r"""Differences of an MLP's outputs at displaced parameters, in plain torch, blocked for a CPU's caches or a budget.

This is the backend of every device without kernels of its own, and the oracle of each precision for the kernels. It is
tuned: read definition.py first, which states what is computed. Let E be the unit displacement of a layer's weight, e of
its bias, and h, z the unperturbed activations. The scale is :math:`s = \rho\sigma`, with a power of two
:math:`\sigma` and :math:`1 \le \rho < 2`. With :math:`d = \Delta h / \sigma` the layer step is

.. math::
    dz = d W^T + \rho\,[(h + \sigma d) E^T + e], \qquad d' = [\varphi(z + \sigma\,dz) - \varphi(z)] / \sigma.

No two nearly equal numbers are subtracted, so the relative error does not depend on the scale. Division by
:math:`\sigma` is exact, so differences of +-1 stay +-2 / :math:`\sigma`, their sums stay exact, and a pre-activation
that is exactly zero at the displaced parameters comes out as zero. Where sums are not exact, ties.py decides. The minus
member of an antithetic pair has -E and -e. Its sign is given to the product or to h + :math:`\sigma` d instead, so that
one product serves both members.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nntk.kernels.activations import State, decode
from nntk.kernels.mlp import Layer, unperturbed
from nntk.kernels.perturb.config import plan_reference
from nntk.kernels.perturb.exactness import with_integer_rows
from nntk.kernels.perturb.noise import NOISE, DisplacementGroup, Noise, split_into_groups
from nntk.kernels.perturb.ties import TieBreaker, tie_breaker
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.source import PLAIN, Source
from nntk.kernels.slices import slices

Rounding = Callable[[Tensor], Tensor]
"""Function that rounds an operand of a product to the precision of the evaluation."""


def round_to_bf16(x: Tensor) -> Tensor:
    """Round to eight significant bits, ties to even."""
    return x.to(torch.bfloat16).to(x.dtype)


def round_to_tf32(x: Tensor) -> Tensor:
    """Round to eleven significant bits, ties away from zero, as the GPU converts float32."""
    bits = x.float().view(torch.int32)
    # A carry into the exponent rounds up to the next power of two, which is right. Infinities and NaN are excluded: the
    # carry of a NaN could reach the sign bit.
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
    return torch.where(torch.isfinite(x), rounded, x)


ROUNDINGS: dict[str, Rounding] = {"fp32": lambda x: x, "tf32": round_to_tf32, "bf16": round_to_bf16}
"""Rounding of each precision."""


@dataclass(frozen=True)
class _EvaluationTile:
    """Displacements of a group that are evaluated together."""

    noise: Noise
    samples: slice
    """Range of the displacements in the group."""
    scales: Tensor
    """Scales s, [samples, 1, 1, 1], or [1, 1, 1, 1] where all displacements share one scale."""
    signs: Tensor
    """Signs of the members, [members, 1, 1]: +1, and -1 for the minus member of an antithetic pair."""
    round_operand: Rounding
    tie_breaker: TieBreaker | None = None
    """Evaluation of ties; None where there are none that propagation does not carry exactly."""
    shared_mantissa: float | None = None
    """Mantissa rho of all scales, where displacements share one scale: the host reads it once a call."""

    @cached_property
    def powers(self) -> Tensor:
        """Powers of two sigma, the largest that do not exceed the scales; in the shape of the scales."""
        return self.scales / self.mantissas

    @cached_property
    def mantissas(self) -> Tensor:
        """Mantissas rho = s / sigma in [1, 2), exact; in the shape of the scales."""
        return 2 * torch.frexp(self.scales).mantissa

    @cached_property
    def factor(self) -> float | Tensor:
        """Mantissas as a factor of products with noise: one number, or one for each displacement, [samples, 1, 1]."""
        if self.shared_mantissa is not None:
            return self.shared_mantissa
        return float(self.mantissas) if self.mantissas.numel() == 1 else self.mantissas[:, 0]

    def evaluate_ties(self, x: Tensor, near: Tensor, out: Tensor) -> None:
        """Replace differences that rounding at a jump may have spoilt.

        Args:
            x: Inputs of the network, [N, K].
            near: Pairs of a displacement and an input, [samples, N].
            out: Unit differences, [samples, members, N, C], of which those of the pairs are replaced.
        """
        if self.tie_breaker is not None and bool(near.any()):
            sample_ids = self.noise.sample_ids[self.samples]
            scales = self.scales.flatten().expand(len(sample_ids))
            self.tie_breaker.evaluate(x, sample_ids, scales, len(self.signs), near, out)

    def bias(self, layer: Layer) -> Tensor | None:
        """Return the signed unit displacements of the bias, [samples, members, 1, H]; None if it is not displaced."""
        if layer.bias is None or layer.bias_ordinal is None:
            return None
        return self.signs * self.noise.bias(layer.bias_ordinal, layer.bias, self.samples)[:, None, None, :]


@dataclass(frozen=True)
class UnperturbedPass:
    """Results of the unperturbed forward pass, which is computed in float64 and rounded once."""

    layers: list[tuple[Tensor, State]]
    """Inputs h of every layer, and the state that its activation keeps of z."""
    outputs: Tensor

    @classmethod
    def evaluate(cls, layers: Sequence[Layer], x: Tensor) -> "UnperturbedPass":
        """Evaluate the layers at the inputs ``x``; the results have the dtype of ``x``."""
        float64_layers, outputs = unperturbed(layers, x)
        rounded = [
            (h.to(x.dtype), layer.activation.state(z, x.dtype))
            for layer, (h, z) in zip(layers, float64_layers, strict=True)
        ]
        return cls(rounded, outputs.to(x.dtype))

    @classmethod
    def joined(cls, parts: Sequence["UnperturbedPass"]) -> "UnperturbedPass":
        """Return the results for the inputs of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        layers = [
            (
                torch.cat([h for h, _ in same_layer]),
                tuple(torch.cat(same_part) for same_part in zip(*(state for _, state in same_layer), strict=True)),
            )
            for same_layer in zip(*(part.layers for part in parts), strict=True)
        ]
        return cls(layers, torch.cat([part.outputs for part in parts]))

    def narrow(self, start: int, stop: int) -> "UnperturbedPass":
        """Return the results for the inputs [start, stop)."""
        layers = [(h[start:stop], tuple(part[start:stop] for part in state)) for h, state in self.layers]
        return UnperturbedPass(layers, self.outputs[start:stop])


def propagate_differences(layers: Sequence[Layer], base_pass: UnperturbedPass, tile: _EvaluationTile) -> Tensor:
    """Propagate differences through the layers: two products a layer, and no cancellation.

    Args:
        layers: The MLP.
        base_pass: Results of the unperturbed pass for N inputs.
        tile: Displacements.

    Returns:
        Unit differences, [samples, members, N, C].
    """
    d: Tensor | None = None
    near_jumps: list[Tensor] = []
    for number, (layer, (h, state)) in enumerate(zip(layers, base_pass.layers, strict=True)):
        e = tile.bias(layer)
        operand = None if d is None else tile.round_operand(d)
        q = None if d is None or layer.weight_ordinal is None else tile.noise.operand(h, d, tile.signs, tile.powers)
        breaker = tile.tie_breaker if tile.tie_breaker is not None and tile.tie_breaker.has_ties[number] else None
        errors = None
        if breaker is not None and d is not None:
            errors = breaker.rounding_error(number, h, d, q, tile.powers, tile.mantissas)
        blocks = []
        for units in tile.noise.slabs(layer.weight):
            if operand is None:
                dz = _signed_product(layer, h, units, tile)
            elif (displaced := _displaced_weights(layer, units, tile)) is not None:
                dz = torch.matmul(operand, displaced.mT).add_(_signed_product(layer, h, units, tile))
            else:
                dz = torch.matmul(operand, tile.round_operand(layer.weight[units]).T)
                if q is not None:
                    tile.noise.add_product(dz.flatten(1, 2), q.flatten(1, 2), layer, units, tile.samples, tile.factor)
            if e is not None:
                dz.addcmul_(e[..., units], tile.mantissas)
            unit_state = tuple(part[:, units] for part in state)
            if breaker is not None and errors is not None:
                near_jumps.append(breaker.near_jumps(number, units, unit_state, dz, tile.powers, errors))
            blocks.append(layer.activation.difference(unit_state, dz, tile.powers))
        d = _join_units(blocks)
    assert d is not None, "there is at least one layer"
    d = d.div_(tile.mantissas)
    if near_jumps:
        tile.evaluate_ties(base_pass.layers[0][0], torch.stack(near_jumps).any(0), d)
    return d


def _signed_product(layer: Layer, h: Tensor, units: slice, tile: _EvaluationTile) -> Tensor:
    """Return +-rho h E^T, which is all of dz at layer 0; both members of a pair share one product."""
    if layer.weight_ordinal is None:
        return h.new_zeros(tile.samples.stop - tile.samples.start, len(tile.signs), len(h), units.stop - units.start)
    return tile.noise.product(tile.round_operand(h), layer, units, tile.samples)[:, None] * (
        tile.mantissas * tile.signs
    )


def _displaced_weights(layer: Layer, units: slice, tile: _EvaluationTile) -> Tensor | None:
    """Return W + s E where the kernels multiply by it; in float32 products with d and q are fewer and give the same."""
    if layer.weight_ordinal is None:
        return None
    return tile.noise.displaced_weights(layer, units, tile.samples, tile.scales * tile.signs)


def evaluate_directly(layers: Sequence[Layer], base_pass: UnperturbedPass, tile: _EvaluationTile) -> Tensor:
    """Evaluate f(theta + delta) and subtract f(theta): one product a layer, but digits are lost as the scale falls.

    Args:
        layers: The MLP.
        base_pass: Results of the unperturbed pass for N inputs.
        tile: Displacements.

    Returns:
        Unit differences, [samples, members, N, C].
    """
    h = base_pass.layers[0][0]
    step = tile.scales * tile.signs
    for layer in layers:
        e = tile.bias(layer)
        blocks = []
        for units in tile.noise.slabs(layer.weight):
            if layer.weight_ordinal is None:
                z = torch.matmul(h, layer.weight[units].T)
            else:
                z = tile.noise.displaced_product(h, layer, units, tile.samples, step)
            if layer.bias is not None:
                bias = layer.bias[units]
                z = z + (bias if e is None else torch.addcmul(bias, e[..., units], tile.scales))
            blocks.append(layer.activation.value(z))
        h = _join_units(blocks)
    return torch.sub(h, base_pass.outputs).div_(tile.scales)


def _join_units(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


Form = Callable[[Sequence[Layer], UnperturbedPass, _EvaluationTile], Tensor]
FORMS: dict[str, Form] = {"difference": propagate_differences, "direct": evaluate_directly}
"""Implementation of each propagation."""


def mlp_differences(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    sample_ids: Tensor,
    scales: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    pairs: str,
    propagation: str,
    precision: str,
    max_bytes: int,
    source: Source = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Evaluate the op ``nntk::mlp_differences`` on any device; an ordinal of -1 marks a tensor without displacement."""
    layers = [
        Layer(weight, bias, activation, None if w < 0 else w, None if b < 0 else b)
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]
    layers = with_integer_rows(layers) if propagation == "difference" else layers
    signs = x.new_ones(1 if pairs == "none" else 2, 1, 1)
    signs[1:] = -1
    widths = [x.shape[1], *(weight.shape[0] for weight in weights)]
    family, key = parse(directions), (seed_low, seed_high)
    plan = plan_reference(
        len(x), len(sample_ids), widths, family, len(signs), x.element_size(), max_bytes, x.device.type == "cpu"
    )  # fmt: skip
    breaker = tie_breaker(layers, precision, directions, key, plan.slab_numbers, source)
    if breaker is not None:
        # A rounding error of a low precision cannot be told from a difference, so ties are evaluated in full precision.
        precision = "fp32"
    round_operand = ROUNDINGS[precision]
    one_scale = len(scales) > 0 and bool((scales == scales[0]).all())
    shared_mantissa = 2 * math.frexp(float(scales[:1].to(x.dtype)))[0] if one_scale else None

    shape = (len(sample_ids), len(x), widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    norms = torch.empty(len(sample_ids), dtype=torch.float64, device=x.device)
    # Without inputs there is one empty block, since the norms are returned all the same.
    for block in slices(max(1, len(x)), plan.block_inputs):
        base_pass = UnperturbedPass.evaluate(layers, x[block])
        for indices in split_into_groups(family, sample_ids, plan.group_samples):
            group = DisplacementGroup(family, sample_ids[indices], layers, key, plan, round_operand, precision, source)
            noise = NOISE[family.name](group)
            for inputs in slices(block.stop, plan.tile_inputs, block.start):
                tile_pass = base_pass.narrow(inputs.start - block.start, inputs.stop - block.start)
                for samples in slices(len(indices), plan.tile_samples):
                    tile_indices = indices[samples]
                    s = (scales[:1] if one_scale else scales[tile_indices]).to(x.dtype)[:, None, None, None]
                    tile = _EvaluationTile(noise, samples, s, signs, round_operand, breaker, shared_mantissa)
                    d = FORMS[propagation](layers, tile_pass, tile)
                    if pairs == "both":
                        out[:, tile_indices, inputs] = d.transpose(0, 1)
                    else:
                        out[tile_indices, inputs] = d[:, 0] if pairs == "none" else (d[:, 0] - d[:, 1]).mul_(0.5)
            norms[indices] = noise.squared_norms
    return out, norms


def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    max_bytes: int,
    source: Source = PLAIN,
) -> Tensor:
    """Evaluate the op ``nntk::displacement_products`` on any device, with noise from a source."""
    family, (length, width) = parse(directions), q.shape[-2:]
    # Only the shape of this weight is read.
    layer = Layer(q.new_zeros(()).expand(height, width), weight_ordinal=ordinal)
    plan = plan_reference(
        length, len(sample_ids), [width, height], family, 1, q.element_size(), max_bytes, q.device.type == "cpu"
    )  # fmt: skip
    out = q.new_empty(len(sample_ids), length, height)
    for indices in split_into_groups(family, sample_ids, plan.group_samples):
        key, identity = (seed_low, seed_high), ROUNDINGS["fp32"]
        group = DisplacementGroup(family, sample_ids[indices], [layer], key, plan, identity, source=source)
        noise = NOISE[family.name](group)
        for units in noise.slabs(layer.weight):
            for inputs in slices(length, plan.tile_inputs):
                for samples in slices(len(indices), plan.tile_samples):
                    operand = q[inputs] if q.dim() == 2 else q[indices[samples], inputs]
                    out[indices[samples], inputs, units] = noise.product(operand, layer, units, samples)
    return out
