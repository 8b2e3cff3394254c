"""Training data of the estimators: arrays as scikit-learn has them, inputs of several tensors, and streams."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_array
from torch import Tensor, nn

from nntk.models.data.inputs import Inputs, as_batch, named_tensors
from nntk.models.data.streams import Source, Stream, as_source, example_of
from nntk.models.frozen.promotion import HALVES


def has_structure(x: Any) -> bool:
    """Return True for inputs that are no array: a mapping or a tuple of tensors, or a stream of batches."""
    # Some sparse matrices of SciPy are dictionaries.
    if isinstance(x, list | str) or hasattr(x, "__array__") or hasattr(x, "toarray"):
        return False
    if isinstance(x, tuple):
        return bool(x) and all(isinstance(part, Tensor) for part in x)
    return isinstance(x, Inputs | Stream | Iterable)


def as_structured(x: Any, targets: bool) -> Source:
    """Return inputs that :func:`has_structure`; NumPy arrays in a mapping become tensors.

    Args:
        x: The inputs.
        targets: An iterable of batches holds pairs of inputs and targets.

    Returns:
        The inputs, or the stream.
    """
    if isinstance(x, Mapping):
        x = {name: torch.as_tensor(part) if isinstance(part, np.ndarray) else part for name, part in x.items()}
    return as_source("X", x, targets)


def structured_targets(x: Source, y: Any) -> np.ndarray:
    """Return the targets of structured inputs: those given, or those that ride along in a stream.

    Args:
        x: The inputs.
        y: Targets as callers give them, or None for those of a stream.

    Returns:
        [N] or [N, T].

    Raises:
        ValueError: If there are none, or another number than inputs, or they are not finite.
    """
    if y is None:
        y = x.targets if isinstance(x, Stream) else None
        if y is None:
            raise ValueError("y must be the targets, unless X is a stream of pairs of inputs and targets; got None.")
    array: np.ndarray = check_array(y, ensure_2d=False, dtype=None)
    if len(array) != len(x):
        raise ValueError(f"y must have a row for each of {len(x)} inputs, got {len(array)}.")
    return array


def num_features(x: Source) -> int:
    """Return the number of features of an input that is a vector, from which a model is built.

    Raises:
        ValueError: If an input is anything else.
    """
    example = example_of(x)
    if not isinstance(example, Tensor) or example.dim() != 2:
        raise ValueError(
            f"model must be an nn.Module for inputs that are no vectors, got a function, and X {example!r}."
        )
    return example.shape[1]


def in_dtype_of(x: Source, model: nn.Module) -> nn.Module:
    """Return a model in the dtype of the first floating tensor of inputs; one with parts in half precision as it is."""
    tensors = [tensor for _, tensor in named_tensors("X", example_of(x)) if tensor.is_floating_point()]
    has_halves = any(parameter.dtype in HALVES for parameter in model.parameters())
    return model.to(tensors[0].dtype) if tensors and not has_halves else model


def array_source(x: np.ndarray) -> Source:
    """Return an array of inputs as a tensor."""
    return as_batch("X", torch.as_tensor(x))
