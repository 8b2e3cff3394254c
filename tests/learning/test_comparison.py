"""Comparison of kernels: against NumPy and SciPy, and its errors against the scatter over seeds."""

import re

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import inputs, mlp
from torch import nn

import nntk
from nntk import NonlocalNTK, compare

SCALARS = ("alignment", "centred_alignment", "difference")


def gram(number, rank, seed):
    """Build a kernel of a rank."""
    a = inputs(number, rank, torch.float64, seed=seed)
    return a @ a.T


def test_exact_kernels_are_compared_as_by_numpy_and_scipy():
    """Alignments, difference, eigenvalues, effective rank and principal angles, all without an error."""
    k, l = gram(12, 5, 1), gram(12, 12, 2)  # noqa: E741
    result = compare(k, l, top=4)
    a, b, h = k.numpy(), l.numpy(), np.eye(12) - 1 / 12
    expected = {
        "alignment": (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
        "centred_alignment": np.trace(h @ a @ h @ b) / np.linalg.norm(h @ a @ h) / np.linalg.norm(h @ b @ h),
        "difference": np.linalg.norm(a - b) / np.linalg.norm(b),
    }
    for name in SCALARS:
        assert float(getattr(result, name).value) == pytest.approx(expected[name], rel=1e-12)
        assert float(getattr(result, name).standard_error) == float(getattr(result, name).bias) == 0
    vectors = []
    for number, matrix in enumerate((a, b)):
        values, columns = np.linalg.eigh(matrix)
        vectors.append(columns[:, -4:])
        np.testing.assert_allclose(result.eigenvalues[number].value, values[:-5:-1], rtol=1e-12)
        rank = values.sum() ** 2 / (values**2).sum()
        assert float(result.effective_rank[number].value) == pytest.approx(rank, rel=1e-12)
    np.testing.assert_allclose(result.angles.value, scipy.linalg.subspace_angles(*vectors)[::-1], rtol=1e-9)
    assert result.errors == ("exact", "exact") and "±" not in str(result)


def test_small_angles_keep_their_digits():
    """A plane that is turned by 1e-9, of which the cosine is 1 in float64."""
    basis = torch.linalg.qr(inputs(6, 6, torch.float64))[0]
    turned = basis.clone()
    turned[:, 0] += 1e-9 * basis[:, 5]
    values = torch.tensor([3.0, 2.0, 0, 0, 0, 0], dtype=torch.float64)
    angles = compare((basis * values) @ basis.T, (turned * values) @ turned.T, top=2).angles.value
    assert float(angles[1]) == pytest.approx(1e-9, rel=1e-5) and float(angles[0]) < 1e-14


def test_scale_and_rotation_leave_what_they_must():
    """A factor changes no alignment and no angle, a rotation of the inputs no spectrum; the dtype is the caller's."""
    k, rotation = gram(10, 10, 3), torch.linalg.qr(gram(10, 10, 4))[0]
    scaled, rotated = compare(k, 7 * k, top=3), compare(k, rotation @ k @ rotation.T, top=10)
    assert float(scaled.alignment.value) == pytest.approx(1) == float(scaled.centred_alignment.value)
    assert float(scaled.angles.value.max()) < 1e-7 and float(scaled.difference.value) == pytest.approx(6 / 7)
    torch.testing.assert_close(rotated.eigenvalues[0].value, rotated.eigenvalues[1].value)
    assert float(rotated.alignment.value) < 0.99 and float(rotated.angles.value.max()) < 1e-7
    assert compare(k.half(), k.int(), top=1).alignment.value.dtype == torch.float64


@pytest.mark.parametrize("estimator", ["energy", "plugin", "unbiased"])
def test_replicates_leave_one_group_out(estimator):
    """Each is the kernel of the other displacements, and their scatter is the standard error."""
    model, x = mlp(3, 8, 1, activation="tanh", dtype=torch.float64), inputs(5, 3, torch.float64)
    kernel = NonlocalNTK(model, gamma=0.3, samples=64, estimator=estimator)
    estimate = kernel.estimate(x, rtol=1e-6, max_samples=64, keep_replicates=True)
    assert estimate.samples == 64 and estimate.replicates.shape == (16, 5, 5)
    torch.testing.assert_close(estimate.kernel, kernel(x))
    scatter = (estimate.replicates - estimate.replicates.mean(0)).square().sum(0) * 15 / 16
    torch.testing.assert_close(scatter.sqrt(), estimate.standard_error)
    if estimator == "energy":
        d, squares = kernel.differences(x)[:, :, 0], kernel.squared_norms()
        rows = torch.arange(64) // 4 != 7
        expected = torch.einsum("m,mi,mj->ij", kernel.num_params / 60 / squares[rows], d[rows], d[rows])
        torch.testing.assert_close(estimate.replicates[7], expected)
    assert kernel.estimate(x, rtol=1e-6, max_samples=64).replicates is None


def jackknife(function, replicates):
    """Return the jackknife's standard error and bias of a function of a kernel, by NumPy."""
    values = np.array([function(replicate.numpy()) for replicate in replicates])
    return np.sqrt(((values - values.mean(0)) ** 2).sum(0) * (len(values) - 1) / len(values)), values.mean(0)


def test_errors_of_replicates_are_those_of_the_jackknife():
    """Of the alignment of two independent estimates, whose variances add up; paired, the same group is left out."""
    x = inputs(6, 3, torch.float64)
    first, second = (
        NonlocalNTK(mlp(3, 8, 1, dtype=torch.float64, seed=seed), samples=64).estimate(
            x, rtol=1e-6, max_samples=64, keep_replicates=True
        )
        for seed in (0, 1)
    )
    k, l = first.kernel.numpy(), second.kernel.numpy()  # noqa: E741

    def align(a, b):
        return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    result = compare(first, second, top=2)
    parts = [jackknife(lambda a: align(a, l), first.replicates), jackknife(lambda b: align(k, b), second.replicates)]
    assert float(result.alignment.standard_error) == pytest.approx(np.hypot(parts[0][0], parts[1][0]), rel=1e-9)
    bias = sum(15 * (part[1] - align(k, l)) for part in parts)
    assert float(result.alignment.bias) == pytest.approx(bias, rel=1e-6)
    largest = jackknife(lambda a: np.linalg.eigvalsh(a)[:-3:-1], first.replicates)[0]
    np.testing.assert_allclose(result.eigenvalues[0].standard_error, largest, rtol=1e-9)
    pairs = np.array([align(*pair) for pair in zip(first.replicates.numpy(), second.replicates.numpy(), strict=True)])
    paired = compare(first, second, top=2, paired=True)
    expected = np.sqrt(((pairs - pairs.mean()) ** 2).sum() * 15 / 16)
    assert float(paired.alignment.standard_error) == pytest.approx(expected, rel=1e-9)
    same = compare(first, first, paired=True)
    assert float(same.alignment.standard_error) < 1e-12 < float(compare(first, first).alignment.standard_error)
    assert result.errors == ("jackknife", "jackknife") and "±" in str(result)


@pytest.mark.parametrize("keep_replicates", [True, False], ids=["jackknife", "bootstrap"])
@pytest.mark.parametrize("activation", ["tanh", "sign"])
def test_errors_are_the_scatter_over_seeds(activation, keep_replicates):
    """Of each number, within what 16 seeds say of a standard deviation; the bias has the sign that it must have."""
    model, x = mlp(6, 16, 1, activation=activation, dtype=torch.float64), inputs(12, 6, torch.float64)
    reference = gram(12, 6, 9)
    results = []
    for seed in range(16):
        kernel = NonlocalNTK(model, gamma=0.3, samples=128, seed=seed)
        estimate = kernel.estimate(x, rtol=1e-6, max_samples=128, keep_replicates=keep_replicates)
        results.append(compare(estimate, reference, top=2))
    for name in (*SCALARS, "eigenvalues", "effective_rank"):
        statistics = [getattr(result, name) for result in results]
        statistics = [one[0] if isinstance(one, tuple) else one for one in statistics]
        scatter = torch.stack([one.value for one in statistics]).std(0)
        predicted = torch.stack([one.standard_error for one in statistics]).square().mean(0).sqrt()
        assert ((predicted / scatter > 0.5) & (predicted / scatter < 2)).all(), (name, predicted / scatter)
    assert all(float(result.effective_rank[0].bias) < 0 for result in results)
    assert all(float(result.effective_rank[1].standard_error) == 0 for result in results)


def test_more_displacements_have_smaller_errors():
    """16 times as many have a quarter of the error; an estimate without any error counts as exact."""
    model, x = mlp(6, 32, 1, dtype=torch.float64), inputs(12, 6, torch.float64)
    for keep_replicates in (True, False):
        errors = []
        for samples in (64, 1024):
            kernel = NonlocalNTK(model, gamma=0.01, samples=samples)
            estimate = kernel.estimate(x, rtol=1e-6, max_samples=samples, keep_replicates=keep_replicates)
            errors.append(float(compare(estimate, nntk.local_ntk(model, x)).eigenvalues[0].standard_error[0]))
        assert 2.5 < errors[0] / errors[1] < 6.5
    bias = nn.Sequential(nn.Linear(1, 1))
    bias[0].weight.requires_grad_(False)
    constant = NonlocalNTK(bias.double(), samples=32, directions="rademacher").estimate(x[:4, :1], max_samples=32)
    assert compare(constant, torch.ones(4, 4), top=1).errors == ("exact", "exact")


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((torch.eye(3), [[1.0]]), {}, TypeError, "second must be a torch.Tensor or an Estimate, got list"),
        ((torch.ones(3, 2), torch.eye(3)), {}, ValueError, r"first must have shape \[N, N\], got \(3, 2\)"),
        ((torch.ones(2, 2, 3, 3), torch.eye(2)), {}, ValueError, "outputs='trace' gives such a kernel"),
        ((torch.eye(5), torch.eye(6)), {}, ValueError, r"second must have shape \(5, 5\) like first, got \(6, 6\)"),
        ((torch.eye(3) / 0, torch.eye(3)), {}, ValueError, "first must be finite"),
        ((torch.zeros(3, 3), torch.eye(3)), {"top": 1}, ValueError, "first must have an entry other than zero"),
        ((torch.zeros(0, 0), torch.zeros(0, 0)), {}, ValueError, "first must have an entry other than zero"),
        ((torch.eye(3), torch.ones(3, 3).triu()), {}, ValueError, "second must be symmetric, .* differ by 1;"),
        ((torch.eye(3), torch.eye(3)), {"top": 4}, ValueError, "top must be at most 3, got 4"),
        ((torch.eye(3), torch.eye(3)), {"top": 0}, ValueError, "top must be at least 1, got 0"),
        ((torch.eye(3) * 1j, torch.eye(3)), {}, TypeError, "first must be real"),
        ((torch.eye(3), torch.eye(3)), {"top": 1, "paired": True}, ValueError, "got errors by exact from 0 and by"),
        ((torch.eye(3), torch.eye(3)), {"top": 1, "paired": 1}, TypeError, "paired must be True or False, got 1"),
    ],
)
def test_kernels_that_cannot_be_compared_are_errors(arguments, settings, error, message):
    """The message names the argument, the value given and what is allowed."""
    with pytest.raises(error, match=message):
        compare(*arguments, **settings)


def test_the_text_has_a_line_for_each_number():
    """With its error where there is one."""
    lines = str(compare(gram(6, 3, 1), gram(6, 3, 2), top=2)).splitlines()
    assert [re.split(r" {2,}", line)[0] for line in lines] == [
        "alignment", "centred alignment", "difference", "eigenvalues of K", "eigenvalues of L", "effective rank of K",
        "effective rank of L", "angles",
    ]  # fmt: skip
