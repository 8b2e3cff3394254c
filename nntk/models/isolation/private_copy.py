"""Private copies of modules: the same tensors in a structure of their own, which an evaluation may change."""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

_SHARED_TYPES = (type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType, range)
"""Types of values that cannot change, or that are code."""

Memo = dict[int, Any]
"""Copies by the ``id`` of their originals, as :func:`copy.deepcopy` keeps them."""


def private_copy(model: nn.Module) -> nn.Module:
    """Return a module with the structure, attributes and hooks of another one, and with its parameters and buffers.

    A forward pass of the copy may assign attributes, extend lists or register tensors: the original is not changed.
    Parameters and buffers are shared, because an evaluation replaces them; other tensors are copied. What Python cannot
    copy, such as a lock or an open file, is shared.

    Args:
        model: The module.

    Returns:
        The copy. A submodule that is registered twice is copied once.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    memo: Memo = {id(tensor): tensor for tensor in tensors}
    twin: nn.Module = _copy_module(model, memo)
    return twin


def _copy_module(module: nn.Module, memo: Memo) -> Any:
    if id(module) not in memo:
        try:
            twin = object.__new__(type(module))
        except TypeError:  # A class that is written in C creates its instances itself.
            return copy.deepcopy(module, memo)
        memo[id(module)] = twin
        for name, value in vars(module).items():
            twin.__dict__[name] = _copy_value(value, memo)
        if "_orig_mod" in module._modules:
            # A module of torch.compile calls the module that it was made from; its copy calls that module's copy.
            twin.__dict__["forward"] = cast(nn.Module, twin._orig_mod).__call__
    return memo[id(module)]


def _copy_value(value: Any, memo: Memo) -> Any:
    if isinstance(value, _SHARED_TYPES):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _copy_module(value, memo)
    if isinstance(value, Tensor):
        # deepcopy refuses a tensor with a history, such as a cached activation.
        memo[id(value)] = value.detach().clone()
    elif type(value) in (dict, OrderedDict):
        memo[id(value)] = twin = type(value)()
        twin.update({key: _copy_value(part, memo) for key, part in value.items()})
    elif type(value) is list:
        parts: list[Any] = []
        memo[id(value)] = parts
        parts.extend(_copy_value(part, memo) for part in value)
    elif type(value) in (tuple, set):
        memo[id(value)] = type(value)(_copy_value(part, memo) for part in value)
    else:
        try:
            memo[id(value)] = copy.deepcopy(value, memo)
        except Exception:  # Whatever an object's own copy raises: it is shared instead.
            memo[id(value)] = value
    return memo[id(value)]


class StateTrace:
    """Record of a module's attributes, to see whether a forward pass changed one.

    Args:
        model: The module, as it is now.
    """

    _DEPTH = 4
    """Depth to which objects within attributes are followed."""

    def __init__(self, model: nn.Module) -> None:
        self._entries: list[Any] = []
        self._held: list[Any] = []
        self._seen: set[int] = set()
        for module in model.modules():
            self._record(vars(module), 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateTrace) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def _record(self, value: Any, depth: int) -> None:
        if isinstance(value, _SHARED_TYPES):
            self._entries.append(value)
            return
        self._entries.append(id(value))
        if id(value) in self._seen:
            return
        # A held object keeps its id.
        self._held.append(value)
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._entries.append(None if value.is_inference() else value._version)
        elif isinstance(value, torch.Generator):
            self._entries.append(value.get_state().tolist())
        elif not isinstance(value, nn.Module) and depth < self._DEPTH:
            self._record_parts(value, depth)

    def _record_parts(self, value: Any, depth: int) -> None:
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = [part for item in value.items() for part in item]
        elif isinstance(value, list | tuple | set):
            parts = list(value)
        elif hasattr(value, "__dict__"):
            parts = [part for item in vars(value).items() for part in item]
        for part in parts:
            self._record(part, depth + 1)
