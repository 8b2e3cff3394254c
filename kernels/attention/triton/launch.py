"""Launcher of attention over displacements on a GPU: shapes to grids."""

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


def supports(*tensors: Tensor | None) -> bool:
    """Return True if the kernels support all tensors, which must be float32."""
    return all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)


def attention_scores(d: Tensor, keys: Tensor | None, score: str) -> Tensor:
    """Compute raw scores: the op ``nntk::attention_scores`` for CUDA tensors."""
    if not supports(d, keys):
        return reference.attention_scores(d, keys, score)
    d, out = d.contiguous(), torch.empty(d.shape[:-1], dtype=torch.float32, device=d.device)
    num_inputs, outputs = d.shape[-2:]
    block_s, block_c = config.scores_tile(outputs, target_of(d.device).arch)
    if out.numel():
        kernel.scores[(triton.cdiv(out.numel(), block_s),)](
            d,
            None if keys is None else keys.contiguous(),
            out,
            out.numel(),
            num_inputs,
            outputs,
            score,
            block_s,
            block_c,
            **config.OPTIONS,
        )
    return out


def attention_statistics(values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str) -> Tensor:
    """Merge partial statistics in float64: the op ``nntk::attention_statistics`` for CUDA tensors."""
    if not supports(values, keys) or not values.numel():
        return reference.attention_statistics(values, keys, priors, factors, score)
    values, num_samples, num_inputs, members = _shaped(values)
    splits = config.splits(num_samples, num_inputs, target_of(values.device).processors)
    block_m, block_n = config.TILE
    out = torch.empty(splits.count, 3, num_inputs, dtype=torch.float32, device=values.device)
    kernel.statistics[(splits.count * triton.cdiv(num_inputs, block_n),)](
        values, _dense(keys), _float(priors), _float(factors), out, num_samples, num_inputs, splits.samples,
        score, members, block_m, block_n, **config.OPTIONS,
    )  # fmt: skip
    return merge_parts(out.double())


def merge_parts(partial: Tensor) -> Tensor:
    """Merge partial statistics [parts, 3, N] into statistics [3, N]."""
    largest = partial[:, 0].amax(0)
    scale = (partial[:, 0] - reference.finite(largest)).exp()
    return torch.stack((largest, (partial[:, 1] * scale).sum(0), (partial[:, 2] * scale.square()).sum(0)))


def attention_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, statistics: Tensor, score: str
) -> Tensor:
    """Compute weights: the op ``nntk::attention_weights`` for CUDA tensors."""
    if not supports(values, keys) or not values.numel():
        return reference.attention_weights(values, keys, priors, factors, statistics, score)
    values, num_samples, num_inputs, members = _shaped(values)
    block_m, block_n = config.TILE
    out = torch.empty(num_samples, num_inputs, dtype=torch.float32, device=values.device)
    kernel.weights[(triton.cdiv(num_samples, block_m) * triton.cdiv(num_inputs, block_n),)](
        values, _dense(keys), _float(priors), _float(factors), reference.finite(statistics[0]).float(),
        share(statistics[1]).float(), out, num_samples, num_inputs, score, members, block_m, block_n, **config.OPTIONS,
    )  # fmt: skip
    return out


def _shaped(values: Tensor) -> tuple[Tensor, int, int, int]:
    """Return contiguous values, the numbers of displacements and inputs, and the number of members of a pair."""
    return values.contiguous(), values.shape[-3], values.shape[-2], 2 if values.dim() == 4 else 1


def _float(vector: Tensor) -> Tensor:
    return vector.float().contiguous()


def _dense(keys: Tensor | None) -> Tensor | None:
    return None if keys is None else keys.contiguous()


def project_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    dim: int,
) -> Tensor:
    """Project displacements: the op ``nntk::project_displacements`` for CUDA tensors; vectors go to the reference."""
    family, key = parse(directions), (seed_low, seed_high)
    if family.name not in ("gaussian", "rademacher") or not len(sample_ids):
        return reference.project_displacements(parameters, ordinals, sample_ids, seed_low, seed_high, directions, dim)
    total = torch.zeros(len(sample_ids), dim, dtype=torch.float64, device=sample_ids.device)
    signs = family.name == "rademacher"
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        if parameter.dim() < 2:
            total += reference.project_displacements(
                [parameter], [ordinal], sample_ids, seed_low, seed_high, directions, dim
            ) * math.sqrt(parameter.numel())
        elif parameter.numel():
            total += _project_matrix(
                sample_ids, ordinal, parameter.shape[0], math.prod(parameter.shape[1:]), dim, key, signs
            )
    return total / math.sqrt(sum(parameter.numel() for parameter in parameters))


def _project_matrix(
    sample_ids: Tensor, ordinal: int, height: int, width: int, dim: int, key: philox.Key, signs: bool
) -> Tensor:
    target = target_of(sample_ids.device)
    block_m, block_j, block_k = config.PROJECT_TILE
    operand = torch.float32 if target.arch == "interpreter" else torch.bfloat16
    splits = config.project_splits(height * triton.cdiv(width, block_k), len(sample_ids), dim, target.processors)
    out = torch.empty(splits, len(sample_ids), dim, dtype=torch.float32, device=sample_ids.device)
    kernel.project[(splits * triton.cdiv(len(sample_ids), block_m) * triton.cdiv(dim, block_j),)](
        sample_ids.contiguous(), *philox.keys(key), philox.signed(ordinal), out, len(sample_ids), height, width, dim,
        splits, signs, "ieee", philox.triton_type(operand), target.ptx, philox.has_wide_blocks(height, width),
        block_m, block_j, block_k, **config.OPTIONS,
    )  # fmt: skip
    return out.double().sum(0)


def multiply_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    matrix: Tensor,
) -> Tensor:
    """Multiply slabs of noise that kernels write: the op ``nntk::multiply_displacements`` for CUDA tensors."""
    slabs = philox.generate(directions, sample_ids, parameters, ordinals, (seed_low, seed_high))
    return reference.add_slabs(slabs, sample_ids, matrix)
