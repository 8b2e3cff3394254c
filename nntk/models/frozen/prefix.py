"""Results of frozen layers that many evaluations share: a backbone is evaluated once, not for each displacement."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map


@dataclass
class Budget:
    """Bytes that all results may take.

    Attributes:
        left: Bytes that are left.
    """

    left: int


class _Remembering:
    """Forward pass of a frozen layer that returns an earlier result for the same arguments and the same tensors.

    Args:
        layer: The layer.
        budget: Bytes that the results of all layers may take.
    """

    def __init__(self, layer: nn.Module, budget: Budget) -> None:
        self._layer, self._forward, self._budget = layer, layer.forward, budget
        self._calls: list[_Call] = []
        self._next = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        leaves, spec = tree_flatten((arguments, options))
        if not all(map(_is_plain, leaves)):
            return self._forward(*arguments, **options)
        parameters: list[Tensor] = list(self._layer.parameters())
        # Blocks of inputs come round in the same order at each displacement.
        for position in [*range(self._next, len(self._calls)), *range(min(self._next, len(self._calls)))]:
            if self._calls[position].is_of(parameters, leaves, spec):
                self._next = position + 1
                return tree_map(_copied, self._calls[position].result)
        result = self._forward(*arguments, **options)
        results = tree_leaves(result)
        size = sum(leaf.nbytes for leaf in (*leaves, *results) if isinstance(leaf, Tensor))
        if size <= self._budget.left and all(map(_is_plain, results)):
            self._budget.left -= size
            self._calls.append(_Call(parameters, [_copied(leaf) for leaf in leaves], spec, tree_map(_copied, result)))
        return result


@dataclass(frozen=True)
class _Call:
    """Call of a layer, with its result.

    Attributes:
        parameters: Parameters of the layer.
        leaves: Arguments.
        spec: Structure of the arguments.
        result: What the layer returned.
    """

    parameters: list[Tensor]
    leaves: list[Any]
    spec: Any
    result: Any

    def is_of(self, parameters: list[Tensor], leaves: list[Any], spec: Any) -> bool:
        """Return True for the same parameters, by identity, and equal arguments."""
        # Parameters in another dtype, or of a later call of the kernel, are other tensors.
        are_same = all(a is b for a, b in zip(parameters, self.parameters, strict=True))
        return are_same and spec == self.spec and all(map(_are_equal, leaves, self.leaves))


_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


def _is_plain(leaf: Any) -> bool:
    """Return True for a constant, and for a tensor that is of no transform and of no class of its own."""
    if not isinstance(leaf, Tensor):
        return isinstance(leaf, _CONSTANTS)
    return type(leaf) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(leaf)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and isinstance(a, _CONSTANTS) and bool(a == b)


def remember(module: nn.Module, paths: Collection[str], budget: Budget) -> None:
    """Let layers of a module keep their results.

    Args:
        module: A private copy of a module, which is changed.
        paths: Names of the layers, from :func:`find_prefix`.
        budget: Bytes that the results may take.
    """
    for path in paths:
        layer = module.get_submodule(path)
        layer.__dict__["forward"] = _Remembering(layer, budget)


def find_prefix(
    module: nn.Module, displaced: Collection[str], evaluations: Sequence[Callable[[nn.Module], Any]]
) -> tuple[str, ...]:
    """Return the names of the largest frozen layers whose arguments do not depend on displaced parameters.

    Args:
        module: A private copy of a module, which is changed.
        displaced: Names of the displaced parameters.
        evaluations: Functions that evaluate the module, at several values of the displaced parameters.

    Returns:
        The names.
    """
    calls: dict[str, list[list[Any]]] = {path: [] for path in _largest_frozen(module, "", displaced)}
    if not calls:
        return ()
    for path, record in calls.items():
        layer = module.get_submodule(path)
        layer.__dict__["forward"] = _recording(layer.forward, record)
    records: list[dict[str, list[list[Any]]]] = []
    for evaluate in evaluations:
        evaluate(module)
        records.append({path: record.copy() for path, record in calls.items()})
        for record in calls.values():
            record.clear()

    def is_constant(path: str) -> bool:
        first, *others = (record[path] for record in records)
        return bool(first) and all(
            len(first) == len(other)
            and all(len(a) == len(b) and all(map(_are_equal, a, b)) for a, b in zip(first, other, strict=True))
            for other in others
        )

    return tuple(filter(is_constant, calls))


def _recording(forward: Callable[..., Any], record: list[list[Any]]) -> Callable[..., Any]:
    def recorded(*arguments: Any, **options: Any) -> Any:
        record.append([_copied(leaf) for leaf in tree_leaves((arguments, options))])
        return forward(*arguments, **options)

    return recorded


def _largest_frozen(module: nn.Module, path: str, displaced: Collection[str]) -> Iterator[str]:
    """Yield the names of layers with parameters, none of them displaced, that are in no other such layer."""
    moving = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if f"{path}{name}" in displaced}
    is_called = type(module) not in (nn.ModuleList, nn.ModuleDict)
    if path and is_called and not moving and any(True for _ in module.parameters()):
        yield path.removesuffix(".")
        return
    for name, child in module.named_children():
        yield from _largest_frozen(child, f"{path}{name}.", displaced)
