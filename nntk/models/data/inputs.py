"""Inputs of a model as people have them: one tensor, or several tensors that share their first axis."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    register_pytree_node,
    tree_flatten_with_path,
    tree_unflatten,
)

from nntk.kernels import checks

_CONSTANTS = (type(None), bool, int, float, str)
"""Types of values that are no tensors and belong to all inputs, such as ``output_hidden_states=False``."""


@dataclass(frozen=True)
class _Structure:
    """Where the tensors of some inputs stand.

    Attributes:
        spec: Structure of all values, tensors and constants.
        paths: Path of each tensor, such as ``"['attention_mask']"``.
        constants: Positions of the values that are no tensors, their paths, and the values.
    """

    spec: TreeSpec
    paths: tuple[str, ...]
    constants: tuple[tuple[int, str, Any], ...]


class Inputs:
    """Inputs of a model that are several tensors: the arguments that the model is called with.

    ``Inputs(a, b, mask=m)`` is evaluated as ``model(a, b, mask=m)``. A tuple ``(a, b)`` and a mapping ``{"mask": m}``
    in its place mean ``Inputs(a, b)`` and ``Inputs(mask=m)``. A model whose one argument is itself a dictionary or a
    tuple has ``Inputs({"mask": m})``. A function is called as ``f(parameters, a, b, mask=m)``, a black box as
    ``function(vector, a, b, mask=m)``; under ``draws`` the seed is their last positional argument, or the keyword
    ``seed`` where there are no positional ones.

    The value cannot be changed. Its length is the number N of inputs, and it is sliced like a tensor: ``inputs[2:5]``.

    Args:
        positional: Positional arguments: tensors [N, ...], dictionaries, lists and tuples of them, and constants
            (None, booleans, numbers, texts), which belong to all inputs.
        keywords: Arguments by keyword.

    Raises:
        TypeError: If a value is neither a dense tensor nor a constant.
        ValueError: If there is no tensor, or tensors have different numbers of rows or different devices.

    Example:
        >>> inputs = Inputs(torch.tensor([[1, 2], [3, 0]]), attention_mask=torch.tensor([[1, 1], [1, 0]]))
        >>> len(inputs), inputs[1:].keywords["attention_mask"].tolist()
        (2, [[1, 0]])
    """

    __slots__ = ("_structure", "_tensors")

    _tensors: tuple[Tensor, ...]
    _structure: _Structure

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        tensors, structure = _flatten("inputs", {**dict(enumerate(positional)), **dict(sorted(keywords.items()))})
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_structure", structure)

    @classmethod
    def _of(cls, tensors: Sequence[Tensor], structure: _Structure) -> "Inputs":
        inputs = object.__new__(cls)
        object.__setattr__(inputs, "_tensors", tuple(tensors))
        object.__setattr__(inputs, "_structure", structure)
        return inputs

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Inputs cannot be changed: {name} must stay as it is.")

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, rows: Any) -> "Inputs":
        """Return some of the inputs, by a slice or by a tensor of their numbers."""
        return self.map(lambda tensor: tensor[rows])

    def __repr__(self) -> str:
        parts = (f"{path}: {tuple(t.shape)} {t.dtype}" for path, t in zip(self.paths, self._tensors, strict=True))
        return f"Inputs({', '.join(parts)})"

    @property
    def positional(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return tuple(value for name, value in self._entries.items() if isinstance(name, int))

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments by keyword."""
        return {name: value for name, value in self._entries.items() if isinstance(name, str)}

    @property
    def _entries(self) -> dict[Any, Any]:
        values: list[Any] = list(self._tensors)
        for position, _, constant in self._structure.constants:
            values.insert(position, constant)
        entries: dict[Any, Any] = tree_unflatten(values, self._structure.spec)
        return entries

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of ``paths``."""
        return self._tensors

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each tensor, such as ``"['attention_mask']"``, and ``"[0]"`` for the first argument."""
        return self._structure.paths

    @property
    def constants(self) -> tuple[tuple[str, Any], ...]:
        """Paths and values of what is no tensor."""
        return tuple((path, value) for _, path, value in self._structure.constants)

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self._tensors[0].device

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the inputs with a function of each tensor in its place."""
        return Inputs._of([function(tensor) for tensor in self._tensors], self._structure)

    def detach(self) -> "Inputs":
        """Return the inputs without their history in autograd."""
        return self.map(Tensor.detach)

    def clone(self) -> "Inputs":
        """Return a copy of the inputs."""
        return self.map(Tensor.clone)

    def split(self, size: int) -> tuple["Inputs", ...]:
        """Return the inputs in blocks of a size; the last one may be smaller."""
        return tuple(self[start : start + size] for start in range(0, max(1, len(self)), size))


register_pytree_node(
    Inputs,
    lambda inputs: (inputs._tensors, inputs._structure),
    lambda parts, structure: Inputs._of(tuple(parts), structure),
)

Batch = Tensor | Inputs
"""Inputs within the library: one tensor [N, ...], or several."""
InputValue = Tensor | Inputs | Mapping[str, Any] | tuple[Any, ...]
"""Inputs as callers give them."""


def _flatten(name: str, entries: dict[Any, Any]) -> tuple[tuple[Tensor, ...], _Structure]:
    """Return the tensors of arguments, and where they stand; ``name`` names the inputs in messages."""
    found, spec = tree_flatten_with_path(_plain(entries))
    tensors, paths, constants = [], [], []
    for position, (key, value) in enumerate(found):
        path = keystr(key)
        if isinstance(value, _CONSTANTS):
            constants.append((position, path, value))
            continue
        checks.tensor(f"{name}{path}", value)
        tensors.append(value)
        paths.append(path)
    if not tensors:
        raise ValueError(f"{name} must hold a tensor at least, got {', '.join(map(str, entries)) or 'nothing'}.")
    first = tensors[0]
    for path, tensor in zip(paths, tensors, strict=True):
        if tensor.dim() == 0:
            raise ValueError(f"{name}{path} must have a row for each input, [N, ...]; got a tensor without axes.")
        if first.dim() and len(tensor) != len(first):
            raise ValueError(
                f"{name}{path} has {len(tensor)} rows, but {name}{paths[0]} has {len(first)}; the first axis of every "
                "tensor is that of the inputs."
            )
        if tensor.device != first.device:
            raise ValueError(f"{name}{path} is on {tensor.device}, but {name}{paths[0]} is on {first.device}.")
    return tuple(tensors), _Structure(spec, tuple(paths), tuple(constants))


def _plain(value: Any) -> Any:
    """Return mappings of any kind as dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(part) for part in value)
    return value


