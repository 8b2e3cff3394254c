"""Precision of the products of an evaluation by rules, and what is said of it."""

import logging

import torch

from nntk.differences.request import DifferenceRequest
from nntk.differences.single_precision import model_jumps
from nntk.models.data.inputs import Batch
from nntk.models.general import GeneralModel

_log = logging.getLogger("nntk")

_ROUNDED = ("tf32", "bf16")


def rule_precision(model: GeneralModel, x: Batch, request: DifferenceRequest) -> str:
    """Return the precision of the operands of products by which rules propagate differences.

    A model that jumps is evaluated in float32: at a jump, an error by rounded operands cannot be told from a
    difference, and rules find ties by the rounding of float32. The choice ``"auto"`` is float32 on every device.

    Args:
        model: The model.
        x: Inputs, as the model's ``inputs`` returns them.
        request: The displacements.

    Returns:
        ``"fp64"`` for a model in float64, else ``"fp32"``, ``"tf32"`` or ``"bf16"``.
    """
    if model.dtype == torch.float64:
        return "fp64"
    if request.precision not in _ROUNDED or (len(x) and model_jumps(model, x)):
        return "fp32"
    return request.precision


def precision_remark(request: DifferenceRequest, precision: str) -> str:
    """Return a sentence that says why rules do not use the precision that was requested; empty where they do."""
    if request.precision == precision or request.precision not in _ROUNDED:
        return ""
    return f" The model jumps, so that operands of products are not rounded to {request.precision}."


def log_precision(model: GeneralModel, request: DifferenceRequest, precision: str) -> None:
    """Say in one line of the log, once for a model, which products a precision that was requested leaves slow."""
    if request.precision not in _ROUNDED or "precision" in model.findings.reported:
        return
    model.findings.reported.add("precision")
    if precision not in _ROUNDED:
        message = precision_remark(request, precision).strip()
    elif model.device.type != "cuda":
        message = (
            f"Operands of products are rounded to {precision} and multiplied in float32, since a "
            f"{model.device.type.upper()} emulates this precision: it saves no time."
        )
    else:
        tf32 = "convolutions and einsum run in TF32, and " if precision == "bf16" else ""
        message = (
            f"Operands of products are rounded to {precision}; {tf32}products with noise that is generated where it is "
            "used stay in float32."
        )
    _log.info("%s", message)
