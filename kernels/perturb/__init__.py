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
    "check_precision",
    "displacement_products",
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
    launcher="nntk.kernels.perturb.triton.launch",
)

_products = register(
    "displacement_products(Tensor q, int height, int ordinal, Tensor rows, int seed_low, int seed_high,"
    " str directions, int max_bytes) -> Tensor",
    reference.displacement_products,
    cost.displacement_products,
    lambda q, height, ordinal, rows, *rest: q.new_empty((rows.shape[0], q.shape[-2], height)),
    launcher="nntk.kernels.perturb.triton.launch",
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
        ValueError: If shapes, devices or names do not fit, nothing is displaced, or the seed, an ordinal, a scale, the
            budget or ``samples`` is out of range.
        TypeError: If dtypes do not fit, ``rows`` is no int64 vector, or a number no integer.

    Example:
        >>> layer = Layer(torch.zeros(1, 2), weight_ordinal=0)
        >>> d, norms = mlp_differences(torch.eye(2), [layer], torch.arange(3), torch.full((3,), 0.1), seed=0)
        >>> d.shape, bool((d.square().sum((1, 2)) - norms).abs().max() < 1e-4)  # f(x) = w x: D at unit inputs is E
        (torch.Size([3, 2, 1]), True)
    """
    mlp.check(layers, x)
    budget = _check(rows, directions, max_bytes, x.device)
    if scales.shape != rows.shape or not scales.is_floating_point():
        raise ValueError(
            f"scales must be a floating vector like rows, {tuple(rows.shape)}; "
            f"got {scales.dtype} of shape {tuple(scales.shape)}."
        )
    if scales.device != x.device:
        raise ValueError(f"scales must be on {x.device} like the inputs, got {scales.device}.")
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


def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    rows: Tensor,
    seed: int,
    directions: str = "gaussian",
    max_bytes: int | None = None,
) -> Tensor:
    r"""Products :math:`q_m E_m^T` with the unit displacements of a weight, which are never held all at once.

    What a layer of any model adds to :math:`d W^T` in the layer step: a convolution by its unfolded inputs.

    Args:
        q: Operands, [M, n, K], or [n, K] for all displacements, float32 or float64.
        height: Outputs H of the weight, [H, K] (or [H, ...] with K numbers a line).
        ordinal: The weight's number in the random stream.
        rows: Numbers m of the displacements in the stream, [M], int64 in [0, 2**32); values are not checked.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements; see :func:`nntk.kernels.philox.unit_displacements`.
        max_bytes: Budget of temporary memory, None for 128 MiB on a CPU and 256 MiB on a GPU; the result comes on top.

    Returns:
        [M, n, H], in the dtype of ``q``.

    Raises:
        ValueError: If shapes or devices do not fit, a name is unknown, or a number out of range.
        TypeError: If ``q`` is neither float32 nor float64, ``rows`` no int64 vector, or a number no integer.

    Example:
        >>> displacement_products(torch.eye(3), height=2, ordinal=0, rows=torch.arange(4), seed=0).shape
        torch.Size([4, 3, 2])
    """
    budget = _check(rows, directions, max_bytes, q.device)
    checks.integer("height", height, 1)
    checks.integer("ordinal", ordinal, 0, 2**32 - 1)
    if q.dtype not in checks.FLOATS:
        raise TypeError(f"q must be float32 or float64, got {q.dtype}.")
    if q.dim() not in (2, 3) or not q.shape[-1] or (q.dim() == 3 and len(q) != len(rows)):
        raise ValueError(f"q must have shape [n, K] or [{len(rows)}, n, K], got {tuple(q.shape)}.")
    low, high = split_seed(seed)
    return _products(q, height, ordinal, rows, low, high, directions, budget)


def _check(rows: Tensor, directions: str, max_bytes: int | None, device: torch.device) -> int:
    """Check which displacements are asked for, and give the budget of temporary memory."""
    checks.sample_ids(rows)
    parse(directions)
    if rows.device != device:
        raise ValueError(f"rows must be on {device} like the inputs, got {rows.device}.")
    budget = default_bytes(device) if max_bytes is None else max_bytes
    return checks.integer("max_bytes", budget, 2**20, hint="The smallest budget that leaves room to work is 1 MiB.")
