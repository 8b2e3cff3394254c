r"""Pre-activations within rounding of a jump: found while differences are propagated, and decided in float64.

In the layers that exactness.py names, a displaced pre-activation may lie exactly on a jump, and propagation leaves it
beside the jump by a rounding error. The pairs of a displacement and an input for which that happens are evaluated once
more, in float64. There, a pre-activation that is still within rounding of a jump takes the side on which PyTorch puts
it when it evaluates the model at :math:`\theta \pm \delta`. All other differences are propagated as usual, so that they
keep their digits at every scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

from nntk.kernels.activations import State
from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb.exactness import layers_with_ties, signs_may_cancel
from nntk.kernels.philox.reference import unit_displacements
from nntk.kernels.philox.source import Source
from nntk.kernels.slices import slices

_ROUNDING_ERRORS = 4
"""Machine epsilons, relative to the product of the norms of both operands, within which a sum counts as rounded."""


_ROUNDED_ZERO = 1000
"""Machine epsilons, relative to what was subtracted, below which displaced inputs count as zero."""

_FEW_INPUTS = 32
"""Inputs that are all evaluated where one of them must be."""

_ROWS_OF_A_PRODUCT = 4
"""Rows that a product of float64 on a CPU takes together."""


@dataclass(frozen=True)
class TieBreaker:
    """Finds and evaluates the ties of one evaluation."""

    layers: Sequence[Layer]
    has_ties: Sequence[bool]
    """True for each layer that may have ties; see :func:`nntk.kernels.perturb.exactness.layers_with_ties`."""
    directions: str
    key: tuple[int, int]
    slab_numbers: int
    """Random numbers generated together."""
    source: Source
    """Source of normals and signs."""

    @cached_property
    def _weight_norms(self) -> list[float]:
        """Largest norm of a row of each weight; zero where it is not read."""
        return [
            float(torch.linalg.vector_norm(layer.weight, dim=1).max()) if tied else 0.0
            for layer, tied in zip(self.layers, self.has_ties, strict=True)
        ]

    @cached_property
    def _fixed_units(self) -> list[Tensor | None]:
        """Units whose pre-activation never changes, [H], since their weights are zero and not displaced; or None."""
        fixed = [
            (layer.weight == 0).all(1) if tied and layer.weight_ordinal is None else None
            for layer, tied in zip(self.layers, self.has_ties, strict=True)
        ]
        return [None if units is None or not units.any() else units for units in fixed]

    @cached_property
    def _needs_zero_inputs(self) -> list[bool]:
        """True for each layer whose noise keeps its pre-activations off the jumps unless all of its inputs are zero."""
        name = self.directions.partition("(")[0]
        return [layer.weight_ordinal is not None and not signs_may_cancel(layer, name) for layer in self.layers]

    def rounding_error(
        self, number: int, h: Tensor, d: Tensor, q: Tensor | None, powers: Tensor, mantissas: Tensor
    ) -> Tensor:
        """Bound the rounding errors of the displaced pre-activations of a layer.

        Propagation rounds to the dtype of ``d``. The unperturbed pass and the evaluation that decides round to float64.

        Args:
            number: Number of the layer, behind layer 0.
            h: Unperturbed inputs of the layer, [N, K].
            d: Differences of its inputs divided by sigma, [samples, members, N, K].
            q: Displaced inputs, up to their sign, in the shape of ``d``; None where the weight is not displaced.
            powers: Powers of two sigma, [samples or 1, 1, 1, 1].
            mantissas: Mantissas rho, like ``powers``.

        Returns:
            The bounds in units of z, [samples, members, N, 1]; zero where no input changes, and where noise keeps all
            pre-activations off the jumps.
        """
        weight_norm = self._weight_norms[number]
        size = weight_norm * _norm(d)
        if q is not None:
            noisy = _norm(q)
            size = size + (d.shape[-1] ** 0.5 * mantissas) * noisy
            if self._needs_zero_inputs[number]:
                rounded_to_zero = _ROUNDED_ZERO * torch.finfo(d.dtype).eps * (_norm(h) + powers * _norm(d))
                size = torch.where(noisy <= rounded_to_zero, size, torch.zeros_like(size))
        propagated = size * (_ROUNDING_ERRORS * torch.finfo(d.dtype).eps * powers)
        evaluated = _evaluation_error(weight_norm * _norm(h), self.layers[number]).to(d.dtype)
        return torch.where(propagated > 0, propagated + evaluated, propagated)

    def near_jumps(self, number: int, units: slice, state: State, dz: Tensor, powers: Tensor, errors: Tensor) -> Tensor:
        """Find the evaluations in which a unit lies within the rounding error of a jump.

        Args:
            number: Number of the layer.
            units: Range of its units.
            state: State of these units.
            dz: Differences of their pre-activations divided by sigma, [samples, members, N, units].
            powers: Powers of two sigma, [samples or 1, 1, 1, 1].
            errors: Result of :meth:`rounding_error`.

        Returns:
            True or False, [samples, N]; both members of a pair count.
        """
        near = (self.layers[number].activation.jump_distance(state, dz, powers) <= errors) & (errors > 0)
        fixed = self._fixed_units[number]
        if fixed is not None:
            near &= ~fixed[units]
        return near.any(-1).any(1)

    def evaluate(self, x: Tensor, sample_ids: Tensor, scales: Tensor, members: int, near: Tensor, out: Tensor) -> None:
        """Evaluate pairs of a displacement and an input in float64.

        Args:
            x: Inputs, [N, K].
            sample_ids: Stream numbers of the displacements, [samples].
            scales: Their scales s, [samples].
            members: 1, or 2 for antithetic pairs.
            near: The pairs that must be evaluated, [samples, N].
            out: Unit differences, [samples, members, N, C]; those of the pairs that are evaluated are replaced.
        """
        chosen = near.any(1).nonzero()[:, 0]
        largest = max(tensor.numel() for tensor in displaced(self.layers).values())
        for part in slices(len(chosen), max(1, self.slab_numbers // largest)):
            samples = chosen[part]
            rows = [_rows(near[sample]) for sample in samples]
            evaluations = [
                _Evaluation.start(x[row], float(scales[sample]), sign)
                for sample, row in zip(samples, rows, strict=True)
                for sign in (1.0, -1.0)[:members]
            ]
            for layer, has_ties in zip(self.layers, self.has_ties, strict=True):
                self._evaluate_layer(layer, has_ties, sample_ids[samples], members, evaluations)
            for position, (sample, row) in enumerate(zip(samples, rows, strict=True)):
                for member in range(members):
                    out[sample, member, row] = evaluations[position * members + member].d.to(out.dtype)

    def _evaluate_layer(
        self, layer: Layer, has_ties: bool, sample_ids: Tensor, members: int, evaluations: list["_Evaluation"]
    ) -> None:
        """Take all evaluations through a layer; noise and weights are held in float64 for this layer alone."""

        def noise(ordinal: int | None, tensor: Tensor) -> Tensor | None:
            if ordinal is None:
                return None
            shape = list(tensor.shape)
            return unit_displacements(sample_ids, ordinal, shape, *self.key, self.directions, weight.dtype, self.source)

        weight = layer.weight.double()
        bias = None if layer.bias is None else layer.bias.double()
        weight_noise = noise(layer.weight_ordinal, weight)
        bias_noise = None if bias is None else noise(layer.bias_ordinal, bias)
        for number, evaluation in enumerate(evaluations):
            e, bias_e = (None if part is None else part[number // members] for part in (weight_noise, bias_noise))
            evaluations[number] = evaluation.through(layer, has_ties, weight, bias, e, bias_e)


def _rows(near: Tensor) -> Tensor:
    """Choose the inputs that are evaluated together, among them all that are near a jump.

    A product of few rows sums in another order than one of many. Where sums are rounded even in float64, only the same
    order gives the same side of a jump. So all inputs are evaluated where that costs little, and otherwise whole groups
    of the rows that a product takes together.

    Args:
        near: Inputs that must be evaluated, [N]; at least one of them is True.

    Returns:
        Indices of the inputs, which may repeat.
    """
    rows = near.nonzero()[:, 0]
    if len(near) <= _FEW_INPUTS or 4 * len(rows) >= len(near):
        return torch.arange(len(near), device=near.device)
    missing = -len(rows) % _ROWS_OF_A_PRODUCT
    return torch.cat([rows, rows[-1:].expand(missing)])


def tie_breaker(
    layers: Sequence[Layer], precision: str, directions: str, key: tuple[int, int], slab_numbers: int, source: Source
) -> TieBreaker | None:
    """Return the tie breaker of an evaluation; None where every pre-activation at a jump is exact."""
    has_ties = layers_with_ties(layers, precision, directions.partition("(")[0])
    return TieBreaker(layers, has_ties, directions, key, slab_numbers, source) if any(has_ties) else None


@dataclass(frozen=True)
class _Evaluation:
    """Inputs of a layer in float64, at one displacement +- s E, for n inputs of the network."""

    scale: Tensor
    """Scale s, [], float64."""
    sign: float
    h: Tensor
    """Unperturbed inputs of the layer, [n, K]."""
    displaced_h: Tensor
    """Displaced inputs of the layer, [n, K]."""
    d: Tensor
    """Their difference divided by s, without cancellation."""

    @classmethod
    def start(cls, x: Tensor, scale: float, sign: float) -> "_Evaluation":
        """Begin with the inputs of the network, which are not displaced."""
        h = x.double()
        return cls(h.new_tensor(scale), sign, h, h, torch.zeros_like(h))

    def through(
        self, layer: Layer, has_ties: bool, weight: Tensor, bias: Tensor | None, weight_noise: Tensor | None,
        bias_noise: Tensor | None,
    ) -> "_Evaluation":  # fmt: skip
        """Return the inputs of the next layer; ``weight`` and ``bias`` are float64, and None stands for no noise."""
        activation, s, step = layer.activation, self.scale, self.sign * self.scale
        displaced_weight = weight if weight_noise is None else weight + step * weight_noise
        displaced_bias = bias if bias is None or bias_noise is None else bias + step * bias_noise
        z, displaced_z = linear(self.h, weight, bias), linear(self.displaced_h, displaced_weight, displaced_bias)
        dz = linear(self.d, weight)
        if weight_noise is not None:
            dz = dz + self.sign * linear(self.displaced_h, weight_noise)
        if bias_noise is not None:
            dz = dz + self.sign * bias_noise
        state = activation.state(z, z.dtype)
        d = activation.difference(state, dz, s)
        if activation.jumps:
            near = torch.zeros_like(z, dtype=torch.bool)
            if has_ties:
                size = (_norm(self.h) + _norm(self.displaced_h)) * _norm(displaced_weight)[:, 0]
                near = activation.jump_distance(state, dz, s) <= _evaluation_error(size, layer)
            displaced_z = torch.where(near, displaced_z, z + s * dz)
            d = torch.where(near, activation.difference_of_values(z, displaced_z, dz, s), d)
        return _Evaluation(s, self.sign, activation.value(z), activation.value(displaced_z), d)


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms


def _evaluation_error(size: Tensor, layer: Layer) -> Tensor:
    """Bound the rounding error of a float64 pre-activation at a jump, given the product of its operands' norms."""
    bias = 0.0 if layer.bias is None else float(layer.bias.detach().abs().max())
    return (size + (bias + layer.activation.jump_offset)) * (_ROUNDING_ERRORS * torch.finfo(torch.float64).eps)
