"""Any ``nn.Module`` as a general model."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from nntk.models.checks import check_evaluation_mode, check_parameters
from nntk.models.draws import Draws, seeded
from nntk.models.functional import call
from nntk.models.general import GeneralModel, Tensors, Trials
from nntk.models.selection import displaced_names


def view_module(
    model: nn.Module, parameters: Sequence[str] | None, draws: Draws | None = None, trials: Trials | None = None
) -> GeneralModel:
    """Return the view of a module.

    Args:
        model: Any module that treats the inputs of a batch one by one; nothing of it is changed or copied.
        parameters: Names of the displaced parameters, or patterns of them; None for all that require a gradient.
        draws: Draws of PyTorch's random numbers that the module is averaged over; None for a deterministic module.
        trials: Outcomes of earlier trials of propagation through the module.

    Returns:
        The view.

    Raises:
        ValueError: If a layer is in training mode, a parameter is not finite, or no parameter is selected.
        TypeError: If a parameter is neither float32 nor float64.
    """
    check_evaluation_mode(model, allow_random=draws is not None)
    check_parameters(model)
    selected = displaced_names(model, parameters)
    all_parameters = dict(model.named_parameters())
    param_indices = {name: index for index, name in enumerate(all_parameters)}
    named_tensors = [*all_parameters.items(), *model.named_buffers()]
    constants = {name: tensor.detach() for name, tensor in named_tensors if name not in selected}
    dtypes = {all_parameters[name].dtype for name in selected}
    if len(dtypes) > 1:
        raise TypeError(f"displaced parameters must have one dtype, got {', '.join(sorted(map(str, dtypes)))}.")

    def evaluate_draw(tensors: Tensors, x: Tensor, seed: int) -> Tensor:
        with seeded(seed, x.device):
            return call(model, tensors, x)

    displaced = {param_indices[name]: all_parameters[name].detach() for name in selected}
    names = {param_indices[name]: name for name in selected}
    evaluate = evaluate_draw if draws else partial(call, model)
    return GeneralModel(evaluate, displaced, names, constants, draws=draws, trials={} if trials is None else trials)
