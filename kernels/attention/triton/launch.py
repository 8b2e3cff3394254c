"""Attention over displacements on a GPU: shapes to grids."""

import math

import torch
import triton
from torch import Tensor

from nntk.kernels.attention import reference
from nntk.kernels.attention.triton import config, kernel
from nntk.kernels.fixed_weights.softmax import share
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import target_of


def served(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these: float32 tensors."""
    return all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)


def attention_scores(d: Tensor, keys: Tensor | None, score: str) -> Tensor:
    """The op ``nntk::attention_scores`` for CUDA tensors."""
    if not served(d, keys):
        return reference.attention_scores(d, keys, score)
    d, out = d.contiguous(), torch.empty(d.shape[:-1], device=d.device)
    num_inputs, outputs = d.shape[-2:]
    lines, columns = config.scores_tile(outputs)
    if out.numel():
        kernel.scores[(triton.cdiv(out.numel(), lines),)](
            d, None if keys is None else keys.contiguous(), out, out.numel(), num_inputs, outputs, score, lines, columns
        )
    return out


def attention_statistics(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str
) -> Tensor:  # fmt: skip
    """The op ``nntk::attention_statistics`` for CUDA tensors: partial statistics, merged in float64."""
    if not served(values, keys) or not values.numel():
        return reference.attention_statistics(values, keys, priors, factors, score)
    values, num_rows, num_inputs, halves = _shaped(values)
    cut = config.splits(num_rows, num_inputs, target_of(values.device).processors)
    block_m, block_n = config.TILE
    out = torch.empty(cut.count, 3, num_inputs, device=values.device)
    kernel.statistics[(cut.count * triton.cdiv(num_inputs, block_n),)](
        values, _line(keys), _rows(priors), _rows(factors), out, num_rows, num_inputs, cut.rows,
        num_rows * num_inputs, score, halves, block_m, block_n,
    )  # fmt: skip
    return merged(out.double())


def merged(partial: Tensor) -> Tensor:
    """Statistics of all from those of parts, [parts, 3, N] to [3, N]."""
    largest = partial[:, 0].amax(0)
    scale = (partial[:, 0] - reference.finite(largest)).exp()
    return torch.stack((largest, (partial[:, 1] * scale).sum(0), (partial[:, 2] * scale.square()).sum(0)))


def attention_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, statistics: Tensor, score: str
) -> Tensor:
    """The op ``nntk::attention_weights`` for CUDA tensors."""
    if not served(values, keys) or not values.numel():
        return reference.attention_weights(values, keys, priors, factors, statistics, score)
    values, num_rows, num_inputs, halves = _shaped(values)
    block_m, block_n = config.TILE
    out = torch.empty(num_rows, num_inputs, device=values.device)
    kernel.weights[(triton.cdiv(num_rows, block_m) * triton.cdiv(num_inputs, block_n),)](
        values, _line(keys), _rows(priors), _rows(factors), reference.finite(statistics[0]).float(),
        share(statistics[1]).float(), out, num_rows, num_inputs, num_rows * num_inputs, score, halves,
        block_m, block_n,
    )  # fmt: skip
    return out


def _shaped(values: Tensor) -> tuple[Tensor, int, int, int]:
    """Values without gaps, their rows and inputs, and how many halves there are."""
    return values.contiguous(), values.shape[-3], values.shape[-2], 2 if values.dim() == 4 else 1


def _rows(rows: Tensor) -> Tensor:
    return rows.float().contiguous()


def _line(keys: Tensor | None) -> Tensor | None:
    return None if keys is None else keys.contiguous()


def project_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    dim: int,
) -> Tensor:
    """The op ``nntk::project_displacements`` for CUDA tensors: matrices by the kernel, vectors by their noise."""
    family, key = parse(directions), (seed_low, seed_high)
    if family.name not in ("gaussian", "rademacher") or not len(rows):
        return reference.project_displacements(parameters, ordinals, rows, seed_low, seed_high, directions, dim)
    total = torch.zeros(len(rows), dim, dtype=torch.float64, device=rows.device)
    signs = family.name == "rademacher"
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        if parameter.dim() < 2:
            total += reference.project_displacements(
                [parameter], [ordinal], rows, seed_low, seed_high, directions, dim
            ) * math.sqrt(parameter.numel())
        elif parameter.numel():
            total += _project_matrix(rows, ordinal, parameter.shape[0], math.prod(parameter.shape[1:]), dim, key, signs)
    return total / math.sqrt(sum(parameter.numel() for parameter in parameters))


def _project_matrix(
    rows: Tensor, ordinal: int, height: int, width: int, dim: int, key: philox.Key, signs: bool
) -> Tensor:
    target = target_of(rows.device)
    block_m, block_j, block_k = config.PROJECT_TILE
    operand = torch.float32 if target.arch == "interpreter" else torch.bfloat16
    splits = config.project_splits(height * triton.cdiv(width, block_k), len(rows), dim, target.processors)
    out = torch.empty(splits, len(rows), dim, device=rows.device)
    kernel.project[(splits * triton.cdiv(len(rows), block_m) * triton.cdiv(dim, block_j),)](
        rows.contiguous(), *philox.keys(key), philox.signed(ordinal), out, len(rows), height, width, dim, splits,
        signs, "ieee", philox.triton_type(operand), target.ptx, philox.is_wide(height, width), block_m, block_j,
        block_k,
    )  # fmt: skip
    return out.double().sum(0)


def multiply_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    matrix: Tensor,
) -> Tensor:
    """The op ``nntk::multiply_displacements`` for CUDA tensors: slabs of noise that kernels write."""
    slabs = philox.generate(directions, rows, parameters, ordinals, (seed_low, seed_high))
    return reference.add_slabs(slabs, rows, matrix)
