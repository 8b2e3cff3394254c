"""Launcher of assembly on a GPU: the rank update, and functions that use slabs of noise written by kernels."""

import math
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from nntk.kernels.assemble import gradients, gram, reference
from nntk.kernels.assemble.triton import config, kernel
from nntk.kernels.attention.reference import finite, odd, relative_weights
from nntk.kernels.offsets import is_wide
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import input_precision, target_of


def energy(
    d1: Tensor,
    d2: Tensor | None,
    scales: Tensor,
    weighting: str,
    values1: Tensor | None,
    values2: Tensor | None,
    keys1: Tensor | None,
    keys2: Tensor | None,
    priors: Tensor | None,
    factors: Tensor | None,
    shifts1: Tensor | None,
    shifts2: Tensor | None,
    outputs: str,
) -> Tensor:
    """Compute the energy form: the op ``nntk::energy`` for CUDA tensors; see ``reference.energy`` for the arguments."""
    if not _supports(d1, d1 if d2 is None else d2, outputs):
        return reference.energy(
            d1, d2, scales, weighting, values1, values2, keys1, keys2, priors, factors, shifts1, shifts2, outputs
        )
    if values1 is not None and priors is not None and factors is not None and values1.dtype == torch.float64:
        # Given scores may have any size: relative to the largest, they fit float32.
        w1, w2 = (
            None if values is None or shifts is None else
            relative_weights(values.unsqueeze(-1), None, priors, factors, shifts, weighting).float()
            for values, shifts in ((values1, shifts1), (values2, shifts2))
        )  # fmt: skip
        d1, d2 = odd(d1), None if d2 is None else odd(d2)
        return energy(d1, d2, scales, "weights", w1, w2, None, None, None, None, None, None, outputs)
    symmetric = d2 is None
    num_samples, n1, c = d1.shape[-3:]
    n2 = n1 if d2 is None else d2.shape[-2]
    operands1 = (_dense(d1), _dense(values1), _dense(keys1), _shift(shifts1))
    operands2 = operands1 if d2 is None else (_dense(d2), _dense(values2), _dense(keys2), _shift(shifts2))
    axes = {"diagonal": (c,), "full": (c, c)}.get(outputs, ())
    out = torch.empty(n1, n2, *axes, dtype=torch.float32, device=d1.device)
    if not out.numel():
        return out
    target, rows_per_input = target_of(d1.device), c if outputs == "full" else 1
    members = d1.dim() - 2
    rows, columns = n1 * rows_per_input, n2 * rows_per_input
    wide = has_wide_tiles(n2, c, outputs) or is_wide(config.LARGEST * max(n1, n2) * c)
    size = config.tiles_on(target, rows, columns, symmetric, weighting, members, wide)
    tiles1, tiles2 = triton.cdiv(rows, size.block), triton.cdiv(columns, size.block)
    programs = tiles1 * (tiles1 + 1) // 2 if symmetric else tiles1 * tiles2
    roots = _padded((scales.double() / (c if outputs == "mean" else 1)).sqrt(), size.block_k, 0.0)
    priors, factors = _padded(priors, size.block_k, -math.inf), _padded(factors, size.block_k, 0.0)
    kernel.rank_update[(programs * (c if outputs == "diagonal" else 1),)](
        operands1[0], operands2[0], roots, operands1[1], operands2[1], operands1[2], operands2[2], priors, factors,
        operands1[3], operands2[3], out, num_samples, n1, n2, c,
        weighting, members, symmetric, "trace" if outputs == "mean" else outputs,
        input_precision("fp32", target.arch), wide, size.block, size.block, size.block_k, size.parts,
        num_warps=size.num_warps, num_stages=size.num_stages, **config.OPTIONS,
    )  # fmt: skip
    return out


def has_wide_tiles(n2: int, num_outputs: int, outputs: str) -> bool:
    """Return True if offsets in a tile of a kernel matrix may need 64 bits."""
    return is_wide(config.LARGEST * n2 * {"diagonal": num_outputs, "full": num_outputs**2}.get(outputs, 1))


def _supports(d1: Tensor, d2: Tensor, outputs: str) -> bool:
    """Return True if the kernel supports the differences: float32, with terms, rows and columns within 32 bits."""
    num_samples, n1, c = d1.shape[-3:]
    lengths = num_samples * c, *(n * (c if outputs == "full" else 1) for n in (n1, d2.shape[-2]))
    return d1.dtype == torch.float32 and not is_wide(max(lengths) + config.LARGEST)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _padded(vector: Tensor | None, count: int, value: float) -> Tensor | None:
    """Return a vector in float32, followed by ``count`` times ``value``, for a kernel that reads whole steps."""
    return None if vector is None else torch.nn.functional.pad(vector.float(), (0, count), value=value)


def _shift(shifts: Tensor | None) -> Tensor | None:
    return None if shifts is None else finite(shifts).float().contiguous()


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Compute the Gram matrix: the op ``nntk::displacement_gram`` for CUDA tensors."""
    # Flipout and lowrank have closed forms in the reference.
    if parse(directions).name not in ("gaussian", "rademacher"):
        return gram.displacement_gram(parameters, ordinals, sample_ids, seed_low, seed_high, directions)
    total = torch.zeros(len(sample_ids), len(sample_ids), dtype=torch.float64, device=sample_ids.device)
    for _, noise in philox.generate(directions, sample_ids, parameters, ordinals, (seed_low, seed_high)):
        gram.add_products(total, noise.flatten(1))
    return reference.mirror(total)


def inner_product_of_gradients(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    unbiased: bool,
    outputs: str,
) -> Tensor:
    """Compute the plugin or unbiased form in float64: the op ``nntk::inner_product_of_gradients`` for CUDA tensors."""
    slabs = _slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions)
    count = sum(parameter.numel() for parameter in parameters)
    return gradients.contract_gradients(slabs, d1, d2, weights1, weights2, squared_norms, count, unbiased, outputs)


def nonlocal_gradients(
    d: Tensor,
    weights: Tensor,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
) -> Tensor:
    """Compute nonlocal gradients: the op ``nntk::nonlocal_gradients`` for CUDA tensors."""
    slabs = _slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions)
    return gradients.gradients_of(slabs, d, weights, squared_norms, sum(parameter.numel() for parameter in parameters))


def _slabs(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, key: philox.Key, directions: str
) -> Iterator[Tensor]:
    for _, noise in philox.generate(directions, sample_ids, parameters, ordinals, key):
        yield noise.flatten(1)
