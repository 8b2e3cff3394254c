"""Choice of the route by which differences are computed: an MLP's layers, rules of propagation, or displaced copies."""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.differences.copies import copy_differences
from nntk.differences.request import DifferenceRequest
from nntk.differences.rule_precision import log_precision, precision_remark, rule_precision
from nntk.differences.single_precision import float32_suffices, float64_decides_jumps
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.perturb import mlp_differences
from nntk.kernels.perturb.config import resolve
from nntk.models.data.inputs import Batch, cast_floating
from nntk.models.general import GeneralModel
from nntk.models.isolation.findings import input_kind
from nntk.models.mlp import Mlp
from nntk.models.recognise import NotRecognised
from nntk.models.view import ModelView
from nntk.propagation import DisplacementBatch, NoRule, propagate

_log = logging.getLogger("nntk")

_TRIAL_SCALE = 1e-2
"""Least scale of a trial, relative to the root mean square of the parameters."""
_TRIAL_INPUTS = 8
"""Inputs of a trial, spread over all of them."""
_TRIAL_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative disagreement with plain differences in float64, at each input, by dtype."""


@dataclass(frozen=True)
class Route:
    """Route by which differences of a model are computed.

    Attributes:
        name: ``"layers"`` (an MLP by its layers), ``"rules"`` (a general model by rules of propagation) or ``"copies"``
            (evaluation at displaced copies).
        reason: Why this route is taken, in one sentence.
        propagation: ``"difference"`` or ``"direct"``.
        precision: ``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp64"``: operands of products, or all of an evaluation.
    """

    name: str
    reason: str
    propagation: str
    precision: str


def unit_differences(model: ModelView, x: Batch, request: DifferenceRequest) -> tuple[Tensor, Tensor]:
    r"""Return differences over their scales, :math:`[f(\theta + s_m E_m) - f(\theta)] / s_m`.

    Args:
        model: The model.
        x: Inputs, as the model's ``inputs`` returns them.
        request: The displacements.

    Returns:
        Unit differences, [M, N, C] in the dtype of the parameters, or [2, M, N, C] for both members of antithetic
        pairs; and the squared norms of the unit displacements, [M], float64.

    Raises:
        NotRecognised: If differences are to be propagated, and a function of the model has no rule.
        TypeError: If the model does not return a tensor with a row for each input.
    """
    if isinstance(model, Mlp):
        assert isinstance(x, Tensor), "inputs() returned a matrix"
        return mlp_differences(
            x, model.layers, request.sample_ids, request.scales, request.seed, request.directions, request.pairs,
            request.propagation, request.precision, request.max_memory, request.samples,
        )  # fmt: skip
    norms = squared_norms(model.displaced, request.sample_ids, request.seed, request.directions)
    if request.propagation == "auto" and float32_suffices(model, x, request):
        return copy_differences(model, x, replace(request, precision="fp32"), is_measured=True), norms
    if request.propagation == "auto" and float64_decides_jumps(model, x, request):
        return copy_differences(model, x, request), norms
    if request.propagation == "difference" or request.propagation == "auto" and not _obstacle(model, x, request):
        try:
            return propagated_differences(model, x, request), norms
        except Exception as error:
            if request.propagation == "difference":
                if not isinstance(error, NoRule):
                    raise
                raise NotRecognised(f"{error} Use propagation='auto' for what cannot be propagated.") from error
            # The trial did not meet what the other inputs need.
            model.failures[input_kind(x)] = _log_obstacle(_in_words(error))
    return copy_differences(model, x, request), norms


def propagated_differences(model: GeneralModel, x: Batch, request: DifferenceRequest) -> Tensor:
    """Return unit differences of a general model by rules of propagation, in the layout of :func:`unit_differences`."""
    tangents = _propagate(model, x, request)
    if request.pairs == "both":
        return tangents.transpose(0, 1)
    return tangents[:, 0] if request.pairs == "none" else tangents[:, 0].sub_(tangents[:, 1]).mul_(0.5)


def route_of(model: ModelView, x: Batch, request: DifferenceRequest) -> Route:
    """Return the route that :func:`unit_differences` takes, after a trial where one is needed.

    Args:
        model: The model.
        x: Inputs, as the model's ``inputs`` returns them.
        request: The displacements.

    Returns:
        The route.
    """
    if isinstance(model, Mlp):
        smallest = float(request.scales.min()) if len(request.scales) else 1.0
        choice = (request.propagation, request.precision, request.directions)
        chosen = resolve(model.layers, smallest, request.samples, model.device, *choice)
        precision = "fp64" if model.dtype == torch.float64 else chosen[1]
        return Route("layers", "The model is an MLP of known layers.", chosen[0], precision)
    if request.propagation == "difference":
        return _route_of_rules(model, x, request, "Propagation was requested.")
    copies = "fp32" if model.dtype == torch.float32 and request.precision == "fp32" else "fp64"
    if request.propagation == "direct":
        return Route("copies", "Direct evaluation was requested.", "direct", copies)
    if float32_suffices(model, x, request):
        reason = "In float32, rounding changes the kernel by less than a tenth of its Monte-Carlo error."
        return Route("copies", reason, "direct", "fp32")
    if float64_decides_jumps(model, x, request):
        return Route("copies", "The model jumps, and float64 decides on which side.", "direct", "fp64")
    if obstacle := _obstacle(model, x, request):
        return Route("copies", obstacle, "direct", copies)
    return _route_of_rules(model, x, request, "Every function of the model has a rule.")


def _route_of_rules(model: GeneralModel, x: Batch, request: DifferenceRequest, reason: str) -> Route:
    precision = rule_precision(model, x, request)
    return Route("rules", reason + precision_remark(request, precision), "difference", precision)


def _propagate(model: GeneralModel, x: Batch, request: DifferenceRequest) -> Tensor:
    """Return tangents [M, members, N, C]."""
    precision = rule_precision(model, x, request)
    log_precision(model, request, precision)
    batch = DisplacementBatch(
        request.sample_ids, request.scales, request.seed, request.directions, request.members, request.max_bytes,
        "fp32" if precision == "fp64" else precision,
    )  # fmt: skip
    param_indices = {name: index for index, name in model.names.items()}
    inputs = cast_floating(x, torch.float64)

    def recompute(positions: Tensor) -> Tensor:
        pairs = "both" if request.members == 2 else "none"
        ids, scales = request.sample_ids[positions], request.scales[positions]
        part = replace(request, sample_ids=ids, scales=scales, pairs=pairs, precision="auto")
        differences = copy_differences(model, x, part)
        return differences.transpose(0, 1) if request.members == 2 else differences[:, None]

    return propagate(
        model.evaluate, model.tensors(torch.float64), model.originals, param_indices, inputs, batch, recompute,
        model.findings.rule_trials,
    )  # fmt: skip


def _obstacle(model: GeneralModel, x: Batch, request: DifferenceRequest) -> str:
    """Return the reason why differences cannot be propagated, or an empty string; tried once for a kind of input."""
    if model.is_opaque:
        return "The model is a black box, whose functions are not known."
    if model.draws:
        return "The model is stochastic."
    if not len(x) or not len(request.sample_ids):
        return "There is nothing to propagate."
    kind = input_kind(x)
    if kind not in model.findings.obstacles:
        model.findings.obstacles[kind] = _log_obstacle(_try_propagation(model, x, request))
    return model.failures.get(kind, "") or model.findings.obstacles[kind]


def _log_obstacle(obstacle: str) -> str:
    if obstacle:
        _log.info("Differences are computed at displaced copies of the parameters: %s", obstacle)
    return obstacle


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, NoRule) else f"Propagation failed: {type(error).__name__}: {error}"


def _try_propagation(model: GeneralModel, x: Batch, request: DifferenceRequest) -> str:
    """Compare propagated with plain differences at a few inputs and two displacements; return what is wrong."""
    # The scale is a hundredth of the parameters or more: there a model that rounds internally keeps digits, and the
    # members of a pair differ.
    squares = sum(float(parameter.double().square().sum()) for parameter in model.displaced.values())
    scales = request.scales[:2].clamp(min=_TRIAL_SCALE * (squares / model.num_params) ** 0.5)
    pairs = "both" if request.members == 2 else "none"
    trial = replace(request, sample_ids=request.sample_ids[:2], scales=scales, pairs=pairs, precision="auto")
    few = x[torch.linspace(0, len(x) - 1, min(_TRIAL_INPUTS, len(x))).round().long().to(x.device)]
    try:
        propagated = _propagate(model, few, trial)
    except Exception as error:  # Whatever it is, plain evaluation reports it where it matters.
        return _in_words(error)
    plain = copy_differences(model, few, trial).double()
    plain = plain.transpose(0, 1) if trial.members == 2 else plain[:, None]
    if propagated.shape == plain.shape:
        off, size = (d.transpose(0, 2).flatten(1).norm(dim=1) for d in (propagated.double() - plain, plain))
        # A difference that is zero at some input is zero by its rules too, up to the size at the other inputs.
        allowed = _TRIAL_TOLERANCE[model.dtype] * torch.maximum(size, _TRIAL_TOLERANCE[model.dtype] * size.max())
        # Written so that NaN disagrees.
        if bool((off <= allowed).all()):
            return ""
    return "Propagated differences disagree with a plain evaluation in float64."
