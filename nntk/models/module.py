"""Any ``nn.Module`` as a general model."""

from collections.abc import Sequence

from torch import nn

from nntk.models.checks import check_evaluation_mode, check_parameters
from nntk.models.data.outputs import OutputChoice
from nntk.models.draws import Draws
from nntk.models.frozen.promotion import HALVES
from nntk.models.general import GeneralModel
from nntk.models.isolation.evaluation import ModuleEvaluation
from nntk.models.isolation.findings import Findings
from nntk.models.selection import displaced_names


def view_module(
    model: nn.Module,
    parameters: Sequence[str] | None,
    draws: Draws | None = None,
    findings: Findings | None = None,
    choose: OutputChoice | None = None,
) -> GeneralModel:
    """Return the view of a module.

    Args:
        model: Any module that treats the inputs of a batch one by one; it is evaluated on a private copy
            of its structure, and stays as it is.
        parameters: Names of the displaced parameters, or patterns of them; None for all that require a gradient.
        draws: Draws of PyTorch's random numbers that the module is averaged over; None for a deterministic module.
        findings: What earlier calls found out about the module.
        choose: Chooses the tensor that counts among what the module returns; by default :class:`OutputChoice`.

    Returns:
        The view.

    Raises:
        ValueError: If a layer is in training mode, a parameter is not finite, or no parameter is selected.
        TypeError: If a parameter is neither float32 nor float64 nor in half precision, or displaced parameters have
            several dtypes.
    """
    check_evaluation_mode(model, allow_random=draws is not None)
    selected = displaced_names(model, parameters)
    check_parameters(model)
    all_parameters = dict(model.named_parameters())
    param_indices = {name: index for index, name in enumerate(all_parameters)}
    named_tensors = [*all_parameters.items(), *model.named_buffers()]
    constants = {name: tensor.detach() for name, tensor in named_tensors if name not in selected}
    # A rounding to half precision would take the digits of a displacement.
    values = {name: all_parameters[name].detach() for name in selected}
    values = {name: value.float() if value.dtype in HALVES else value for name, value in values.items()}
    dtypes = {value.dtype for value in values.values()}
    if len(dtypes) > 1:
        raise TypeError(f"displaced parameters must have one dtype, got {', '.join(sorted(map(str, dtypes)))}.")

    displaced = {param_indices[name]: value for name, value in values.items()}
    names = {param_indices[name]: name for name in selected}
    known = Findings() if findings is None else findings
    written = frozenset(name for name, _ in model.named_buffers())
    evaluate = ModuleEvaluation(model, known, OutputChoice() if choose is None else choose)
    return GeneralModel(evaluate, displaced, names, constants, draws=draws, findings=known, written=written)
