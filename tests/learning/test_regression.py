"""Ridge regression and classification as estimators of scikit-learn."""

import re

import numpy as np
import pytest
import torch
from conftest import inputs, mlp
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks
from torch import nn

import nntk
from nntk import KernelRidge, KernelRidgeClassifier, NonlocalNTK


def small(num_features):
    """Build a network that is quickly evaluated."""
    return nn.Sequential(nn.Linear(num_features, 16), nn.Tanh(), nn.Linear(16, 1))


def expected_failures(estimator):
    """Leave-one-out leaves a whole weight out, but one of two repetitions: it may choose another ridge."""
    return {"check_sample_weight_equivalence_on_dense_data": "leave-one-out tells weights from repetitions"}


ESTIMATORS = [KernelRidge(small, samples=32), KernelRidgeClassifier(small, samples=32)]
CHECKS = parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)


def without_address(value):
    """Name a case without the address of a function, so that every process of the tests collects the same names."""
    return re.sub(r"<function(\w+?)at0x\w+>", r"\1", CHECKS.kwargs["ids"](value))


@pytest.mark.contract
@pytest.mark.parametrize(*CHECKS.args, ids=without_address)
@pytest.mark.filterwarnings("ignore")
def test_estimators_pass_the_checks_of_scikit_learn(estimator, check):
    """scikit-learn has checks for all estimators."""
    check(estimator)


