"""Propagation of differences through any model whose functions have rules, chunk by chunk."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nntk.kernels.slices import slices
from nntk.propagation.batch import DisplacementBatch
from nntk.propagation.forward import DisplacedForward
from nntk.propagation.plan import ChunkPlan, make_context, make_group


def propagate(
    forward: Callable[[dict[str, Tensor], Tensor], Any],
    tensors: Mapping[str, Tensor],
    originals: Mapping[str, Tensor],
    param_indices: Mapping[str, int],
    x: Tensor,
    batch: DisplacementBatch,
) -> Tensor:
    r"""Compute unit differences of a model's outputs by rules of difference propagation.

    .. math::
        [f(x; \theta + s_m E_m) - f(x; \theta)] / s_m

    Args:
        forward: Function from all tensors of the model by name, and inputs, to outputs [N, ...].
        tensors: All tensors of the model by name, floating ones in float64.
        originals: The same tensors in their own dtype.
        param_indices: Indices of the displaced parameters in the random stream, by name.
        x: Inputs, [N, ...], floating ones in float64.
        batch: The displacements, and the budget of temporary memory.

    Returns:
        The unit differences, [M, members, N, C], in the dtype of ``batch.scales``. The second member is the minus
        member of an antithetic pair, :math:`[f(x; \theta - s_m E_m) - f(x; \theta)] / s_m`.

    Raises:
        NoRule: If the model calls a function that has no rule.
    """
    model = DisplacedForward(forward, tensors, originals, param_indices)
    plan = ChunkPlan.from_trials(model, x, batch)
    blocks = []
    for inputs in x.split(plan.block_inputs) if len(x) else [x]:
        cache: list[tuple[Any, Any]] = []
        chunks: list[Tensor] = []
        for samples in slices(len(batch.sample_ids), plan.group_samples):
            group = make_group(model, batch, samples, plan.holds_noise)
            for chunk in slices(len(group.sample_ids), plan.chunk_samples):
                ctx = make_context(batch, group, samples.start, chunk, cache)
                chunks.append(model.unit_differences(inputs, ctx))
        blocks.append(torch.cat(chunks))
    return torch.cat(blocks, dim=2)
