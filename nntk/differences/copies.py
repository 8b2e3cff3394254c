"""Differences by plain evaluation: the model is evaluated at displaced copies of its parameters, chunk by chunk."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.differences.digits import check_digits
from nntk.differences.request import DifferenceRequest
from nntk.kernels.philox import displacements_by_ordinal
from nntk.kernels.philox.slabs import TILE
from nntk.models.data.inputs import Batch, cast_floating
from nntk.models.general import GeneralModel, Tensors
from nntk.models.isolation.findings import input_kind
from nntk.models.observe import HeldBytes

_log = logging.getLogger("nntk")

_STACKED = 8
"""Displacements whose copies are evaluated together; more of them leave a CPU's caches."""
_STACKED_COEFFICIENTS, _MOST_STACKED = 1 << 17, 32
"""Coefficients of small copies that are evaluated together all the same, so that calls do not take the time."""

Members = tuple[Tensor, Tensor | None]
"""Outputs at the plus members of antithetic pairs, and at the minus members where there are any, [m, N, C] each."""


def copy_differences(
    model: GeneralModel, x: Batch, request: DifferenceRequest, is_measured: bool = False, base: Tensors | None = None
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
    if len(inputs):
        model.remember_prefix(inputs, request.max_bytes // 4)

    def differences_at(parameters: Tensors, x: Batch, part: DifferenceRequest) -> Tensor:
        blocks = x.split(plan.inputs) if len(x) else [x]
        unperturbed = None
        if part.pairs != "odd":
            unperturbed = torch.cat([model.outputs_at(parameters, block) for block in blocks])
        evaluations = _evaluate_members(model, parameters, blocks, part, plan)
        differences = [
            _unit_differences(*members, unperturbed, scale, part.pairs).to(model.dtype)
            for members, scale in evaluations
        ]
        return torch.cat(differences, dim=1 if part.pairs == "both" else 0)

    if not is_measured:
        check_digits(model, base, inputs, request, differences_at)
    return differences_at(base, inputs, request)


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
    model: GeneralModel, base: Tensors, blocks: Sequence[Batch], request: DifferenceRequest, plan: "CopyPlan"
) -> Iterator[tuple[Members, Tensor]]:
    """Yield the outputs at both members of some displacements at a time, and the scales, [m, 1, 1].

    All blocks of inputs are evaluated at the same copies, so that their noise is generated once.
    """
    dtype, stream = next(iter(base.values())).dtype, (request.seed, request.directions)
    shapes = {index: tuple(parameter.shape) for index, parameter in model.displaced.items()}
    evaluate = evaluate_stacked if plan.stacked > 1 else evaluate_in_turn
    chunks = zip(request.sample_ids.split(plan.displacements), request.scales.split(plan.displacements), strict=True)
    for sample_ids, scales in chunks:
        noise = displacements_by_ordinal(sample_ids, shapes, *stream, model.dtype)
        units = {model.names[index]: noise[index] for index in model.displaced}
        for start in range(0, len(sample_ids), plan.stacked):
            stack = slice(start, start + plan.stacked)
            s = scales[stack]
            # The displacement is that of ``kernel.displacements(m)``, to the bit: ties may depend on it.
            copies = {
                name: _members_of(base[name], (u[stack] * s.view(-1, *[1] * (u.dim() - 1))).to(dtype), request.members)
                for name, u in units.items()
            }
            outputs = torch.cat([evaluate(model, copies, block) for block in blocks], dim=1)
            plus, minus = outputs.split(len(s)) if request.members == 2 else (outputs, None)
            yield (plus, minus), s.to(dtype)[:, None, None]


def _members_of(parameter: Tensor, step: Tensor, members: int) -> Tensor:
    """Return a parameter plus its displacements, and then minus them where there are two members."""
    copies = parameter.new_empty(members * len(step), *parameter.shape)
    torch.add(parameter, step, out=copies[: len(step)])
    if members == 2:
        torch.sub(parameter, step, out=copies[len(step) :])
    return copies


def evaluate_stacked(model: GeneralModel, parameters: Tensors, x: Batch) -> Tensor:
    """Return outputs [m, N, C] at several values of the parameters, [m, ...] each, at once by vmap."""
    outputs: Tensor = torch.vmap(lambda one: model.outputs_at(one, x))(parameters)
    return outputs


def evaluate_in_turn(model: GeneralModel, parameters: Tensors, x: Batch) -> Tensor:
    """Return outputs [m, N, C] at several values of the parameters, [m, ...] each, one after another."""
    count = len(next(iter(parameters.values())))
    return torch.stack([model.outputs_at({name: p[m] for name, p in parameters.items()}, x) for m in range(count)])


def stacks_well(model: GeneralModel, base: Tensors, x: Batch) -> bool:
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


def most_together(num_params: int, bytes_of_copy: int, max_bytes: int, fits_caches: bool) -> tuple[int, int]:
    """Return how many displacements are evaluated together at most, and of how many the noise is generated together.

    On a GPU small operations take as long as their launches, so the budget alone is the limit.

    Args:
        num_params: Number d of displaced parameters.
        bytes_of_copy: Bytes that the evaluation of one copy at all inputs holds.
        max_bytes: Budget, of which an evaluation has a quarter.
        fits_caches: True on a CPU, where what is done together should also stay in the caches; False on a GPU.

    Returns:
        Both numbers, at least one on a GPU.

    Example:
        >>> most_together(1000, 2**20, 2**30, True), most_together(1000, 2**20, 2**30, False)
        ((32, 524), (128, 268435))
    """
    if fits_caches:
        return max(_STACKED, min(_MOST_STACKED, _STACKED_COEFFICIENTS // num_params)), TILE // num_params
    return max(1, max_bytes // 4 // (2 * bytes_of_copy)), max(1, max_bytes // 4 // num_params)


@dataclass(frozen=True)
class CopyPlan:
    """Numbers that an evaluation at displaced copies handles together.

    Attributes:
        displacements: Displacements whose noise is generated together.
        stacked: Displacements whose copies, two for an antithetic pair, are evaluated together.
        inputs: Inputs that they are evaluated at together.
    """

    displacements: int
    stacked: int
    inputs: int

    @classmethod
    def of(cls, model: GeneralModel, base: Tensors, x: Batch, max_bytes: int) -> "CopyPlan":
        """Return the plan: half of the budget is for noise and copies, half for the tensors of an evaluation."""
        dtype = next(iter(base.values())).dtype
        key = (input_kind(x), dtype, max_bytes, len(x) if model.draws or not _is_on_cpu(base) else None)
        if key not in model.findings.copy_plans:
            model.findings.copy_plans[key] = cls._find(model, base, x, max_bytes)
        plan: CopyPlan = model.findings.copy_plans[key]
        return plan

    @classmethod
    def _find(cls, model: GeneralModel, base: Tensors, x: Batch, max_bytes: int) -> "CopyPlan":
        itemsize, d = next(iter(base.values())).itemsize, model.num_params
        copies = max(1, max_bytes // 2 // (4 * itemsize * d))
        one = _bytes_of_evaluation(model, base, x[:1])
        # What does not grow with the inputs, such as the signs of weights, is there for each copy.
        bytes_per_input = max(1, _bytes_of_evaluation(model, base, x[:2]) - one) if len(x) > 1 else max(1, one)
        fixed = max(0, one - bytes_per_input)
        most, most_generated = most_together(d, fixed + len(x) * bytes_per_input, max_bytes, _is_on_cpu(base))
        stacked = min(most, copies) if copies > 1 and stacks_well(model, base, x[:1]) else 1
        displacements = max(stacked, min(copies, most_generated))
        if model.draws:
            # The noise of an input depends on its place in the batch, so that inputs must stay together.
            return cls(displacements, stacked, max(1, len(x)))
        # Half of what is left is a margin: operators and vmap make tensors of their own.
        per_copy = max_bytes // 4 // (2 * stacked) - fixed
        return cls(displacements, stacked, max(1, per_copy // bytes_per_input))


def _is_on_cpu(base: Tensors) -> bool:
    return next(iter(base.values())).device.type == "cpu"


def _bytes_of_evaluation(model: GeneralModel, base: Tensors, x: Batch) -> int:
    """Return the largest bytes of tensors that an evaluation holds at a time; the first one shows whether it works."""
    try:
        with HeldBytes() as held:
            model.outputs_at(base, x)
    except RuntimeError as error:
        dtype = next(iter(base.values())).dtype
        if dtype == model.dtype:
            raise
        raise TypeError(
            f"model must be evaluable in {dtype}, in which differences keep their digits, but fails: "
            f"{str(error).rstrip('.')}. Use precision='fp32' to evaluate it in the dtype of its parameters."
        ) from error
    largest: int = held.largest
    return largest
