"""Functions that write into their first argument, and those among them that are computed out of place instead."""

import torch
from torch import Tensor

from nntk.propagation.registry import IN_PLACE, WRITES, functions_named

_OUT_OF_PLACE = (
    "add", "sub", "mul", "div", "truediv", "relu", "tanh", "sigmoid", "masked_fill", "clamp", "neg", "exp", "sqrt",
    "rsqrt", "log", "abs", "square", "pow", "reciprocal", "sin", "cos", "expm1", "log1p", "erf", "clamp_min",
    "clamp_max", "addcmul", "addcdiv", "addmm", "baddbmm", "addmv", "lerp", "scatter_add", "index_add",
    "index_copy", "scatter", "tril", "triu", "cumsum",
)  # fmt: skip
"""Functions whose forms in place are supported; "truediv" is the name of the operator for "div"."""
_OPERATORS = {f"__i{name}__" for name in ("and", "floordiv", "lshift", "mod", "or", "rshift", "xor")}
"""Operators in place that have no rule."""


def _writes(name: str) -> bool:
    """Return True if a function of this name writes into its first argument."""
    return name in _OPERATORS or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


for _name in _OUT_OF_PLACE:
    for _function in functions_named(f"{_name}_", f"__i{_name}__"):
        IN_PLACE[_function] = getattr(torch, _name, torch.div)
for _name in {*dir(Tensor), *dir(torch), *dir(torch.nn.functional)}:
    if _writes(_name):
        WRITES.update(functions_named(_name))
WRITES.update(IN_PLACE)
