"""Checks of models and inputs, before any work: dtypes, devices, finite numbers, evaluation mode."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.models.data.inputs import Batch, named_tensors
from nntk.models.frozen.promotion import HALVES


def check_inputs(name: str, x: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Check inputs against the dtype and the device of a model.

    Args:
        name: Name of the argument, for messages.
        x: Inputs, [N, ...].
        dtype: Dtype that the inputs must have.
        device: Device that the inputs must be on.

    Raises:
        ValueError: If the device is another one, the batch axis is missing, or an entry is not finite.
        TypeError: If ``x`` is not a tensor or has another dtype.
    """
    checks.tensor(name, x)
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the model's parameters, got {x.dtype}; use {name}.to({dtype}).")
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the model's parameters, got {x.device}.")
    if x.dim() < 2:
        raise ValueError(f"{name} must have a batch axis and features, [N, ...]; got shape {tuple(x.shape)}.")
    checks.finite(name, x)


def check_general_inputs(
    name: str, x: Batch, dtype: torch.dtype, device: torch.device, halves: Collection[torch.dtype] = ()
) -> None:
    """Check the inputs of a model that may be given several tensors, and tensors that are not floating.

    Args:
        name: Name of the argument, for messages.
        x: Inputs.
        dtype: Dtype that floating tensors must have.
        device: Device that all tensors must be on.
        halves: Dtypes in half precision that floating tensors may have too, those of frozen parameters.

    Raises:
        ValueError: If a device is another one, a batch axis is missing, or an entry is not finite.
        TypeError: If a tensor has another floating dtype.
    """
    for part, tensor in named_tensors(name, x):
        # One of several tensors may be a number for each input.
        if tensor.is_floating_point():
            check_inputs(
                part,
                tensor if part == name or tensor.dim() != 1 else tensor[:, None],
                tensor.dtype if tensor.dtype in halves else dtype,
                device,
            )
        elif tensor.dim() == 0 or tensor.device != device:
            raise ValueError(
                f"{part} must have a batch axis, [N, ...], and be on {device} like the model's parameters; "
                f"got shape {tuple(tensor.shape)} on {tensor.device}."
            )


def check_parameters(model: nn.Module) -> None:
    """Check that all parameters of a module are finite, and float32, float64 or in half precision.

    Args:
        model: The module. Parameters in half precision that are displaced are displaced in float32.

    Raises:
        ValueError: If an entry is not finite, or a parameter is on the meta device and holds no numbers.
        TypeError: If a parameter has another dtype.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in parameters.items():
        if parameter.dtype not in (*checks.FLOATS, *HALVES):
            raise TypeError(f"parameter {name!r} must be float32, float64 or in half precision, got {parameter.dtype}.")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} must hold numbers, but is on the meta device.")
    checks.all_finite({f"parameter {name!r}": parameter for name, parameter in parameters.items()})


def check_evaluation_mode(model: nn.Module, prefix: str = "", allow_random: bool = False) -> None:
    """Check that no layer of a module draws random numbers or mixes the inputs of a batch.

    Args:
        model: The module, or a layer of it.
        prefix: Name of the layer in its model, for messages.
        allow_random: Accept layers that draw random numbers.

    Raises:
        ValueError: If a layer does; the message names it.
    """
    for name, module in model.named_modules(prefix=prefix):
        layer = f"layer {name!r} ({type(module).__name__})"
        is_random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        mixes_inputs = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (mixes_inputs or is_random and not allow_random):
            remedy = ", or take its mean over draws of the noise: draws=16" if is_random else ""
            raise ValueError(
                f"model must be in evaluation mode, but {layer} is in training mode; call model.eval(){remedy}."
            )
        if mixes_inputs and not module.track_running_stats:
            raise ValueError(f"model must treat inputs one by one, but {layer} takes the statistics of the batch.")
