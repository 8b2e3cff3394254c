"""Differences by plain evaluation: the model is evaluated at displaced copies of its parameters, chunk by chunk."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.differences.digits import check_digits
from nntk.differences.request import DifferenceRequest
from nntk.kernels.philox import unit_displacements
from nntk.kernels.philox.slabs import TILE
from nntk.models.general import GeneralModel, Tensors, cast_floating
from nntk.models.observe import Observe

_log = logging.getLogger("nntk")

_STACKED = 8
"""Number of displaced copies that are evaluated together; more of them leave a CPU's caches."""

Members = tuple[Tensor, Tensor | None]
"""Outputs at the plus members of antithetic pairs, and at the minus members where there are any, [m, N, C] each."""


def copy_differences(
    model: GeneralModel, x: Tensor, request: DifferenceRequest, is_measured: bool = False, base: Tensors | None = None
) -> Tensor:
    """Return unit differences of a model's outputs by subtraction of evaluations.

    The evaluations are in float64 unless the request says ``precision="fp32"``: a subtraction of float32 outputs would
    leave little but their rounding error, divided by the scale.

    Args:
        model: The model.
        x: Inputs, [N, ...].
        request: The displacements.
        is_measured: True if the caller knows the rounding error, which is otherwise predicted here.
        base: Parameters that are displaced, in the dtype of the evaluation; None for those of the model.

    Returns:
        [M, N, C] in the dtype of the parameters, or [2, M, N, C] for both members of antithetic pairs.

    Raises:
        TypeError: If the model cannot be evaluated in float64, or does not return a row for each input.
        ValueError: If the displacements are so small that rounding leaves nothing of the differences.
    """
    dtype = model.dtype if request.precision == "fp32" else torch.float64
    base, inputs = model.parameters(dtype) if base is None else base, cast_floating(x, dtype)
    plan = CopyPlan.of(model, base, inputs, request.max_bytes)

    def differences_at(parameters: Tensors, block: Tensor, part: DifferenceRequest) -> Tensor:
        unperturbed = None if part.pairs == "odd" else model.outputs_at(parameters, block)
        evaluations = _evaluate_members(model, parameters, block, part, plan)
        differences = [_unit_differences(*members, unperturbed, scale, part.pairs) for members, scale in evaluations]
        return torch.cat(differences, dim=1 if part.pairs == "both" else 0)

    if not is_measured:
        check_digits(model, base, inputs, request, differences_at)
    blocks = inputs.split(plan.inputs) if len(inputs) else [inputs]
    return torch.cat([differences_at(base, block, request).to(model.dtype) for block in blocks], dim=-2)


def _unit_differences(
    plus: Tensor, minus: Tensor | None, unperturbed: Tensor | None, scale: Tensor, pairs: str
) -> Tensor:
    if pairs == "odd":
        assert minus is not None, "both members were evaluated"
        return (plus - minus) / (2 * scale)
    assert unperturbed is not None, "the unperturbed model was evaluated"
    one_sided = (plus - unperturbed) / scale
    return one_sided if minus is None else torch.stack((one_sided, (minus - unperturbed) / scale))


def _evaluate_members(
    model: GeneralModel, base: Tensors, x: Tensor, request: DifferenceRequest, plan: "CopyPlan"
) -> Iterator[tuple[Members, Tensor]]:
    """Yield the outputs at both members of some displacements at a time, and the scales, [m, 1, 1]."""
    dtype, stream = next(iter(base.values())).dtype, (request.seed, request.directions)
    evaluate = evaluate_stacked if plan.stacked > 1 else evaluate_in_turn
    chunks = zip(request.sample_ids.split(plan.displacements), request.scales.split(plan.displacements), strict=True)
    for sample_ids, scales in chunks:
        units = {
            model.names[index]: unit_displacements(sample_ids, index, parameter.shape, *stream, model.dtype)
            for index, parameter in model.displaced.items()
        }
        for start in range(0, len(sample_ids), plan.stacked):
            stack = slice(start, start + plan.stacked)
            s = scales[stack]
            # The displacement is that of ``kernel.displacements(m)``, to the bit: ties may depend on it.
            delta = {name: (u[stack] * s.view(-1, *[1] * (u.dim() - 1))).to(dtype) for name, u in units.items()}
            plus = evaluate(model, {name: base[name] + step for name, step in delta.items()}, x)
            minus = None
            if request.pairs != "none":
                minus = evaluate(model, {name: base[name] - step for name, step in delta.items()}, x)
            yield (plus, minus), s.to(dtype)[:, None, None]


