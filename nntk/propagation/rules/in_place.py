"""Functions that write into their first argument, and those among them that are computed out of place instead."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.propagation.displaced_tensor import DisplacedTensor, constant, is_displaced, primal
from nntk.propagation.registry import IN_PLACE, WRITES, NoRule, functions_named

_OUT_OF_PLACE = (
    "add", "sub", "mul", "div", "truediv", "relu", "tanh", "sigmoid", "masked_fill", "clamp", "neg", "exp", "sqrt",
    "rsqrt", "log", "abs", "square", "pow", "reciprocal", "sin", "cos", "expm1", "log1p", "erf", "clamp_min",
    "clamp_max", "addcmul", "addcdiv", "addmm", "baddbmm", "addmv", "lerp", "scatter_add", "index_add",
    "index_copy", "scatter", "tril", "triu", "cumsum", "leaky_relu", "elu", "celu", "selu", "scatter_reduce",
    "index_fill", "index_put", "masked_scatter", "cumprod", "asinh", "atan2", "remainder", "fmod", "copysign",
    "nan_to_num", "hardshrink", "floor_divide", "softshrink", "addbmm", "xlogy", "erfinv", "lgamma", "digamma",
)  # fmt: skip
"""Functions whose forms in place are supported; "truediv" is the name of the operator for "div"."""
_OPERATORS = {f"__i{name}__" for name in ("and", "floordiv", "lshift", "mod", "or", "rshift", "xor")}
"""Operators in place that have no rule."""


def _writes(name: str) -> bool:
    """Return True if a function of this name writes into its first argument."""
    return name in _OPERATORS or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


for _name in _OUT_OF_PLACE:
    for _function in functions_named(f"{_name}_", f"__i{_name}__"):
        IN_PLACE[_function] = torch.div if _name == "truediv" else next(functions_named(_name))


def _with_items(x: Any, index: Any, items: Any) -> Any:
    """Return values of which those at an index are replaced by others, as an assignment to the index does it."""
    if any(is_displaced(leaf) for leaf in tree_leaves(index)):
        raise NoRule("model assigns to an index that depends on the displacement.")
    shape, value = x.shape, primal(x)
    positions = torch.arange(value.numel(), device=value.device).view(shape)[primal(index)]
    if not isinstance(items, Tensor):
        items = torch.tensor(items, dtype=value.dtype, device=value.device)
    while items.dim() > positions.dim():
        # An assignment leaves out leading axes of the length one.
        items = items.squeeze(0)
    source = items.expand(positions.shape).flatten()
    written = torch.index_copy(x.flatten(), 0, positions.flatten(), source.to(value.dtype)).reshape(shape)
    return written.clone()  # A view could not be assigned to again.


def _filled(x: Any, value: Any) -> Any:
    """Return a number everywhere."""
    number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=x.dtype, device=x.device)
    return _copied(x, number)


def _copied(x: Any, source: Any, non_blocking: bool = False) -> Any:
    """Return the values of a source in the shape of others."""
    if not isinstance(source, DisplacedTensor):
        source = constant(x.ctx, source)
    copy = source.expand(x.shape) * 1
    return copy if primal(copy).dtype == primal(x).dtype else copy.to(x.dtype)


def _zeros(x: Any) -> Any:
    return _filled(x, 0)


IN_PLACE.update({Tensor.__setitem__: _with_items, Tensor.fill_: _filled, Tensor.copy_: _copied})
IN_PLACE.update(dict.fromkeys(functions_named("zero_"), _zeros))
IN_PLACE.update(dict.fromkeys(functions_named("fill_"), _filled))
for _name in {*dir(Tensor), *dir(torch), *dir(torch.nn.functional)}:
    if _writes(_name):
        WRITES.update(functions_named(_name))
WRITES.update(IN_PLACE)
