"""Tables of the rules: how each function of PyTorch acts on displaced tensors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}
"""Rule of each function. A rule is called with the context, followed by the arguments of the function."""
COMPOSED: dict[Any, Rule] = {}
"""Replacement of each function by others that have rules. A replacement is called with the function's arguments."""
DISCRETE: dict[Any, Rule] = {}
"""Rule of each function for booleans and integers that a displacement changes; no other function takes them."""
COMPLEX: dict[Any, Rule] = {}
"""Rule of each function for complex values that a displacement changes; no other function takes them."""
QUERIES: set[Any] = set()
"""Functions whose result no displacement changes, such as shapes."""
IN_PLACE: dict[Any, Any] = {}
"""Functions that work in place, each with the function that computes the same result out of place."""
WRITES: set[Any] = set()
"""Functions that write into their first argument."""
RANDOM: set[Any] = set()
"""Functions that draw random numbers whatever their arguments are."""


_OPERANDS = (
    "condition", "tensors", "input", "self", "other", "mat1", "batch1", "tensor1", "vec1", "mat", "vec", "mat2",
    "batch2", "tensor2", "vec2", "exponent",
)  # fmt: skip
"""Names of the operands of PyTorch's functions, in their order."""


class NoRule(Exception):
    """A model does something to displaced tensors that no rule covers; the message is one sentence that says what.

    The class does not derive from ``TypeError``, because Python's binary operators swallow a ``TypeError``.
    """


def functions_named(*names: str) -> Iterator[Any]:
    """Yield the functions and tensor methods of PyTorch that have one of these names."""
    for name in names:
        for namespace in (torch, torch.nn.functional, Tensor, torch._C._nn, torch.special):
            if (function := getattr(namespace, name, None)) is not None:
                yield function


def function_name(function: Any) -> str:
    """Return the name of a function as its users write it, for messages."""
    if isinstance(function, torch._ops.OpOverloadPacket):
        return f"torch.ops.{function}"
    if getattr(function, "__name__", "") == "__get__":
        return f"Tensor.{function.__self__.__name__}"
    name = str(getattr(function, "__qualname__", function))
    return name.replace("TensorBase.", "Tensor.").replace("_VariableFunctionsClass.", "torch.")


def positional(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments of which those are positional that PyTorch's functions give several names, and the options."""
    given = [name for name in _OPERANDS if name in options] if options else []
    if not given:
        return arguments, options
    rest = {name: option for name, option in options.items() if name not in given}
    return (*arguments, *(options[name] for name in given)), rest


def rule(*names: str, also: Sequence[Any] = ()) -> Callable[[Rule], Rule]:
    """Return a decorator that registers the rule of some functions.

    Args:
        *names: Names of functions of PyTorch; every function and tensor method of such a name is registered.
        also: Further functions, given as objects.

    Returns:
        The decorator. It returns the rule unchanged.
    """
    return partial(_register, RULES, [*functions_named(*names), *also])


def discrete(*names: str, also: Sequence[Any] = ()) -> Callable[[Rule], Rule]:
    """Return a decorator that registers the rule of some functions for booleans and integers that are displaced.

    Args:
        *names: Names of functions of PyTorch; every function and tensor method of such a name is registered.
        also: Further functions, given as objects.

    Returns:
        The decorator. It returns the rule unchanged.
    """
    return partial(_register, DISCRETE, [*functions_named(*names), *also])


def complex_rule(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers the rule of some functions for complex values that are displaced.

    Args:
        *names: Names of functions of PyTorch; every function and tensor method of such a name is registered.

    Returns:
        The decorator. It returns the rule unchanged.
    """
    return partial(_register, COMPLEX, [*functions_named(*names)])


def composed(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a replacement of some functions by others that have rules.

    Args:
        *names: Names of functions of PyTorch; every function and tensor method of such a name is registered.

    Returns:
        The decorator. It returns the replacement unchanged.
    """
    return partial(_register, COMPOSED, [*functions_named(*names)])


def _register(table: dict[Any, Rule], functions: Iterable[Any], implementation: Rule) -> Rule:
    table.update(dict.fromkeys(functions, implementation))
    return implementation


def without_dtype(function: Any, arguments: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return options without a dtype: displaced values keep theirs if float32 or float64 is asked for."""
    is_cast = getattr(function, "__name__", "") in ("to", "type")
    for dtype in (options.get("dtype"), *arguments):
        if isinstance(dtype, torch.dtype) and dtype not in (torch.float32, torch.float64):
            if is_cast and not (dtype.is_floating_point or dtype.is_complex):
                return options
            raise NoRule(f"model calls {function_name(function)} with {dtype}, which rounds displaced values.")
    return {name: option for name, option in options.items() if name != "dtype"} if "dtype" in options else options
