"""Propagation of differences through any model whose functions have rules, chunk by chunk."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nntk.kernels.slices import slices
from nntk.propagation.batch import DisplacementBatch
from nntk.propagation.doubts import Doubts
from nntk.propagation.forward import DisplacedForward
from nntk.propagation.plan import ChunkPlan, Trials, make_context, make_group
from nntk.propagation.registry import NoRule


def propagate(
    forward: Callable[[dict[str, Tensor], Tensor], Any],
    tensors: Mapping[str, Tensor],
    originals: Mapping[str, Tensor],
    param_indices: Mapping[str, int],
    x: Tensor,
    batch: DisplacementBatch,
    recompute: Callable[[Tensor], Tensor] | None = None,
    trials: Trials | None = None,
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
        recompute: Function from positions in the batch, [K], to their unit differences, [K, members, N, C], that
            evaluates the model in float64. It is called for the displacements where rounding may have decided: on which
            side of a jump a value lies, or what is left of a value that cancels before a norm or a quotient.
        trials: Sizes that trials of earlier calls with these tensors showed, to which those of this call are added.

    Returns:
        The unit differences, [M, members, N, C], in the dtype of ``batch.scales``. The second member is the minus
        member of an antithetic pair, :math:`[f(x; \theta - s_m E_m) - f(x; \theta)] / s_m`.

    Raises:
        NoRule: If the model calls a function that has no rule; without ``recompute`` also if rounding may have decided
            for some displacement.
    """
    model = DisplacedForward(forward, tensors, originals, param_indices)
    plan = ChunkPlan.from_trials(model, x, batch, {} if trials is None else trials)
    blocks, doubts = [], Doubts.none(len(batch.sample_ids), batch.scales.device)
    groups = [(samples, make_group(model, batch, samples, plan.holds_noise)) for samples in plan.groups(batch)]
    for inputs in x.split(plan.block_inputs) if len(x) else [x]:
        cache: list[tuple[Any, Any]] = []
        chunks: list[Tensor] = []
        for samples, group in groups:
            for chunk in slices(len(group.sample_ids), plan.chunk_samples):
                ctx = make_context(batch, group, samples.start, chunk, cache)
                chunks.append(model.unit_differences(inputs, ctx))
                doubts.add(slice(samples.start + chunk.start, samples.start + chunk.stop), ctx.doubts)
            if len(groups) > 1:
                group.forget_noise()
        doubts.jumps_met += ctx.doubts.jumps_met
        blocks.append(torch.cat(chunks))
    differences = torch.cat(blocks, dim=2)
    positions = doubts.uncertain().nonzero()[:, 0]
    if len(positions):
        if recompute is None:
            raise NoRule(
                f"model has values within rounding of a jump, or that cancel before a norm or a quotient, at "
                f"{len(positions)} of {len(batch.sample_ids)} displacements, which only float64 decides."
            )
        differences[positions] = recompute(positions).to(differences.dtype)
    return differences
