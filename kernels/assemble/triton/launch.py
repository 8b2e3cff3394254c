"""Assembly on a GPU: the rank update, and what takes slabs of noise that kernels write."""

import math
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from nntk.kernels.assemble import gradients, gram, reference
from nntk.kernels.assemble.triton import config, kernel
from nntk.kernels.attention.reference import finite, odd, relative_weights
from nntk.kernels.perturb.triton.config import input_precision
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import target_of


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
    """The op ``nntk::energy`` for CUDA tensors; float64, and lines of 10^7 entries and more, go to the reference."""
    if not _served(d1, d1 if d2 is None else d2, outputs):
        return reference.energy(
            d1, d2, scales, weighting, values1, values2, keys1, keys2, priors, factors, shifts1, shifts2, outputs
        )
    if values1 is not None and priors is not None and factors is not None and values1.dtype == torch.float64:
        # Scores of one's own, of any size: relative to the largest they are what float32 can hold.
        w1, w2 = (
            None if values is None or shifts is None else
            relative_weights(values.unsqueeze(-1), None, priors, factors, shifts, weighting).float()
            for values, shifts in ((values1, shifts1), (values2, shifts2))
        )  # fmt: skip
        d1, d2 = odd(d1), None if d2 is None else odd(d2)
        return energy(d1, d2, scales, "weights", w1, w2, None, None, None, None, None, None, outputs)
    symmetric = d2 is None
    num_rows, n1, c = d1.shape[-3:]
    n2 = n1 if d2 is None else d2.shape[-2]
    first = (_dense(d1), _dense(values1), _dense(keys1), _shift(shifts1))
    second = first if d2 is None else (_dense(d2), _dense(values2), _dense(keys2), _shift(shifts2))
    axes = {"diagonal": (c,), "full": (c, c)}.get(outputs, ())
    out = torch.empty(n1, n2, *axes, device=d1.device)
    if not out.numel():
        return out
    target, lines = target_of(d1.device), c if outputs == "full" else 1
    halves = d1.dim() - 2
    cut = config.tiles_on(target, n1 * lines, n2 * lines, symmetric, weighting, halves)
    tiles1, tiles2 = triton.cdiv(n1 * lines, cut.block), triton.cdiv(n2 * lines, cut.block)
    programs = tiles1 * (tiles1 + 1) // 2 if symmetric else tiles1 * tiles2
    roots = _followed((scales.double() / (c if outputs == "mean" else 1)).sqrt(), cut.block_k, 0.0)
    priors, factors = _followed(priors, cut.block_k, -math.inf), _followed(factors, cut.block_k, 0.0)
    kernel.rank_update[(programs * (c if outputs == "diagonal" else 1),)](
        first[0], second[0], roots, first[1], second[1], first[2], second[2], priors, factors,
        first[3], second[3], out, num_rows, n1, n2, c,
        weighting, halves, symmetric, "trace" if outputs == "mean" else outputs,
        input_precision("fp32", target.arch), cut.block, cut.block, cut.block_k, cut.parts,
        num_warps=cut.num_warps, num_stages=cut.num_stages,
    )  # fmt: skip
    return out


def _served(d1: Tensor, d2: Tensor, outputs: str) -> bool:
    """Whether the kernel takes these: float32, and terms and offsets within a tile that fit 32 bits."""
    num_rows, n1, c = d1.shape[-3:]
    n2 = d2.shape[-2]
    line = n2 * {"diagonal": c, "full": c * c}.get(outputs, 1)
    return d1.dtype == torch.float32 and max(128 * max(line, n1 * c, n2 * c), num_rows * c + 128) < 2**31


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _followed(rows: Tensor | None, count: int, value: float) -> Tensor | None:
    """Numbers of the rows in float32, and so many of a value behind them, for a kernel that reads whole steps."""
    return None if rows is None else torch.nn.functional.pad(rows.float(), (0, count), value=value)


def _shift(shifts: Tensor | None) -> Tensor | None:
    return None if shifts is None else finite(shifts).float().contiguous()


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """The op ``nntk::displacement_gram`` for CUDA tensors; flipout and lowrank have closed forms in the reference."""
    if parse(directions).name not in ("gaussian", "rademacher"):
        return gram.displacement_gram(parameters, ordinals, rows, seed_low, seed_high, directions)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for _, noise in philox.generate(directions, rows, parameters, ordinals, (seed_low, seed_high)):
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
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    unbiased: bool,
    outputs: str,
) -> Tensor:
    """The op ``nntk::inner_product_of_gradients`` for CUDA tensors: noise that kernels write, products in float64."""
    slabs = _slabs(parameters, ordinals, rows, (seed_low, seed_high), directions)
    count = sum(parameter.numel() for parameter in parameters)
    return gradients.contract_gradients(slabs, d1, d2, weights1, weights2, squared_norms, count, unbiased, outputs)


def nonlocal_gradients(
    d: Tensor,
    weights: Tensor,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
) -> Tensor:
    """The op ``nntk::nonlocal_gradients`` for CUDA tensors."""
    slabs = _slabs(parameters, ordinals, rows, (seed_low, seed_high), directions)
    return gradients.gradients_of(slabs, d, weights, squared_norms, sum(parameter.numel() for parameter in parameters))


def _slabs(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, key: philox.Key, directions: str
) -> Iterator[Tensor]:
    for _, noise in philox.generate(directions, rows, parameters, ordinals, key):
        yield noise.flatten(1)
