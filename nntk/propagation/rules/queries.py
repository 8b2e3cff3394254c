"""Functions and attributes whose result no displacement changes."""

from torch import Tensor

from nntk.propagation.registry import QUERIES, functions_named

QUERY_FUNCTIONS = (
    "size", "dim", "ndimension", "numel", "stride", "__len__", "is_floating_point", "is_complex", "is_contiguous",
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like",
)  # fmt: skip
"""Names of functions that read shapes, dtypes and devices alone."""
_ATTRIBUTES = (
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_cpu", "is_cuda",
    "is_meta", "is_mps", "is_xpu", "is_nested", "is_sparse", "is_quantized",
)  # fmt: skip
QUERIES.update(functions_named(*QUERY_FUNCTIONS))
QUERIES.update(getattr(Tensor, name).__get__ for name in _ATTRIBUTES if hasattr(Tensor, name))
