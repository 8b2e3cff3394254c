"""The default dtype of PyTorch changes no result."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from triton_device import DEVICE

from nntk.bench.suites.op_arguments import small_calls
from nntk.kernels.assemble.triton import launch as assemble
from nntk.kernels.attention.triton import launch as attention
from nntk.kernels.dispatch import REGISTERED
from nntk.kernels.fixed_weights.triton import launch as fixed_weights
from nntk.kernels.local_ntk.triton import launch as local_ntk
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox

LAUNCHERS = {
    name: function
    for module in (assemble, attention, fixed_weights, local_ntk, perturb, philox)
    for name, function in vars(module).items()
    if getattr(function, "__module__", "") == module.__name__
}
IMPLEMENTATIONS = {
    "kernels": LAUNCHERS.get,
    "reference": lambda name: REGISTERED[name].reference,
    "dispatcher": lambda name: getattr(torch.ops.nntk, name),
}


@contextmanager
def default_dtype(dtype):
    """PyTorch makes tensors of a dtype where none is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_float32(argument):
    """The argument in the dtype that kernels serve."""
    is_float64 = isinstance(argument, torch.Tensor) and argument.dtype == torch.float64
    return argument.float() if is_float64 else argument


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_results_do_not_depend_on_the_default_dtype(implementation):
    """Every op, in each of its forms: dtypes and bits of the results are those with the usual default."""
    compared = 0
    for name, arguments in small_calls(DEVICE):
        function = IMPLEMENTATIONS[implementation](name)
        if function is None:
            continue
        if name != "radial_weights":  # Norms are in float64 by definition.
            arguments = tree_map(in_float32, arguments)
        expected = tree_leaves(function(*arguments))
        with default_dtype(torch.float64):
            results = tree_leaves(function(*arguments))
        for result, usual in zip(results, expected, strict=True):
            assert result.dtype == usual.dtype, (name, arguments)
            assert torch.equal(result, usual), (name, arguments)
        compared += 1
    assert compared > 20
