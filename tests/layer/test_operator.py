"""Kernels as operators: the results of the matrix, without the matrix."""

from unittest.mock import patch

import pytest
import torch
from conftest import inputs, mlp, relative_error
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator, cg
from torch import nn

from nntk import Attention, FixedKernel, KernelOperator, NonlocalNTK
from nntk.estimators.features import features

SETTINGS = {
    "energy": {},
    "mean": {"outputs": "mean", "normalization": "paper"},
    "plugin": {"estimator": "plugin", "outputs": "mean"},
    "attention": {"weights": Attention(temperature=0.1)},
    "weighted": {"weights": FixedKernel("gaussian", proposal=FixedKernel("cauchy")), "antithetic": False},
}


def make_kernel(samples=24, **settings):
    """Build a kernel of two outputs."""
    return NonlocalNTK(mlp(3, 12, 2), gamma=0.3, samples=samples, **settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore::nntk.EffectiveSampleWarning")
def test_features_make_the_kernel(settings):
    """Features of rows and of columns, each computed alone, give the kernel and its diagonal."""
    kernel, x, other = make_kernel(**settings), inputs(7, 3), inputs(5, 3, seed=4)
    a, b = kernel.features(x), kernel.features(other)
    assert relative_error(a @ b.T, kernel(x, other)) < 1e-5
    assert relative_error(kernel.diagonal(x), kernel(x).diagonal()) < 1e-5


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
def test_diagonals_of_all_outputs(outputs):
    """The diagonal is that of the matrix for each form of the outputs, also without features."""
    for estimator in ("energy", "unbiased"):
        kernel, x = make_kernel(outputs=outputs, estimator=estimator), inputs(4, 3)
        whole = kernel(x)
        expected = torch.stack([whole[n, n] for n in range(4)])
        torch.testing.assert_close(kernel.diagonal(x), expected, rtol=1e-4, atol=1e-5)
        assert kernel.diagonal(x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("number", [30, 200], ids=["wide", "tall"])
def test_results_are_those_of_the_matrix(number):
    """Products, solutions, eigenvalues, ranks: with fewer inputs than features, and with more, in blocks of 37."""
    kernel, x = make_kernel(max_memory=2**20), inputs(number, 3)
    operator, k = KernelOperator(kernel.features, kernel, x, max_bytes=37 * 32 * 48), kernel(x).double()
    assert [len(a) for _, a in operator.features()] == ([30] if number == 30 else [37] * 5 + [15])
    y = torch.randn(number, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert operator.shape == (number, number) and operator.is_wide == (number == 30)
    assert relative_error(operator @ y, k @ y) < 1e-5 and relative_error(operator @ y[:, 0].float(), k @ y[:, 0]) < 1e-5
    solved = operator.solve(y, 2.0)
    assert relative_error(solved, torch.linalg.solve(k + 2.0 * torch.eye(number), y)) < 1e-4
    values, vectors = operator.eigsh(5)
    assert relative_error(values, torch.linalg.eigvalsh(k).flip(0)[:5]) < 1e-5
    assert relative_error(k @ vectors, vectors * values) < 1e-4
    assert relative_error(vectors.T @ vectors, torch.eye(5)) < 1e-4
    assert relative_error(operator.eigvalsh(5), values) < 1e-9
    assert relative_error(operator.root() @ operator.root().T, k) < 1e-5
    assert operator.trace() == pytest.approx(float(k.trace()), rel=1e-5)
    assert operator.effective_rank() == pytest.approx(float(k.trace() ** 2 / k.square().sum()), rel=1e-5)
    target = y[:, 0]
    expected = float(target @ k @ target / k.norm() / (target @ target))
    assert operator.alignment(target) == pytest.approx(expected, rel=1e-4)
    assert operator.alignment(vectors[:, 0]) == pytest.approx(float(values[0] / k.norm()), rel=1e-4)


@pytest.mark.parametrize("number", [30, 200], ids=["wide", "tall"])
def test_alignment_with_a_root_is_the_similarity_of_kernels(number):
    """Two kernels of the same inputs have one similarity, whatever their scales."""
    x, first, second = inputs(number, 3), make_kernel(seed=1), make_kernel(seed=2)
    k1, k2 = first(x).double(), second(x).double()
    similarity = first.operator(x).alignment(7 * second.operator(x).root())
    assert similarity == pytest.approx(float((k1 * k2).sum() / k1.norm() / k2.norm()), rel=1e-5)


def test_features_that_fit_the_budget_are_made_once():
    """Beside those of one input, which tell how many they are."""
    kernel, x, v = make_kernel(), inputs(200, 3), torch.ones(200)
    with patch("nntk.kernel.features", side_effect=features) as observed:
        operator = kernel.operator(x)
        assert torch.equal(operator @ v, operator @ v) and operator.effective_rank() > 1
    assert [len(call.args[1]) for call in observed.call_args_list] == [1, 200]


def test_scipy_accepts_the_operator():
    """SciPy's conjugate gradients solve the same system as the operator."""
    operator, y = make_kernel().operator(inputs(60, 3)), torch.ones(60, dtype=torch.float64)
    shifted = operator.to_scipy() + aslinearoperator(3.0 * sparse.identity(60))
    solution, status = cg(shifted, y.numpy(), rtol=1e-8)
    assert status == 0 and relative_error(torch.as_tensor(solution), operator.solve(y, 3.0)) < 1e-4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: o @ torch.ones(4), ValueError, r"vectors must have shape \[3\] or \[3, R\], got \(4,\)"),
        (lambda o: o @ [1.0] * 3, TypeError, "vectors must be a torch.Tensor, got list"),
        (lambda o: o.project(torch.ones(4)), ValueError, r"vectors must have shape \[3\] or \[3, R\], got \(4,\)"),
        (lambda o: o.project([1.0] * 3), TypeError, "vectors must be a torch.Tensor, got list"),
        (lambda o: o.expand(torch.ones(4)), ValueError, r"weights must have shape \[48\] or \[48, R\], got \(4,\)"),
        (lambda o: o.expand([1.0] * 48), TypeError, "weights must be a torch.Tensor, got list"),
        (
            lambda o: o.expand(torch.ones(48), torch.ones(3, 2)),
            ValueError,
            r"x must have shape \[N, 3\].* got \(3, 2\)",
        ),
        (lambda o: o.expand(torch.ones(48), [1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda o: o.expand(torch.ones(48), torch.ones(3, 3).double()), TypeError, "x must be .* got torch.float64"),
        (lambda o: o.gram_and_projection(torch.ones(4)), ValueError, r"vectors must have shape \[3\].* got \(4,\)"),
        (lambda o: o.gram_and_projection([1.0] * 3), TypeError, "vectors must be a torch.Tensor, got list"),
        (lambda o: o.solve(torch.ones(4), 1.0), ValueError, r"y must have shape \[3\] or \[3, R\], got \(4,\)"),
        (lambda o: o.solve([1.0] * 3, 1.0), TypeError, "y must be a torch.Tensor, got list"),
        (lambda o: o.solve(torch.ones(3), 0.0), ValueError, "alpha must be between .* got 0"),
        (lambda o: o.solve(torch.ones(3), "loo"), TypeError, "alpha must be a number, got 'loo'"),
        (
            lambda o: o.eigsh(4),
            ValueError,
            "k must be at most 3, got 4. A kernel of 3 inputs by 48 features has at most 3",
        ),
        (lambda o: o.eigsh(1.5), TypeError, "k must be an integer, got 1.5"),
        (lambda o: o.eigvalsh(0), ValueError, "k must be at least 1, got 0"),
        (lambda o: o.eigvalsh(1.5), TypeError, "k must be an integer, got 1.5"),
        (lambda o: o.alignment(torch.ones(4)), ValueError, r"y must have shape \[3\] or \[3, R\], got \(4,\)"),
        (lambda o: o.alignment([1.0] * 3), TypeError, "y must be a torch.Tensor, got list"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    """Arguments that do not fit are errors of every method."""
    with pytest.raises(error, match=message):
        call(make_kernel().operator(inputs(3, 3)))


@pytest.mark.parametrize(
    ("settings", "x", "error", "message"),
    [
        ({"estimator": "unbiased"}, inputs(3, 3), ValueError, "estimator must be 'energy' .* got 'unbiased'"),
        ({"outputs": "full"}, inputs(3, 3), ValueError, "outputs must be 'trace' or 'mean' .* got 'full'"),
        ({}, inputs(3, 2), ValueError, r"x must have shape \[N, 3\].* got \(3, 2\)"),
        ({}, torch.tensor([[1.0] * 3, [torch.nan] * 3]), ValueError, r"x must be finite.* index \(1, 0\)"),
        ({}, inputs(3, 3, torch.float64), TypeError, "x must be torch.float32 .* got torch.float64"),
        ({}, [[1.0] * 3], TypeError, "x must be a torch.Tensor, got list"),
    ],
)
def test_kernels_and_inputs_without_an_operator_are_errors(settings, x, error, message):
    """The operator itself raises the error, before any product."""
    with pytest.raises(error, match=message):
        make_kernel(**settings).operator(x)


def test_a_linear_layer_alone():
    """The kernel of a linear layer has rank d at most, and the operator shows it."""
    operator = NonlocalNTK(nn.Linear(3, 1), samples=64).operator(inputs(50, 3))
    values, _ = operator.eigsh(6)
    assert float(values[4] / values[0]) < 1e-6 and operator.effective_rank() < 4


def test_a_kernel_of_zeros_has_eigenvalues():
    """They are zero, and products and solutions are those of the ridge alone, with fewer features than inputs."""
    operator = NonlocalNTK(nn.Linear(3, 1, bias=False), samples=4).operator(torch.zeros(50, 3))
    values, vectors = operator.eigsh(2)
    assert not values.any() and torch.isfinite(vectors).all() and not (operator @ torch.ones(50)).any()
    assert torch.equal(operator.solve(torch.ones(50, dtype=torch.bool), 2.0), torch.full((50,), 0.5))
