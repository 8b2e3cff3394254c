"""Functions and attributes whose result no displacement changes, and functions that draw random numbers."""

from torch import Tensor

from nntk.propagation.registry import QUERIES, RANDOM, functions_named

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

_RANDOM_FUNCTIONS = (
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli", "poisson",
    "binomial", "multinomial", "gumbel_softmax", "normal_", "uniform_", "random_", "bernoulli_", "exponential_",
    "cauchy_", "geometric_", "log_normal_", "fractional_max_pool2d", "fractional_max_pool3d",
)  # fmt: skip
RANDOM.update(functions_named(*_RANDOM_FUNCTIONS))