@pytest.mark.parametrize("number", [20, 300], ids=["few inputs", "many inputs"])
def test_the_fit_is_ridge_regression_with_the_kernel(number):
    """Predictions equal the formula with the matrix, whether the fit uses the matrix or the normal equations."""
    x, y = inputs(number, 3, torch.float64).numpy(), inputs(number, 2, torch.float64, seed=5).numpy()
    new = inputs(7, 3, torch.float64, seed=8).numpy()
    model = mlp(3, 12, 1, dtype=torch.float64)
    fit = KernelRidge(model, samples=64, alpha=0.7, seed=3).fit(x, y)
    kernel = NonlocalNTK(model, samples=64, seed=3)
    k, cross = kernel(torch.tensor(x)).numpy(), kernel(torch.tensor(new), torch.tensor(x)).numpy()
    expected = y.mean(0) + cross @ np.linalg.solve(k + 0.7 * np.eye(number), y - y.mean(0))
    np.testing.assert_allclose(fit.predict(new), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("number", [20, 150], ids=["few inputs", "many inputs"])
def test_the_ridge_has_the_least_leave_one_out_error(number):
    """Ridges near the chosen one have larger errors of fits that each leave an input out."""
    x = inputs(number, 3, torch.float64)
    y = torch.sign(x[:, 0]) + 0.3 * inputs(number, 1, torch.float64, seed=2)[:, 0]
    model = mlp(3, 12, 1, dtype=torch.float64)
    fit = KernelRidge(model, samples=64).fit(x.numpy(), y.numpy())
    k, centred = NonlocalNTK(model, samples=64)(x), y - y.mean()

    def left_out(alpha):
        inverse = torch.linalg.inv(k + alpha * torch.eye(number))
        return float((inverse @ centred / inverse.diagonal()).square().mean())

    assert all(left_out(fit.alpha_) <= left_out(fit.alpha_ * factor) * (1 + 1e-6) for factor in (0.3, 0.5, 2.0, 3.0))


def test_digits_and_a_search_over_gamma():
    """A sign network, whose hidden layer has no gradient, classifies images; a search chooses gamma."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32)[:900], y[:900]

    def sign(num_features):
        return nn.Sequential(nn.Linear(num_features, 64), nntk.activations.Sign(), nn.Linear(64, 1))

    search = GridSearchCV(KernelRidgeClassifier(sign, samples=192), {"gamma": [0.1, 0.3]}, cv=2).fit(x[:600], y[:600])
    assert search.best_params_["gamma"] in (0.1, 0.3) and search.score(x[600:], y[600:]) > 0.85
    two = KernelRidgeClassifier(sign, samples=64).fit(x[y < 2], y[y < 2])
    assert two.decision_function(x[y < 2]).ndim == 1 and two.score(x[y < 2], y[y < 2]) > 0.95


def test_builders_are_seeded_and_modules_are_copied():
    """The same seed gives the same fit; a module is copied; the network is evaluated in the dtype of the inputs."""
    x, y = inputs(30, 3).numpy(), inputs(30, 1, seed=2).numpy()[:, 0]
    torch.manual_seed(1)
    first = KernelRidge(small, samples=32).fit(x, y)
    torch.manual_seed(2)
    second = clone(first).fit(x, y)
    np.testing.assert_array_equal(first.predict(x), second.predict(x))
    module = mlp(3, 8, 1)
    fit = KernelRidge(module, samples=32).fit(x.astype(np.float64), y)
    assert next(module.parameters()).dtype == torch.float32
    assert next(fit.kernel_.model.parameters()).dtype == torch.float64


def test_the_double_descent_peak_is_warned_of():
    """There are as many features as inputs, and the ridge is nearly zero."""
    x, y = inputs(64, 3).numpy(), inputs(64, 1, seed=2).numpy()[:, 0]
    with pytest.warns(UserWarning, match="as many features .64. as inputs .64.: such fits err the most"):
        KernelRidge(small, samples=64, alpha=1e-9).fit(x, y)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan, "cv", True, None, [1.0]])
def test_a_ridge_is_positive(alpha):
    """The only other value is that for leave-one-out."""
    with pytest.raises(ValueError, match=f"alpha must be a positive number or 'loo', got {re.escape(repr(alpha))}"):
        KernelRidge(small, samples=8, alpha=alpha).fit(np.eye(3), np.ones(3))


def test_a_sign_cnn_classifies_better_than_its_last_layer():
    """Autograd sees only the last layer, whose NTK is that of its inputs; leave-one-out chooses both ridges."""
    x, y = load_digits(return_X_y=True)
    x, order = (x / 16 - 0.5).astype(np.float32), np.random.default_rng(0).permutation(len(x))
    train, held_out = order[:600], order[600:1100]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, padding=1), nntk.activations.Sign()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nntk.activations.Sign()),
        *(nn.Flatten(), nn.Linear(128, 1)),
    )
    seen = model[:-1](torch.tensor(x)).detach().numpy()
    targets = 2.0 * (y[:, None] == np.arange(10)) - 1
    last = RidgeCV(np.logspace(-2, 5, 29)).fit(seen[train], targets[train]).predict(seen[held_out]).argmax(1)
    whole = KernelRidgeClassifier(model, samples=384, directions="rademacher").fit(x[train], y[train])
    by_last, by_whole = (last == y[held_out]).mean(), whole.score(x[held_out], y[held_out])
    assert by_whole > 0.9 and by_whole > by_last + 0.05


@pytest.mark.parametrize("estimator", [KernelRidge, KernelRidgeClassifier])
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"gamma": 0.0}, ValueError, "gamma must be between .* got 0"),
        ({"estimator": "unbiased"}, ValueError, "estimator must be 'energy' or 'plugin' .* got 'unbiased'"),
        ({"samples": 2.5}, TypeError, "samples must be an integer, got 2.5"),
        ({"antithetic": 1}, TypeError, "antithetic must be True or False, got 1"),
    ],
)
def test_settings_of_the_kernel_are_checked(estimator, settings, error, message):
    """The errors come on fitting, as in scikit-learn."""
    with pytest.raises(error, match=message):
        estimator(small, **{"samples": 8, **settings}).fit(np.eye(3), np.arange(3))


@pytest.mark.parametrize("estimator", [KernelRidge, KernelRidgeClassifier])
def test_data_that_do_not_fit_are_an_error(estimator):
    """The errors are those of scikit-learn's checks."""
    fit = estimator(small, samples=8).fit(np.eye(3), np.arange(3))
    for method in ("predict", "decision_function")[: 1 if estimator is KernelRidge else 2]:
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            getattr(estimator(small), method)(np.eye(3))
        with pytest.raises(ValueError, match="X has 4 features, but .* is expecting 3"):
            getattr(fit, method)(np.eye(4))
        with pytest.raises(ValueError, match="Input X contains NaN"):
            getattr(fit, method)(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        fit.fit(np.full((3, 3), np.nan), np.arange(3))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 2\]"):
        fit.fit(np.eye(3), np.arange(2))


def test_one_class_is_an_error():
    """A classifier needs two classes at least."""
    with pytest.raises(ValueError, match="y must have two classes at least, got one class: .*7"):
        KernelRidgeClassifier(small, samples=8).fit(np.eye(3), [7, 7, 7])


@pytest.mark.parametrize("estimator", [KernelRidge, KernelRidgeClassifier])
def test_weights_are_repetitions_where_the_ridge_is_given(estimator):
    """The check of scikit-learn that leave-one-out cannot pass."""
    check_sample_weight_equivalence_on_dense_data(estimator.__name__, estimator(small, samples=32, alpha=0.5))


@pytest.mark.parametrize("number", [20, 150], ids=["few inputs", "many inputs"])
def test_weights_are_those_of_weighted_ridge_regression(number):
    """scikit-learn's Ridge on the features; a weight of two is an input that is there twice, a weight of zero none."""
    x, y = inputs(number, 3, torch.float64).numpy(), inputs(number, 2, torch.float64, seed=5).numpy()
    weights = np.random.default_rng(0).integers(0, 3, number)
    model = mlp(3, 12, 1, dtype=torch.float64)
    features = NonlocalNTK(model, samples=64).features(torch.tensor(x)).numpy()
    mean = np.average(y, 0, weights)
    fit = KernelRidge(model, samples=64, alpha=0.7).fit(x, y, weights)
    expected = Ridge(0.7, fit_intercept=False).fit(features, y - mean, weights).coef_.T
    np.testing.assert_allclose(fit.coef_, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fit.intercept_, mean)
    repeated = KernelRidge(model, samples=64, alpha=0.7).fit(np.repeat(x, weights, 0), np.repeat(y, weights, 0))
    np.testing.assert_allclose(fit.predict(x), repeated.predict(x), rtol=1e-6, atol=1e-9)
    plain = KernelRidge(model, samples=64).fit(x, y)
    assert KernelRidge(model, samples=64).fit(x, y, np.ones(number)).alpha_ == plain.alpha_


@pytest.mark.parametrize("number", [20, 150], ids=["few inputs", "many inputs"])
def test_deviations_are_those_of_a_gaussian_process(number):
    """scikit-learn's process with the same covariance and noise; the amplitude has the largest likelihood."""
    x, y = inputs(number, 3, torch.float64).numpy(), inputs(number, 2, torch.float64, seed=5).numpy()
    new = inputs(7, 3, torch.float64, seed=8).numpy()
    model = mlp(3, 12, 1, dtype=torch.float64)
    fit = KernelRidge(model, samples=64, alpha=0.7).fit(x, y)
    a, b = (NonlocalNTK(model, samples=64).features(torch.tensor(part)).numpy() for part in (x, new))
    mean, deviation = fit.predict(new, return_std=True)
    np.testing.assert_array_equal(mean, fit.predict(new))
    centred = y - y.mean(0)
    for target in range(2):
        amplitude = centred[:, target] @ np.linalg.solve(a @ a.T + 0.7 * np.eye(number), centred[:, target]) / number
        covariance = ConstantKernel(amplitude) * DotProduct(1e-9, "fixed")
        process = GaussianProcessRegressor(covariance, alpha=0.7 * amplitude, optimizer=None)
        expected = process.fit(a, centred[:, target]).predict(b, return_std=True)
        np.testing.assert_allclose(mean[:, target] - y.mean(0)[target], expected[0], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(deviation[:, target], expected[1], rtol=1e-5)

        def likelihood(factor, target=target, amplitude=amplitude):
            scaled = ConstantKernel(factor * amplitude) * DotProduct(1e-9, "fixed")
            other = GaussianProcessRegressor(scaled, alpha=0.7 * factor * amplitude, optimizer=None)
            return other.fit(a, centred[:, target]).log_marginal_likelihood_value_

        assert likelihood(1.0) > max(likelihood(0.8), likelihood(1.25))
    flat = KernelRidge(model, samples=64, alpha=0.7).fit(x, y[:, 0]).predict(new, return_std=True)
    assert flat[1].shape == (7,)
    np.testing.assert_allclose(flat[1], deviation[:, 0], rtol=1e-8)


@pytest.mark.parametrize(("weights", "message"), [([-1, 1, 1], "[Nn]egative"), ([0, 0, 0], "above zero|non-zero")])
def test_weights_that_do_not_fit_are_an_error(weights, message):
    """None is negative, and not all are zero."""
    with pytest.raises(ValueError, match=message):
        KernelRidge(small, samples=8).fit(np.eye(3), np.arange(3), weights)
