"""Checks of arguments: each failure names the argument, the value given and what is allowed, before any work."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: If it is not; the message lists what is.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value


def integer(name: str, value: SupportsIndex, least: int, most: int | None = None, hint: str = "") -> int:
    """Return ``value`` as an int if it is a whole number (no bool) in [least, most].

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.
    """
    try:
        number: int | None = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}). {hint}".rstrip())
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None or number < least else f"at most {most}"
        raise ValueError(f"{name} must be {limits}, got {number}. {hint}".rstrip())
    return number


def positive_float(name: str, value: SupportsFloat, least: float, most: float, hint: str = "") -> float:
    """Return ``value`` as a float if it is a number in [least, most], with ``least`` >= 0.

    Raises:
        TypeError: If it is no real number.
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
    if math.isnan(number) or not least <= number <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, got {number:g}. {hint}".rstrip())
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


def row_numbers(rows: Tensor) -> None:
    """Check that ``rows`` is an int64 vector.

    Raises:
        TypeError: If it is not.
    """
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"rows must be an int64 vector of row numbers, got {rows.dtype} of shape {tuple(rows.shape)}.")


def displaced(parameters: Mapping[int, Tensor]) -> None:
    """Check that there are parameters to displace.

    Raises:
        ValueError: If there are none.
    """
    if not parameters:
        raise ValueError("parameters must hold the displaced parameters by ordinal, got none.")


def finite(name: str, value: Tensor) -> None:
    """Check that a tensor holds neither NaN nor infinity.

    Raises:
        ValueError: If it does; the message says how many entries and which is the first.
    """
    bad = ~torch.isfinite(value)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite, got {int(bad.sum())} NaN or infinite of {bad.numel()} entries, "
            f"the first at index {first}."
        )
