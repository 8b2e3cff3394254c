"""Batched perturbation evaluation: f(x; theta + delta_m) - f(x; theta) for many displacements at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks, mlp
from nntk.kernels.dispatch import register
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import cost, reference
from nntk.kernels.perturb.activations import encode
from nntk.kernels.perturb.config import (
    DEFAULT_BYTES,
    PAIRS,
    PRECISIONS,
    PROPAGATION,
    check_precision,
    default_bytes,
    resolve,
)
from nntk.kernels.philox import parse, split_seed

__all__ = [
    "DEFAULT_BYTES",
    "PAIRS",
    "PRECISIONS",
    "PROPAGATION",
    "Layer",
    "affine_differences",
    "check_precision",
    "mlp_differences",
]


def _fake(x: Tensor, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    rows, pairs = rest[5], rest[10]
    shape = (rows.shape[0], x.shape[0], weights[-1].shape[0])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    return out, x.new_empty(rows.shape, dtype=torch.float64)


_op = register(
    "mlp_differences(Tensor x, Tensor[] weights, Tensor?[] biases, str[] activations, float[] activation_parameters,"
    " int[] weight_ordinals, int[] bias_ordinals, Tensor rows, Tensor scales, int seed_low, int seed_high,"
    " str directions, str pairs, str propagation, str precision, int max_bytes) -> (Tensor, Tensor)",
    reference.mlp_differences,
    cost.mlp_differences,
    _fake,
    launcher="nntk.kernels.perturb.launch",
)

_affine = register(
    "affine_differences(Tensor h, Tensor? d, Tensor weight, Tensor? bias, int weight_ordinal, int bias_ordinal,"
    " Tensor rows, Tensor scales, int seed_low, int seed_high, str directions, int halves, int max_bytes) -> Tensor",
    reference.affine_differences,
    cost.affine_differences,
    lambda h, d, weight, bias, weight_ordinal, bias_ordinal, rows, *rest: h.new_empty(
        (rows.shape[0], rest[4], h.shape[0], weight.shape[0])
    ),
    launcher="nntk.kernels.perturb.launch",
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
    precision: str = "auto",
    max_bytes: int | None = None,
    samples: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Unit differences of an MLP at displaced parameters.

    .. math::
        D_{mn} / s_m = [f(x_n; \theta + s_m E_m) - f(x_n; \theta)] / s_m

    Args:
        x: Inputs, [N, K], float32 or float64.
        layers: The MLP; parameters without an ordinal stay where they are.
        rows: Numbers m of the displacements in the random stream, [M], int64 in [0, 2**32); values are not checked.
        scales: Scales :math:`s_m` > 0 of the displacements, [M], in parameter units; they are checked where
            ``"auto"`` reads them, on a CPU.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements E: ``"gaussian"``, ``"rademacher"``, ``"flipout(B)"`` or
            ``"lowrank(R)"``; see :func:`nntk.kernels.philox.unit_displacements`.
        pairs: ``"none"`` for the one-sided difference, ``"odd"`` for the odd part
            :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` of an antithetic pair, ``"both"`` for both one-sided
            differences of the pair.
        propagation: ``"difference"`` keeps its digits at any scale; ``"direct"`` evaluates and subtracts; ``"auto"``
            takes the direct form where its predicted error is below a tenth of the Monte-Carlo error.
        precision: What the operands of the difference form's products are rounded to, for float32: ``"fp32"``,
            ``"tf32"`` or ``"bf16"``; sums are in float32 all the same. ``"auto"`` is ``"fp32"`` on a CPU, and where
            there are tensor cores the cheapest whose predicted error of the kernel is below a tenth of the Monte-Carlo
            error.
        max_bytes: Budget of temporary memory, None for 128 MiB on a CPU and 256 MiB on a GPU; the result comes on top,
            M times the number of parameters never does.
        samples: Number of displacements of the whole kernel, which ``"auto"`` goes by; those given by default.

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
    budget = _check(rows, scales, directions, max_bytes, x.device)
    checks.choice("pairs", pairs, PAIRS)
    checks.choice("propagation", propagation, PROPAGATION)
    check_precision(precision, propagation, x.dtype)
    if not mlp.displaced(layers):
        raise ValueError("layers must have at least one parameter with an ordinal, to be displaced; got none.")
    smallest = float(scales.min()) if propagation == "auto" and x.device.type == "cpu" and len(scales) else 1.0
    if not smallest > 0:
        raise ValueError(f"scales must be positive, got {smallest:g} among them.")
    samples = max(1, len(rows)) if samples is None else checks.integer("samples", samples, 1)
    propagation, precision = resolve(layers, smallest, samples, x.device, propagation, precision)
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
        precision,
        budget,
    )


def affine_differences(
    h: Tensor,
    d: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    weight_ordinal: int | None,
    bias_ordinal: int | None,
    rows: Tensor,
    scales: Tensor,
    seed: int,
    directions: str = "gaussian",
    halves: int = 2,
    max_bytes: int | None = None,
) -> Tensor:
    r"""The layer step by itself: unit differences of :math:`W h + b` where inputs, weight and bias are displaced.

    .. math::
        dz = d W^T + (h + s d) E^T + e

    for one half of an antithetic pair, with -E and -e for the other: what models of any shape are evaluated by, a
    convolution by its unfolded inputs.

    Args:
        h: Unperturbed inputs, [n, K], float32 or float64.
        d: Unit differences of the inputs, [M, halves, n, K]; None where they do not move.
        weight: W, [H, K].
        bias: b, [H], or None.
        weight_ordinal: The weight's number in the random stream, None if it stays.
        bias_ordinal: The bias's number, None if it stays.
        rows: Numbers m of the displacements, [M], int64 in [0, 2**32); values are not checked.
        scales: Scales :math:`s_m` > 0, [M]; values are not checked.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements.
        halves: 1, or 2 for antithetic pairs.
        max_bytes: Budget of temporary memory, as for :func:`mlp_differences`.

    Returns:
        dz, [M, halves, n, H], in the dtype of ``h``.

    Raises:
        ValueError: If shapes or devices do not fit, a name is unknown, or a number out of range.
        TypeError: If dtypes do not fit.

    Example:
        >>> h, weight = torch.eye(3), torch.zeros(2, 3)
        >>> dz = affine_differences(h, None, weight, None, 0, None, torch.arange(4), torch.ones(4), seed=0)
        >>> dz.shape, torch.equal(dz[:, 0], -dz[:, 1])
        (torch.Size([4, 2, 3, 2]), True)
    """
    mlp.check([Layer(weight, bias, weight_ordinal=weight_ordinal, bias_ordinal=bias_ordinal)], h)
    budget = _check(rows, scales, directions, max_bytes, h.device)
    checks.integer("halves", halves, 1, 2)
    shape = (len(rows), halves, *h.shape)
    if d is not None and (d.shape != shape or d.dtype != h.dtype or d.device != h.device):
        raise ValueError(
            f"d must be {h.dtype} of shape {shape} on {h.device}, got {d.dtype} of shape {tuple(d.shape)} on {d.device}."
        )
    low, high = split_seed(seed)
    return _affine(
        h, d, weight, bias, -1 if weight_ordinal is None else weight_ordinal,
        -1 if bias_ordinal is None else bias_ordinal, rows, scales, low, high, directions, halves, budget,
    )  # fmt: skip


def _check(rows: Tensor, scales: Tensor, directions: str, max_bytes: int | None, device: torch.device) -> int:
    """Check which displacements are asked for, and give the budget of temporary memory."""
    checks.row_numbers(rows)
    parse(directions)
    if scales.shape != rows.shape or not scales.is_floating_point():
        raise ValueError(
            f"scales must be a floating vector like rows, {tuple(rows.shape)}; "
            f"got {scales.dtype} of shape {tuple(scales.shape)}."
        )
    for name, tensor in (("rows", rows), ("scales", scales)):
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} like the inputs, got {tensor.device}.")
    budget = default_bytes(device) if max_bytes is None else max_bytes
    return checks.integer("max_bytes", budget, 2**20, hint="The smallest budget that leaves room to work is 1 MiB.")
