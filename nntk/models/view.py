"""Choice of the view of a model: an MLP by its layers, anything else as a general model."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from nntk.models.black_box import BlackBox, Function, view_black_box, view_function
from nntk.models.data.outputs import OutputChoice
from nntk.models.draws import Draws
from nntk.models.general import GeneralModel
from nntk.models.isolation.findings import Findings
from nntk.models.isolation.wrappers import refuse_compiled, unwrap
from nntk.models.mlp import Mlp
from nntk.models.module import view_module
from nntk.models.recognise import NotRecognised, recognise

_log = logging.getLogger("nntk")

Model = nn.Module | BlackBox | Function
ModelView = Mlp | GeneralModel
FindingsByStructure = dict[Any, Findings]
"""Findings by the layers of a model and their settings: a model whose layers or settings were changed has none."""


def check_model(model: object, parameters: object, propagation: str, precision: str, draws: int | None) -> None:
    """Check the kind of a model, and that its parameters are given in the way that belongs to it.

    Args:
        model: A module, a BlackBox or a callable.
        parameters: Names for a module, tensors by name for a callable, None for a BlackBox.
        propagation: Form of the evaluation.
        precision: Precision of products.
        draws: Number of draws of a stochastic model; None for a deterministic one.

    Raises:
        TypeError: If the model is of another kind, compiled by TorchScript or exported, or its parameters are given in
            another way.
        ValueError: If the form of the evaluation does not exist for this kind of model.
    """
    model = unwrap(model)
    refuse_compiled(model)
    if draws and (propagation == "difference" or precision in ("tf32", "bf16")):
        raise ValueError(
            "propagation must be 'auto' or 'direct', and precision 'auto' or 'fp32', for a stochastic model; got "
            f"{propagation!r} and {precision!r}."
        )
    if isinstance(model, nn.Module):
        if isinstance(parameters, Mapping):
            raise TypeError("parameters must be names for an nn.Module, which holds the tensors; got a mapping.")
        return
    if not (isinstance(model, BlackBox) or callable(model)):
        raise TypeError(f"model must be an nn.Module, a BlackBox or a callable, got {type(model).__name__}.")
    if isinstance(model, BlackBox) != (parameters is None) or not isinstance(parameters, Mapping | None):
        need = "be None for a BlackBox" if isinstance(model, BlackBox) else "map names to tensors for a callable"
        raise TypeError(f"parameters must {need}, got {type(parameters).__name__}.")
    if isinstance(model, BlackBox) and (propagation == "difference" or precision in ("tf32", "bf16")):
        raise ValueError(
            "propagation must be 'auto' or 'direct', and precision 'auto' or 'fp32', for a BlackBox; got "
            f"{propagation!r} and {precision!r}."
        )


def view_model(
    model: Model,
    parameters: Sequence[str] | Mapping[str, Tensor] | None,
    draws: Draws | None = None,
    findings: FindingsByStructure | None = None,
    choose: OutputChoice | None = None,
) -> ModelView:
    """Return the view of a model with its present parameters.

    Args:
        model: The model, checked by :func:`check_model`.
        parameters: Names for a module, tensors by name for a callable, None for a BlackBox.
        draws: Draws that a stochastic model is averaged over.
        findings: What earlier calls found out about the model, to be used and extended.
        choose: Chooses the outputs among what the model returns.

    Returns:
        An MLP where the model is one and is deterministic, else a general model.

    Raises:
        ValueError: If a layer is in training mode, a parameter is not finite, or no parameter is selected.
        TypeError: If a parameter is neither float32 nor float64.
    """
    known, model = {} if findings is None else findings, unwrap(model)
    if isinstance(model, BlackBox):
        return view_black_box(model, draws, known.setdefault("black box", Findings()), choose)
    if not isinstance(model, nn.Module):
        assert isinstance(parameters, Mapping), "check_model was called"
        return view_function(model, parameters, draws, known.setdefault("function", Findings()), choose)
    names = cast("Sequence[str] | None", parameters)
    if draws is None and (choose is None or choose.output is None):
        try:
            return recognise(model, names)
        except NotRecognised as error:
            _log.debug("The model is evaluated as a general model: %s", error)
    return view_module(model, names, draws, known.setdefault(_structure(model), Findings()), choose)


_SETTING_TYPES = (bool, int, float, str)


def _structure(model: nn.Module) -> tuple[Any, ...]:
    """Return the types of a model's layers with their settings: attributes that are numbers or words."""
    return tuple(
        (type(module), *(item for item in vars(module).items() if isinstance(item[1], _SETTING_TYPES)))
        for module in model.modules()
    )