def evaluate_stacked(model: GeneralModel, parameters: Tensors, x: Tensor) -> Tensor:
    """Return outputs [m, N, C] at several values of the parameters, [m, ...] each, at once by vmap."""
    outputs: Tensor = torch.vmap(lambda one: model.outputs_at(one, x))(parameters)
    return outputs


def evaluate_in_turn(model: GeneralModel, parameters: Tensors, x: Tensor) -> Tensor:
    """Return outputs [m, N, C] at several values of the parameters, [m, ...] each, one after another."""
    count = len(next(iter(parameters.values())))
    return torch.stack([model.outputs_at({name: p[m] for name, p in parameters.items()}, x) for m in range(count)])


def stacks_well(model: GeneralModel, base: Tensors, x: Tensor) -> bool:
    """Return True if vmap evaluates the model and agrees with evaluation in turn; this is tried at the inputs ``x``."""
    if model.is_opaque or model.draws:
        return False
    two = {name: torch.stack((parameter, parameter * 1.5)) for name, parameter in base.items()}
    try:
        stacked = evaluate_stacked(model, two, x)
    except Exception as error:  # vmap may object to anything; the model reports its own errors when evaluated alone.
        _log.info("Displaced copies are evaluated in turn: vmap objects to the model: %s", error)
        return False
    agrees = torch.allclose(stacked, evaluate_in_turn(model, two, x), rtol=1e-3, atol=1e-5, equal_nan=True)
    if not agrees:
        _log.info("Displaced copies are evaluated in turn: vmap gives other outputs.")
    return agrees


@dataclass(frozen=True)
class CopyPlan:
    """Numbers that an evaluation at displaced copies handles together.

    Attributes:
        displacements: Displacements whose noise is generated together.
        stacked: Displaced copies that are evaluated together.
        inputs: Inputs that they are evaluated at together.
    """

    displacements: int
    stacked: int
    inputs: int

    @classmethod
    def of(cls, model: GeneralModel, base: Tensors, x: Tensor, max_bytes: int) -> "CopyPlan":
        """Return the plan: half of the budget is for noise and copies, half for the tensors of an evaluation."""
        itemsize, d = next(iter(base.values())).itemsize, model.num_params
        copies = max(1, max_bytes // 2 // (4 * itemsize * d))
        bytes_per_input = _bytes_of_evaluation(model, base, x[:1])
        stacked = min(_STACKED, copies) if copies > 1 and stacks_well(model, base, x[:1]) else 1
        displacements = max(stacked, min(copies, TILE // d))
        if model.draws:
            # The noise of an input depends on its place in the batch, so that inputs must stay together.
            return cls(displacements, stacked, max(1, len(x)))
        return cls(displacements, stacked, max(1, max_bytes // 2 // (max(1, bytes_per_input) * stacked)))


def _bytes_of_evaluation(model: GeneralModel, base: Tensors, x: Tensor) -> int:
    """Return the bytes of all tensors that an evaluation makes; it is the first one, and shows whether it works."""
    total = 0

    def count(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        nonlocal total
        if not function.is_view:
            total += sum(
                tensor.numel() * tensor.itemsize for tensor in tree_leaves(result) if isinstance(tensor, Tensor)
            )

    try:
        with Observe(count):
            model.outputs_at(base, x)
    except RuntimeError as error:
        dtype = next(iter(base.values())).dtype
        if dtype == model.dtype:
            raise
        raise TypeError(
            f"model must be evaluable in {dtype}, in which differences keep their digits, but fails: "
            f"{str(error).rstrip('.')}. Use precision='fp32' to evaluate it in the dtype of its parameters."
        ) from error
    return total
