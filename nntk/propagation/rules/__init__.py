r"""What functions of PyTorch do to displaced values: the difference of f's value, over s, without cancellation.

With values a, b and unit differences da, db, so that the displaced values are a + s da and b + s db, a linear function
gives f(da), a product da b + (a + s da) db; layers are the layer step of :mod:`nntk.kernels.perturb`, activations have
the difference forms of their classes, norms and attention are composed of these. Importing this package enters them all
in the tables of :mod:`nntk.propagation.displaced_tensor`, whose values it gives on: who
takes them from here has them with their rules.
"""

import torch
from torch import Tensor

from nntk.propagation.displaced_tensor import IN_PLACE, QUERIES, WRITES, Group, Moved, NoRule, Pass, Watch, called
from nntk.propagation.rules import composed, elementwise, layers, linear

__all__ = ["Group", "Moved", "NoRule", "Pass", "Watch", "composed", "elementwise", "layers", "linear"]

_IN_PLACE = (
    "add", "sub", "mul", "div", "truediv", "relu", "tanh", "sigmoid", "masked_fill", "clamp", "neg", "exp", "sqrt",
)  # fmt: skip
_QUERIES = (
    "size", "dim", "ndimension", "numel", "stride", "__len__", "is_floating_point", "is_complex", "is_contiguous",
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like",
)  # fmt: skip
_ATTRIBUTES = (
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_cpu", "is_cuda",
    "is_meta", "is_mps", "is_xpu", "is_nested", "is_sparse", "is_quantized",
)  # fmt: skip
QUERIES.update(called(*_QUERIES))
QUERIES.update(getattr(Tensor, name).__get__ for name in _ATTRIBUTES if hasattr(Tensor, name))
for _name in _IN_PLACE:
    for _function in called(f"{_name}_", f"__i{_name}__"):
        IN_PLACE[_function] = getattr(torch, _name, torch.div)
_operators = {f"__i{name}__" for name in ("and", "floordiv", "lshift", "mod", "or", "pow", "rshift", "xor")}
for _name in {*dir(Tensor), *dir(torch), *dir(torch.nn.functional)}:
    if _name in _operators or _name == "__setitem__" or (_name.endswith("_") and not _name.endswith("__")):
        WRITES.update(called(_name))
WRITES.update(IN_PLACE)
