"""Batched perturbation evaluation: f(x; theta + delta_m) - f(x; theta) for many displacements at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks, mlp
from nntk.kernels.activations import encode
from nntk.kernels.dispatch import register
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import cost, reference
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
    sample_ids, pairs = rest[5], rest[10]
    shape = (sample_ids.shape[0], x.shape[0], weights[-1].shape[0])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    return out, x.new_empty(sample_ids.shape, dtype=torch.float64)


_op = register(
    "mlp_differences(Tensor x, Tensor[] weights, Tensor?[] biases, str[] activations, float[] activation_parameters,"
    " int[] weight_ordinals, int[] bias_ordinals, Tensor sample_ids, Tensor scales, int seed_low, int seed_high,"
    " str directions, str pairs, str propagation, str precision, int max_bytes) -> (Tensor, Tensor)",
    reference.mlp_differences,
    cost.mlp_differences,
    _fake,
    launcher="nntk.kernels.perturb.triton.launch",
    compiled="nntk.kernels.perturb.cpu.launch",
)

_products = register(
    "displacement_products(Tensor q, int height, int ordinal, Tensor sample_ids, int seed_low, int seed_high,"
    " str directions, int max_bytes) -> Tensor",
    reference.displacement_products,
    cost.displacement_products,
    lambda q, height, ordinal, sample_ids, *rest: q.new_empty((sample_ids.shape[0], q.shape[-2], height)),
    launcher="nntk.kernels.perturb.triton.launch",
    compiled="nntk.kernels.perturb.cpu.launch",
)


def mlp_differences(
    x: Tensor,
    layers: Sequence[Layer],
    sample_ids: Tensor,
    scales: Tensor,
    seed: int,
    directions: str = "gaussian",
    pairs: str = "odd",
    propagation: str = "auto",
    precision: str = "auto",
    max_bytes: int | None = None,
    samples: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Evaluate the unit differences of an MLP at displaced parameters.

    .. math::
        D_{mn} / s_m = [f(x_n; \theta + s_m E_m) - f(x_n; \theta)] / s_m

    :mod:`nntk.kernels.perturb.definition` states this in a few lines of code, for every value of ``pairs``.

    Args:
        x: Inputs, [N, K], float32 or float64.
        layers: The MLP; parameters without an ordinal are not displaced.
        sample_ids: Stream numbers m of the displacements, [M], int64 in [0, 2**32); the values are not checked.
        scales: Scales :math:`s_m` > 0 of the displacements, [M], in parameter units. The values are checked only where
            ``propagation="auto"`` reads them, on a CPU.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements E: ``"gaussian"``, ``"rademacher"``, ``"flipout(B)"`` or
            ``"lowrank(R)"``; see :func:`nntk.kernels.philox.unit_displacements`.
        pairs: ``"none"`` for the one-sided difference, ``"odd"`` for the odd part
            :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` of an antithetic pair, ``"both"`` for both one-sided
            differences of the pair.
        propagation: ``"difference"`` is accurate at every scale; ``"direct"`` evaluates and subtracts; ``"auto"``
            uses direct evaluation where its predicted error is below a tenth of the Monte-Carlo error.
        precision: Precision to which propagation rounds the operands of its products, for float32: ``"fp32"``,
            ``"tf32"`` or ``"bf16"``. Sums are in float32 in any case. ``"auto"`` is ``"fp32"`` on a CPU; on a device
            with tensor cores it is the cheapest precision whose predicted error of the kernel is below a tenth of the
            Monte-Carlo error.
        max_bytes: Budget of temporary memory, at least 2**20; None for 128 MiB on a CPU and a fortieth of a GPU's
            memory (at least 256 MiB). The result is not counted. M times the number of parameters is never held.
        samples: Number of displacements of the whole kernel, on which ``"auto"`` depends; None for M.

    Returns:
        Unit differences, [M, N, C] in the dtype of ``x``, or [2, M, N, C] for ``pairs="both"``, first those of the plus
        members, then those of the minus members; and the squared norms of the unit displacements, [M], float64.

    Raises:
        ValueError: If shapes, devices or names do not fit, nothing is displaced, or the seed, an ordinal, a scale, the
            budget or ``samples`` is out of range.
        TypeError: If dtypes do not fit, ``sample_ids`` is no int64 vector, or a number is no integer.

    Example:
        >>> layer = Layer(torch.zeros(1, 2), weight_ordinal=0)
        >>> d, norms = mlp_differences(torch.eye(2), [layer], torch.arange(3), torch.full((3,), 0.1), seed=0)
        >>> d.shape, bool((d.square().sum((1, 2)) - norms).abs().max() < 1e-4)  # f(x) = w x at unit inputs: E
        (torch.Size([3, 2, 1]), True)
    """
    mlp.check(layers, x)
    budget = _check(sample_ids, directions, max_bytes, x.device)
    if scales.shape != sample_ids.shape or not scales.is_floating_point():
        raise ValueError(
            f"scales must be a floating vector of the shape of sample_ids, {tuple(sample_ids.shape)}; "
            f"got {scales.dtype} of shape {tuple(scales.shape)}."
        )
    if scales.device != x.device:
        raise ValueError(f"scales must be on {x.device} like the inputs, got {scales.device}.")
    checks.choice("pairs", pairs, PAIRS)
    checks.choice("propagation", propagation, PROPAGATION)
    check_precision(precision, propagation, x.dtype)
    if not mlp.displaced(layers):
        raise ValueError(
            "layers must have at least one parameter with an ordinal, which marks it as displaced; got none."
        )
    smallest = float(scales.min()) if propagation == "auto" and x.device.type == "cpu" and len(scales) else 1.0
    if not smallest > 0:
        raise ValueError(f"scales must be positive, got {smallest:g} among them.")
    samples = max(1, len(sample_ids)) if samples is None else checks.integer("samples", samples, 1)
    propagation, precision = resolve(layers, smallest, samples, x.device, propagation, precision, directions)
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
        sample_ids,
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
    sample_ids: Tensor,
    seed: int,
    directions: str = "gaussian",
    max_bytes: int | None = None,
) -> Tensor:
    r"""Multiply operands by the unit displacements of a weight, :math:`q_m E_m^T`, without holding all of them.

    This is the product that the layer step adds to :math:`d W^T`. Layers of models that are no MLP use it alone; a
    convolution passes its unfolded inputs.

    Args:
        q: Operands, [M, n, K], or [n, K] for all displacements, float32 or float64.
        height: Number H of outputs of the weight, whose shape is [H, K], or [H, ...] with K numbers an output.
        ordinal: Number of the weight in the random stream.
        sample_ids: Stream numbers m of the displacements, [M], int64 in [0, 2**32); the values are not checked.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the unit displacements; see :func:`nntk.kernels.philox.unit_displacements`.
        max_bytes: Budget of temporary memory, at least 2**20; None for 128 MiB on a CPU and a fortieth of a GPU's
            memory (at least 256 MiB). The result is not counted.

    Returns:
        The products, [M, n, H], in the dtype of ``q``.

    Raises:
        ValueError: If shapes or devices do not fit, a name is unknown, or a number out of range.
        TypeError: If ``q`` is neither float32 nor float64, ``sample_ids`` is no int64 vector, or a number no integer.

    Example:
        >>> displacement_products(torch.eye(3), height=2, ordinal=0, sample_ids=torch.arange(4), seed=0).shape
        torch.Size([4, 3, 2])
    """
    budget = _check(sample_ids, directions, max_bytes, q.device)
    checks.integer("height", height, 1)
    checks.integer("ordinal", ordinal, 0, 2**32 - 1)
    if q.dtype not in checks.FLOATS:
        raise TypeError(f"q must be float32 or float64, got {q.dtype}.")
    if q.dim() not in (2, 3) or not q.shape[-1] or (q.dim() == 3 and len(q) != len(sample_ids)):
        raise ValueError(f"q must have shape [n, K] or [{len(sample_ids)}, n, K], got {tuple(q.shape)}.")
    low, high = split_seed(seed)
    return _products(q, height, ordinal, sample_ids, low, high, directions, budget)


def _check(sample_ids: Tensor, directions: str, max_bytes: int | None, device: torch.device) -> int:
    """Check the arguments that choose the displacements, and return the budget of temporary memory in bytes."""
    checks.sample_ids(sample_ids)
    parse(directions)
    if sample_ids.device != device:
        raise ValueError(f"sample_ids must be on {device} like the inputs, got {sample_ids.device}.")
    budget = default_bytes(device) if max_bytes is None else max_bytes
    return checks.integer("max_bytes", budget, 2**20, hint="Give at least 1 MiB, the smallest usable budget.")
