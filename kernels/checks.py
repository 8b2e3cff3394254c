"""Checks of arguments before any work: each error names the argument, the value given and what is allowed."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
"""Dtypes that models and inputs may have."""


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: If it is not; the message lists the allowed values.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value


def integer(name: str, value: SupportsIndex, minimum: int, maximum: int | None = None, hint: str = "") -> int:
    """Return ``value`` as an int if it is a whole number (not a bool) in [minimum, maximum].

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    try:
        number: int | None = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}). {hint}".rstrip())
    if number < minimum or (maximum is not None and number > maximum):
        limits = f"at least {minimum}" if maximum is None or number < minimum else f"at most {maximum}"
        raise ValueError(f"{name} must be {limits}, got {number}. {hint}".rstrip())
    return number


def positive_float(name: str, value: SupportsFloat, minimum: float, maximum: float, hint: str = "") -> float:
    """Return ``value`` as a float if it is a number in [minimum, maximum], with ``minimum`` >= 0.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is out of range or not a number.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if math.isnan(number) and not isinstance(value, float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}). {hint}".rstrip())
    if math.isnan(number) or not minimum <= number <= maximum:
        raise ValueError(f"{name} must be between {minimum:g} and {maximum:g}, got {number:g}. {hint}".rstrip())
    return number


def boolean(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__}).")
    return value


def tensor(name: str, value: object) -> None:
    """Check that ``value`` is a dense tensor.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; use {name}.to_dense().")


def sample_ids(value: Tensor) -> None:
    """Check that ``value`` is an int64 vector of stream numbers.

    Raises:
        TypeError: If it is not.
    """
    if value.dtype != torch.int64 or value.dim() != 1:
        raise TypeError(
            f"sample_ids must be an int64 vector of stream numbers, got {value.dtype} of shape {tuple(value.shape)}."
        )


def displaced_parameters(parameters: Mapping[int, Tensor]) -> None:
    """Check that there is at least one parameter to displace.

    Raises:
        ValueError: If there are none.
    """
    if not parameters:
        raise ValueError("parameters must hold the displaced parameters by ordinal, got none.")


def finite(name: str, value: Tensor) -> None:
    """Check that a tensor holds neither NaN nor infinity.

    Raises:
        ValueError: If it does; the message gives the number of such entries and the index of the first.
    """
    invalid = ~torch.isfinite(value)
    if invalid.any():
        first = tuple(invalid.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite, got {int(invalid.sum())} NaN or infinite of {invalid.numel()} entries, "
            f"the first at index {first}."
        )


def all_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors hold neither NaN nor infinity; the host waits once for each device.

    Args:
        tensors: The tensors by name.

    Raises:
        ValueError: If one does; the message is that of :func:`finite` for the first.
    """
    flags: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors.values():
        flags.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    if not all(bool(torch.stack(of_device).all()) for of_device in flags.values()):
        for name, tensor in tensors.items():
            finite(name, tensor)
