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

from nntk.kernels.mlp import Layer, displaced, unperturbed
from nntk.kernels.perturb.activations import State, decode
from nntk.kernels.perturb.config import Plan, plan
from nntk.kernels.philox.reference import Slab, displacements, slabs_of, unit_slabs


class _Noise:
    """Unit displacements of a group of rows: made whole and kept, or slab by slab, as the plan says."""

    def __init__(self, rows: Tensor, layers: Sequence[Layer], directions: str, key: tuple[int, int], cut: Plan) -> None:
        self._rows, self._directions, self._key, self._plan = rows, directions, key, cut
        self._kept: dict[int, Tensor] = {}
        self._seen: set[tuple[int, int]] = set()
        self.squared_norms = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        """[rows]; complete after an evaluation."""
        if cut.keep_noise:
            tensors = displaced(layers)
            shapes = {ordinal: tuple(tensor.shape) for ordinal, tensor in tensors.items()}
            dtype = layers[0].weight.dtype
            self._kept = displacements(directions, rows, shapes, key, dtype, cut.slab_numbers)
            for noise in self._kept.values():
                self.squared_norms += noise.flatten(1).square().sum(1)

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Ranges of output units that are evaluated together."""
        if self._plan.keep_noise:
            yield slice(0, len(weight))
        else:
            numbers = self._plan.slab_numbers // len(self._rows)
            yield from (slice(slab.start, slab.stop) for slab in slabs_of(0, tuple(weight.shape), numbers))

    def __call__(self, ordinal: int | None, tensor: Tensor, units: slice, tile: slice) -> Tensor | None:
        """Unit displacement of some slices of a tensor, for the rows of a tile; None if the tensor stays."""
        if ordinal is None:
            return None
        if self._plan.keep_noise:
            return self._kept[ordinal][tile, units]
        slab = Slab(ordinal, tuple(tensor.shape), units.start, units.stop)
        (noise,) = unit_slabs(self._directions, self._rows, [slab], self._key, tensor.dtype)
        # A slab is made again for every group of inputs, and for every place of a tied tensor: it counts once.
        if (ordinal, units.start) not in self._seen:
            self._seen.add((ordinal, units.start))
            self.squared_norms += noise.flatten(1).square().sum(1)
        return noise[tile]


@dataclass(frozen=True)
class _Tile:
    """Some displacements of a group, as one evaluation sees them."""

    noise: _Noise
    rows: slice
    """Which rows of the group."""
    scales: Tensor
    """[rows, 1, 1, 1], or [1, 1, 1, 1] where all share one scale."""
    signs: Tensor
    """[halves, 1, 1]: +1, and -1 for the mirrored half of an antithetic pair."""

    def weight(self, layer: Layer, units: slice) -> Tensor | None:
        """Unit displacement of the weights of some units: [rows, units, K]; None if they stay."""
        return self.noise(layer.weight_ordinal, layer.weight, units, self.rows)

    def bias(self, layer: Layer) -> Tensor | None:
        """Unit displacement of the whole bias with its signs: [rows, halves, 1, H]; None if it stays."""
        if layer.bias is None:
            return None
        noise = self.noise(layer.bias_ordinal, layer.bias, slice(0, len(layer.bias)), self.rows)
        return None if noise is None else self.signs * noise[:, None, None, :]


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
        moved = None if d is None else torch.addcmul(tile.signs * h, d, tile.scales * tile.signs)
        e = tile.bias(layer)
        parts = []
        for units in tile.noise.slabs(layer.weight):
            noise = tile.weight(layer, units)
            if d is None or moved is None:
                dz = _first_difference(h, noise, units.stop - units.start, tile)
            else:
                dz = torch.matmul(d, layer.weight[units].T)
                if noise is not None:
                    dz.flatten(1, 2).baddbmm_(moved.flatten(1, 2), noise.mT)
            if e is not None:
                dz += e[..., units]
            parts.append(layer.activation.difference(tuple(part[:, units] for part in state), dz, tile.scales))
        d = _join(parts)
    assert d is not None, "there is at least one layer"
    return d


def _first_difference(h: Tensor, noise: Tensor | None, units: int, tile: _Tile) -> Tensor:
    """Layer 0 has no earlier difference: dz = h E^T for one half, its negative for the other."""
    if noise is None:
        return h.new_zeros(tile.rows.stop - tile.rows.start, len(tile.signs), len(h), units)
    return torch.matmul(h, noise.mT)[:, None] * tile.signs


def direct_form(layers: Sequence[Layer], unmoved: _Unmoved, tile: _Tile) -> Tensor:
    """Evaluate f(theta + delta), subtract f(theta): one product a layer; loses digits as the scale falls."""
    h = unmoved.layers[0][0]
    step = tile.scales * tile.signs
    for layer in layers:
        e = tile.bias(layer)
        parts = []
        for units in tile.noise.slabs(layer.weight):
            noise, weight = tile.weight(layer, units), layer.weight[units]
            z = torch.matmul(h, (weight if noise is None else torch.addcmul(weight, noise[:, None], step)).mT)
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
    num_params = sum(weight.numel() for weight in weights) + sum(widths[1:])
    cut = plan(len(x), len(rows), widths, num_params, len(signs), x.element_size(), max_bytes)
    shared = len(scales) > 0 and bool((scales == scales[0]).all())

    shape = (len(rows), len(x), widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    norms = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    # No inputs are one empty piece: the norms are wanted all the same.
    for inputs in _pieces(0, max(1, len(x)), cut.group_inputs):
        unmoved = _Unmoved.of(layers, x[inputs])
        for group in _pieces(0, len(rows), cut.group_rows):
            noise = _Noise(rows[group], layers, directions, (seed_low, seed_high), cut)
            for tile_inputs in _pieces(inputs.start, inputs.stop, cut.tile_inputs):
                here = unmoved.narrow(tile_inputs.start - inputs.start, tile_inputs.stop - inputs.start)
                for tile_rows in _pieces(group.start, group.stop, cut.tile_rows):
                    s = (scales[:1] if shared else scales[tile_rows]).to(x.dtype)[:, None, None, None]
                    within = slice(tile_rows.start - group.start, tile_rows.stop - group.start)
                    d = FORMS[propagation](layers, here, _Tile(noise, within, s, signs))
                    if pairs == "both":
                        out[:, tile_rows, tile_inputs] = d.transpose(0, 1)
                    else:
                        odd = d[:, 0] if pairs == "none" else (d[:, 0] - d[:, 1]).mul_(0.5)
                        out[tile_rows, tile_inputs] = odd
            norms[group] = noise.squared_norms
    return out, norms


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
