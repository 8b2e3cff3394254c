"""Kernel ridge regression by one decomposition: its textbook formulas, and leave-one-out by leaving inputs out."""

import pytest
import torch
from conftest import relative_error

from nntk.linalg import ridge
from nntk.linalg.alignment import alignment


def make_problem(number, num_features):
    """Draw features [N, F] and two targets [N, 2] in float64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(number, num_features, dtype=torch.float64, generator=generator)
    return a, torch.randn(number, 2, dtype=torch.float64, generator=generator)


def direct_weights(a, y, alpha):
    """Solve the normal equations."""
    return torch.linalg.solve(a.T @ a + alpha * torch.eye(a.shape[1], dtype=a.dtype), a.T @ y)


def left_out_errors(a, y, alpha, intercept):
    """Fit as often as there are inputs, each time without one of them."""
    errors = []
    for n in range(len(a)):
        others = torch.arange(len(a)) != n
        mean, offset = (part[others].mean(0) if intercept else torch.zeros(()) for part in (a, y))
        weights = direct_weights(a[others] - mean, y[others] - offset, alpha)
        errors.append(y[n] - (a[n] - mean) @ weights - offset)
    return torch.stack(errors)


SHAPES = pytest.mark.parametrize("shape", [(9, 4), (6, 6), (5, 12)], ids=["tall", "square", "wide"])


@SHAPES
def test_all_forms_give_the_same_weights(shape):
    """The dual, the primal by either decomposition, and a ridge for each target."""
    a, y = make_problem(*shape)
    expected, kernel = direct_weights(a, y, 0.3), a @ a.T
    assert relative_error(a.T @ ridge.solution(ridge.decompose(kernel, y), 0.3), expected) < 1e-10
    assert relative_error(a.T @ ridge.solve(kernel, 0.3, y), expected) < 1e-10
    assert relative_error(a.T @ ridge.solve(kernel, 0.3, y[:, 0]), expected[:, 0]) < 1e-10
    for spectrum in (ridge.decompose(a.T @ a, a.T @ y), ridge.decompose_features(a, y)):
        assert relative_error(ridge.solution(spectrum, 0.3), expected) < 1e-10
        both = ridge.solution(spectrum, torch.tensor([0.3, 2.0], dtype=torch.float64))
        assert relative_error(both[:, 0], expected[:, 0]) < 1e-10
        assert relative_error(both[:, 1], direct_weights(a, y, 2.0)[:, 1]) < 1e-10


@SHAPES
def test_leave_one_out_errors_are_those_of_leaving_inputs_out(shape):
    """Dual and primal, the latter in two blocks of inputs, and with an intercept."""
    a, y = make_problem(*shape)
    expected = left_out_errors(a, y, 0.3, intercept=False)
    assert relative_error(ridge.leave_one_out_dual(ridge.decompose(a @ a.T, y), 0.3), expected) < 1e-10
    spectrum = ridge.decompose(a.T @ a, a.T @ y)
    errors = [
        ridge.leave_one_out_primal(spectrum, 0.3, a[block] @ spectrum.vectors, y[block])
        for block in (slice(0, 2), slice(2, None))
    ]
    assert relative_error(torch.cat(errors), expected) < 1e-10
    centred, targets = a - a.mean(0), y - y.mean(0)
    spectrum = ridge.decompose_features(centred, targets)
    errors = ridge.leave_one_out_primal(spectrum, 0.3, centred @ spectrum.vectors, targets, intercept=1 / len(a))
    assert relative_error(errors, left_out_errors(a, y, 0.3, intercept=True)) < 1e-10


def test_an_indefinite_matrix_is_solved():
    """A kernel that rounding made indefinite has no Cholesky decomposition, and is still solved."""
    matrix, right = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64)), torch.ones(2, dtype=torch.float64)
    assert torch.allclose(ridge.solve(matrix, 0.1, right), right / torch.tensor([1.1, -0.4], dtype=torch.float64))


def test_candidates_have_the_unit_of_the_kernel():
    """A kernel of zeros has candidates too."""
    assert torch.equal(ridge.candidates(2.0), 2 * ridge.CANDIDATES)
    assert torch.equal(ridge.candidates(0.0), ridge.CANDIDATES)


def test_alignment_ignores_scale_and_takes_gram_matrices():
    """It is the cosine of two kernels, and the same from smaller matrices of the same norms."""
    (a, _), (b, _) = make_problem(9, 3), make_problem(9, 2)
    k, other = a @ a.T, 7 * b @ b.T
    expected = float((k * other).sum() / k.norm() / other.norm())
    assert alignment(k, other) == pytest.approx(expected) and alignment(k, 3 * k) == pytest.approx(1)
    assert alignment(a.T @ a, b.T @ b, (a.T @ b).square().sum()) == pytest.approx(expected)
