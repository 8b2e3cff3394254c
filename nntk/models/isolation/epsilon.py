"""The epsilon of a norm that the model leaves to PyTorch: that of the model's own dtype, also in float64."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FUNCTIONS = {torch.nn.functional.rms_norm, torch.rms_norm}
_POSITION = 3


class ModelEpsilon(TorchFunctionMode):
    """Context manager under which ``rms_norm`` with ``eps=None`` takes the epsilon of the model's dtype.

    PyTorch takes that of the tensor's dtype. A model that is evaluated in float64, only so that digits are kept, would
    be another function than the user's.

    Args:
        dtype: Dtype of the model.

    Attributes:
        was_used: A norm was called that leaves its epsilon to PyTorch.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.epsilon, self.was_used = torch.finfo(dtype).eps, False

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in _FUNCTIONS and arguments and arguments[0].dtype in (torch.float16, torch.bfloat16):
            return function(*arguments, **options)  # What is in half precision is evaluated in its own dtype.
        if function in _FUNCTIONS and len(arguments) <= _POSITION and options.get("eps") is None:
            options, self.was_used = {**options, "eps": self.epsilon}, True
        elif function in _FUNCTIONS and len(arguments) > _POSITION and arguments[_POSITION] is None:
            arguments, self.was_used = (*arguments[:_POSITION], self.epsilon), True
        return function(*arguments, **options)
