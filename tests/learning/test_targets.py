"""Targets and right-hand sides of every real dtype: results are those of the same numbers in float64."""

import gpytorch
import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from gpytorch.likelihoods import GaussianLikelihood
from scipy.sparse.linalg import aslinearoperator, cg
from torch import nn

from nntk import GPyTorchKernel, GradientFlow, KernelRidge, KernelRidgeClassifier, KernelTracker, NonlocalNTK
from nntk.linalg.alignment import alignment
from nntk.linalg.vectors import result_dtype

LABELS = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1])
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = (*INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def kernel_of(dtype):
    """Build a kernel in a dtype, with fewer features than inputs and a model of one output."""
    return NonlocalNTK(mlp(3, 8, 1, dtype=dtype), samples=8, gamma=0.3)


def operator_of(dtype):
    """Build the operator of a kernel at as many inputs as there are labels."""
    return kernel_of(dtype).operator(inputs(len(LABELS), 3, dtype))


def flow(dtype, targets, initial=None):
    """Build the flow of a fixed kernel."""
    factor = inputs(len(LABELS), len(LABELS), torch.float64, seed=3)
    return GradientFlow((factor @ factor.T).to(dtype), targets, initial)


def process(dtype, targets):
    """Predict the mean of a gaussian process at two other inputs."""

    class Process(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(inputs(len(LABELS), 3, dtype), targets, GaussianLikelihood().to(dtype))
            self.covariance = GPyTorchKernel(kernel_of(dtype))

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(x.new_zeros(len(x)), self.covariance(x))

    with torch.no_grad():
        return Process().eval()(inputs(2, 3, dtype, seed=8)).mean


FUNCTIONS = {
    "product": lambda dtype, y: operator_of(dtype) @ y,
    "products": lambda dtype, y: operator_of(dtype) @ torch.stack((y, y), 1),
    "solution": lambda dtype, y: operator_of(dtype).solve(y, 0.5),
    "flow": lambda dtype, y: flow(dtype, y).at(0.1),
    "end of the flow": lambda dtype, y: flow(dtype, y).at(torch.inf),
    "flow at other inputs": lambda dtype, y: flow(dtype, y, y).at(0.1, flow(dtype, y).kernel[:3], y[:3]),
}
"""Functions whose result has the wider dtype of the kernel and of floating targets."""

FLOAT64 = {
    "projection": lambda dtype, y: operator_of(dtype).project(y),
    "projection beside the Gram matrix": lambda dtype, y: operator_of(dtype).gram_and_projection(y)[1],
    "prediction": lambda dtype, y: operator_of(dtype).expand(torch.cat((y, y))[:8]),
}
"""Functions whose result is in float64."""


@pytest.mark.parametrize("kernel_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [*FUNCTIONS.values(), *FLOAT64.values()], ids=[*FUNCTIONS, *FLOAT64])
def test_results_are_those_of_the_same_numbers_in_float64(function, kernel_dtype):
    """For each dtype of the targets, up to the rounding of the result's dtype."""
    expected = function(kernel_dtype, LABELS.double())
    for dtype in DTYPES:
        result = function(kernel_dtype, LABELS.to(dtype))
        wider = torch.float64 if function in FLOAT64.values() or dtype == torch.float64 else kernel_dtype
        assert result.dtype == wider, dtype
        assert relative_error(result, expected) < (1e-12 if wider == torch.float64 else 1e-6), dtype


NUMBERS = {
    "alignment of an operator": lambda y: operator_of(torch.float32).alignment(y),
    "alignment of matrices": lambda y: alignment(torch.outer(y, y), kernel_of(torch.float32)(inputs(12, 3))),
    "tracker": lambda y: KernelTracker(kernel_of(torch.float32), inputs(12, 3), y).record(0).alignment,
    "process": lambda y: float(process(torch.float64, y).sum()),
}


@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_those_of_the_same_targets_in_float64(function):
    """For each dtype of the targets."""
    expected = function(LABELS.double())
    assert all(function(LABELS.to(dtype)) == pytest.approx(expected, rel=1e-6) for dtype in DTYPES)


@pytest.mark.parametrize("estimator", [KernelRidge, KernelRidgeClassifier])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "uint16", "bool", "float16", "float32", "longdouble"])
def test_estimators_take_arrays_of_every_dtype(estimator, dtype):
    """Targets and inputs alike; predictions of regression are float64, and those of classes are the labels."""
    x, y = inputs(len(LABELS), 3).numpy(), LABELS.numpy().astype(dtype)
    fits = [estimator(mlp(3, 8, 1), samples=8).fit(x, targets) for targets in (y, LABELS.numpy().astype("float64"))]
    np.testing.assert_allclose(fits[0].predict(x).astype("float64"), fits[1].predict(x), rtol=1e-12)
    assert fits[0].predict(x).dtype == (np.float64 if estimator is KernelRidge else dtype)
    whole = (3 * x).astype("uint8" if dtype == "bool" else dtype)
    assert estimator(mlp(3, 8, 1), samples=8).fit(whole, y).predict(whole).shape == y.shape


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float64", "complex128"])
def test_the_operator_of_scipy_takes_arrays_of_every_dtype(dtype):
    """Products, products with several vectors, and an iterative solution."""
    operator, y = operator_of(torch.float32), LABELS.numpy().astype(dtype)
    exported, dense = operator.to_scipy(), (operator @ torch.eye(len(LABELS), dtype=torch.float64)).numpy()
    y = y * (1 - 2j) if dtype == "complex128" else y
    np.testing.assert_allclose(exported @ y, dense @ y, rtol=1e-10)
    np.testing.assert_allclose(exported @ np.stack((y, y), 1), dense @ np.stack((y, y), 1), rtol=1e-10)
    if dtype != "complex128":
        solution, _ = cg(exported + aslinearoperator(np.eye(len(y))), y, rtol=1e-12)
        np.testing.assert_allclose(solution, operator.solve(LABELS.double(), 1.0), rtol=1e-6)


def test_the_dtype_of_a_result():
    """The widest floating dtype; integers never decide."""
    assert result_dtype(torch.float16, torch.bfloat16) == torch.float32
    assert result_dtype(torch.float16, torch.int64) == torch.float16
    assert result_dtype(torch.int64, torch.bool) == torch.get_default_dtype()
    assert result_dtype(torch.float64, torch.float8_e4m3fn) == torch.float64


COMPLEX, INFINITE = torch.ones(12, dtype=torch.complex64), torch.full((12,), torch.inf)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda y: operator_of(torch.float32) @ y, "vectors"),
        (lambda y: operator_of(torch.float32).solve(y, 1.0), "y"),
        (lambda y: operator_of(torch.float32).alignment(y), "y"),
        (lambda y: flow(torch.float32, y), "targets"),
        (lambda y: flow(torch.float32, LABELS, y), "initial"),
        (lambda y: flow(torch.float32, LABELS).at(1.0, y[None]), "cross"),
        (lambda y: KernelTracker(NonlocalNTK(nn.Linear(3, 1), samples=4), inputs(12, 3), y), "targets"),
    ],
)
def test_targets_that_are_complex_or_infinite_are_errors(call, name):
    """The message names the argument; so it does for another device."""
    with pytest.raises(TypeError, match=f"{name} must be real, got torch.complex64"):
        call(COMPLEX)
    with pytest.raises(ValueError, match=f"{name} must be finite, got 12 NaN or infinite"):
        call(INFINITE)
    if name in ("vectors", "y", "cross"):
        with pytest.raises(ValueError, match=f"{name} must be on cpu like the .*, got meta"):
            call(torch.ones(12, device="meta"))