def as_batch(name: str, x: Any) -> Batch:
    """Return inputs as callers give them in the form of the library; one positional tensor alone stays a tensor.

    Args:
        name: Name of the argument, for messages.
        x: A tensor, a tuple, a mapping, or :class:`Inputs`.

    Returns:
        The tensor, or the inputs.

    Raises:
        TypeError: If ``x`` is anything else, or a value of it is neither a dense tensor nor a constant.
        ValueError: If tensors do not fit together.
    """
    if isinstance(x, Mapping):
        for key in x:
            if not isinstance(key, str):
                raise TypeError(f"{name} must have texts as keys, the names of the model's arguments; got {key!r}.")
        entries: dict[Any, Any] = dict(sorted(x.items()))
    elif isinstance(x, tuple):
        entries = dict(enumerate(x))
    elif isinstance(x, Inputs):
        is_single = x.paths == ("[0]",) and not x.constants and isinstance(x.positional[0], Tensor)
        return x.tensors[0] if is_single else x
    else:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(x).__name__}; several tensors are a tuple, a mapping or "
                "nntk.Inputs, and batches nntk.Stream or a DataLoader, for functions that take them."
            )
        checks.tensor(name, x)
        return x
    tensors, structure = _flatten(name, entries)
    return as_batch(name, Inputs._of(tensors, structure))


def named_tensors(name: str, x: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of inputs with their names, such as ``x1['attention_mask']``."""
    if isinstance(x, Tensor):
        yield name, x
    else:
        yield from ((f"{name}{path}", tensor) for path, tensor in zip(x.paths, x.tensors, strict=True))


def identity(name: str, x: Batch) -> dict[str, Tensor]:
    """Return the tensors of inputs by their names, and an empty one for each constant, whose name has its value."""
    constants = () if isinstance(x, Tensor) else x.constants
    empty = torch.empty(0)
    return {**dict(named_tensors(name, x)), **{f"{name}{path}={value!r}": empty for path, value in constants}}


def map_tensors(function: Callable[[Tensor], Tensor], x: Batch) -> Batch:
    """Return inputs with a function of each tensor in its place."""
    return x.map(function) if isinstance(x, Inputs) else function(x)


def cast_floating(x: Batch, dtype: torch.dtype) -> Batch:
    """Return inputs with tensors of float32 and float64 in a dtype; others stay as they are."""
    return map_tensors(lambda tensor: cast_tensor(tensor, dtype), x)


def cast_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of float32 or float64 in a dtype, and any other tensor as it is."""
    return tensor.to(dtype) if tensor.dtype in checks.FLOATS else tensor


def concatenate(parts: Sequence[Batch]) -> Batch:
    """Return inputs one after another.

    Raises:
        ValueError: If they are of different structure, for example where an argument is missing in some.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) == len(parts):
            return torch.cat(tensors)
    elif all(isinstance(part, Inputs) and part._structure == first._structure for part in parts):
        columns = zip(*(part.tensors for part in parts if isinstance(part, Inputs)), strict=True)
        return Inputs._of([torch.cat(column) for column in columns], first._structure)
    raise ValueError(
        f"inputs must have the same tensors by the same names to stand together, got {', '.join(map(_outline, parts))}."
    )


def _outline(x: Batch) -> str:
    return f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)


def stack_of(x: Batch, count: int) -> Batch:
    """Return the one input of ``x``, [1, ...], as often as ``count`` says."""
    return x[torch.zeros(count, dtype=torch.int64, device=x.device)]


def coefficients(x: Batch) -> int:
    """Return the number of all elements."""
    return sum(tensor.numel() for _, tensor in named_tensors("x", x))


def bytes_of(x: Batch) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for _, tensor in named_tensors("x", x))


def call_with(function: Callable[..., Any], x: Batch, *leading: Any, seed: tuple[int, ...] = ()) -> Any:
    """Call a function with inputs as its arguments; what is not :class:`Inputs` is one positional argument.

    Args:
        function: The function.
        x: The inputs.
        leading: Positional arguments before the inputs.
        seed: Seed of a draw, or nothing.

    Returns:
        What the function returns.
    """
    if not isinstance(x, Inputs):
        return function(*leading, x, *seed)
    positional, keywords = x.positional, x.keywords
    if seed and not positional:
        return function(*leading, **keywords, seed=seed[0])
    return function(*leading, *positional, *seed, **keywords)
