"""Batched perturbation evaluation: f(x; theta + delta_m) - f(x; theta) for many displacements at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks, mlp
from nntk.kernels.dispatch import register
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.activations import encode
from nntk.kernels.perturb.config import DEFAULT_BYTES, PAIRS, PROPAGATION, choose_propagation
from nntk.kernels.philox import DIRECTIONS, split_seed

__all__ = ["DEFAULT_BYTES", "PAIRS", "PROPAGATION", "Layer", "choose_propagation", "mlp_differences"]


def _fake(x: Tensor, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    rows, pairs = rest[5], rest[10]
    shape = (rows.shape[0], x.shape[0], weights[-1].shape[0])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    return out, x.new_empty(rows.shape, dtype=torch.float64)


_op = register(
    "mlp_differences(Tensor x, Tensor[] weights, Tensor?[] biases, str[] activations, float[] activation_parameters,"
    " int[] weight_ordinals, int[] bias_ordinals, Tensor rows, Tensor scales, int seed_low, int seed_high,"
    " str directions, str pairs, str propagation, int max_bytes) -> (Tensor, Tensor)",
    reference.mlp_differences,
    _fake,
)


def mlp_differences(
    x: Tensor,
    layers: Sequence[Layer],
    rows: Tensor,
    scales: Tensor,
    seed: int,
    directions: str = "gaussian",
    pairs: str = "odd",
    propagation: str = "auto",
    max_bytes: int = DEFAULT_BYTES,
) -> tuple[Tensor, Tensor]:
    r"""Unit differences of an MLP at displaced parameters.

    .. math::
        D_{mn} / s_m = [f(x_n; \theta + s_m E_m) - f(x_n; \theta)] / s_m

    Args:
        x: Inputs, [N, K], float32 or float64.
        layers: The MLP; parameters without an ordinal stay where they are.
        rows: Numbers m of the displacements in the random stream, [M], int64 in [0, 2**32); values are not checked.
        scales: Scales :math:`s_m` > 0 of the displacements, [M], in parameter units; values are checked for ``"auto"``.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements E, ``"gaussian"`` or ``"rademacher"``.
        pairs: ``"none"`` for the one-sided difference, ``"odd"`` for the odd part
            :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` of an antithetic pair, ``"both"`` for both one-sided
            differences of the pair.
        propagation: ``"difference"`` keeps its digits at any scale; ``"direct"`` evaluates and subtracts; ``"auto"``
            takes the direct form where its predicted error is below a tenth of the Monte-Carlo error.
        max_bytes: Budget of temporary memory; the result comes on top, M times the number of parameters never does.

    Returns:
        Unit differences, [M, N, C] in the dtype of ``x``, or [2, M, N, C] for ``pairs="both"``, the mirrored half
        second; and the squared norms of the unit displacements, [M], float64, which come with making them.

    Raises:
        ValueError: If shapes, devices or names do not fit, nothing is displaced, or the seed, an ordinal or the budget
            is out of range.
        TypeError: If dtypes do not fit.

    Example:
        >>> layer = Layer(torch.zeros(1, 2), weight_ordinal=0)
        >>> d, norms = mlp_differences(torch.eye(2), [layer], torch.arange(3), torch.full((3,), 0.1), seed=0)
        >>> d.shape, bool((d.square().sum((1, 2)) - norms).abs().max() < 1e-4)  # f(x) = w x: D at unit inputs is E
        (torch.Size([3, 2, 1]), True)
    """
    mlp.check(layers, x)
    checks.row_numbers(rows)
    checks.choice("directions", directions, DIRECTIONS)
    checks.choice("pairs", pairs, PAIRS)
    checks.choice("propagation", propagation, PROPAGATION)
    checks.integer("max_bytes", max_bytes, 2**20, hint="The smallest budget that leaves room to work is 1 MiB.")
    if scales.shape != rows.shape or not scales.is_floating_point():
        raise ValueError(
            f"scales must be a floating vector like rows, {tuple(rows.shape)}; "
            f"got {scales.dtype} of shape {tuple(scales.shape)}."
        )
    if not mlp.displaced(layers):
        raise ValueError("layers must have at least one parameter with an ordinal, to be displaced; got none.")
    if propagation == "auto":
        smallest = float(scales.min()) if len(scales) else 1.0
        if not smallest > 0:
            raise ValueError(f"scales must be positive, got {smallest:g} among them.")
        propagation = choose_propagation(layers, smallest, max(1, len(rows)), x.device)
    names, parameters = encode([layer.activation for layer in layers])
    low, high = split_seed(seed)
    return _op(
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        names,
        parameters,
        [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in layers],
        rows,
        scales,
        low,
        high,
        directions,
        pairs,
        propagation,
        max_bytes,
    )
