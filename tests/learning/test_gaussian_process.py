"""Gaussian processes with nonlocal kernels in gpytorch: exact, low-rank, and never from stale features."""

import sys
from dataclasses import replace
from unittest.mock import patch

import gpytorch
import pytest
import torch
from conftest import inputs, mlp, relative_error
from linear_operator.operators import LowRankRootLinearOperator, MatmulLinearOperator, RootLinearOperator
from torch import nn

import nntk
from nntk import Attention, FixedKernel, GPyTorchKernel, KernelRidge, NonlocalNTK

SETTINGS = {
    "energy": {},
    "paper": {"outputs": "mean", "normalization": "paper"},
    "plugin": {"estimator": "plugin"},
    "attention": {"weights": Attention(temperature=0.1)},
    "weighted": {"weights": FixedKernel("gaussian", proposal=FixedKernel("cauchy")), "antithetic": False},
}


class Process(gpytorch.models.ExactGP):
    """A constant mean and a scaled nonlocal kernel."""

    def __init__(self, x, y, kernel, noise=0.1, scale=1.0):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean = gpytorch.means.ConstantMean()
        self.covariance = gpytorch.kernels.ScaleKernel(GPyTorchKernel(kernel))
        self.double()
        self.likelihood.noise, self.covariance.outputscale = noise, scale

    def forward(self, x):
        """Return the prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.covariance(x))

    def evidence(self):
        """Return the marginal log likelihood and the prior that it was computed from."""
        prior = self.train()(*self.train_inputs)
        return gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self)(prior, self.train_targets), prior


def make_kernel(samples=24, activation="sign", **settings):
    """Build a float64 kernel of a network of two outputs."""
    return NonlocalNTK(mlp(3, 12, 2, activation=activation, dtype=torch.float64), samples=samples, **settings)


def data(number, seed=1):
    """Draw inputs, and targets that suit a sign network."""
    x = inputs(number, 3, torch.float64, seed=seed)
    return x, torch.sign(x[:, 0]) + 0.1 * inputs(number, 1, torch.float64, seed=seed + 1)[:, 0]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore::nntk.EffectiveSampleWarning")
@pytest.mark.parametrize("number", [20, 60], ids=["more features", "fewer features"])
def test_the_covariance_is_the_kernel(settings, number):
    """Inputs with themselves and with others, the diagonal, and slices of the covariance."""
    kernel, x, other = make_kernel(**settings), inputs(number, 3, torch.float64), inputs(7, 3, torch.float64, seed=4)
    covariance, k = GPyTorchKernel(kernel), kernel(x)
    assert relative_error(covariance(x).to_dense(), k) < 1e-6 and covariance(x).dtype == torch.float64
    assert relative_error(covariance(x, x.clone()).to_dense(), k) < 1e-6
    assert relative_error(covariance(other, x).to_dense(), kernel(other, x)) < 1e-6
    assert relative_error(covariance(x, diag=True), k.diagonal()) < 1e-6
    assert relative_error(covariance(x, x.flip(0), diag=True), k.flip(1).diagonal()) < 1e-6
    assert relative_error(covariance(x)[3:9, 5:].to_dense(), k[3:9, 5:]) < 1e-6
    batch = torch.stack((x, 2 * x))
    assert relative_error(covariance(batch).to_dense()[1], kernel(2 * x)) < 1e-6


def test_operators_are_low_rank():
    """The operators are low-rank, also scaled; where the matrix is smaller, they are the matrix."""
    covariance = gpytorch.kernels.ScaleKernel(GPyTorchKernel(make_kernel()).double()).double()
    many, few = inputs(100, 3, torch.float64), inputs(5, 3, torch.float64)
    assert type(covariance(many).evaluate_kernel()) is LowRankRootLinearOperator
    assert type(covariance(few).evaluate_kernel()) is RootLinearOperator
    crossed = covariance(few, many).evaluate_kernel().base_linear_op
    assert type(crossed) is MatmulLinearOperator and crossed.left_linear_op.shape == (5, 48)


@pytest.mark.parametrize("number", [20, 200], ids=["by the matrix", "by Woodbury"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_predictions_are_those_of_the_textbook(number, scale):
    """Mean, variance and marginal likelihood are those of the formulas with the full matrix."""
    kernel, (x, y), new = make_kernel(), data(number), inputs(9, 3, torch.float64, seed=7)
    process = Process(x, y, kernel, noise=0.2, scale=scale)
    noisy, cross = scale * kernel(x) + 0.2 * torch.eye(number), scale * kernel(new, x)
    expected = torch.distributions.MultivariateNormal(torch.zeros(number).double(), noisy).log_prob(y) / number
    assert process.evidence()[0].item() == pytest.approx(float(expected), rel=1e-8)
    with torch.no_grad():
        prediction = process.eval()(new)
    assert relative_error(prediction.mean, cross @ torch.linalg.solve(noisy, y)) < 1e-5
    variance = scale * kernel(new) - cross @ torch.linalg.solve(noisy, cross.T)
    assert relative_error(prediction.covariance_matrix, variance) < 1e-5


def test_the_mean_is_ridge_regression():
    """The noise is the ridge."""
    kernel, (x, y), new = make_kernel(), data(150), inputs(9, 3, torch.float64, seed=7)
    ridge = KernelRidge(kernel.model, samples=24, alpha=0.2).fit(x.numpy(), y.numpy())
    with torch.no_grad():
        mean = Process(x, y - y.mean(), kernel, noise=0.2).eval()(new).mean
    assert relative_error(mean + y.mean(), torch.as_tensor(ridge.predict(new.numpy()))) < 1e-5


def test_training_raises_the_evidence_without_the_matrix():
    """Noise, scale and mean are trained, the network is not; features are evaluated once; no tensor is [N, N]."""
    kernel, (x, y) = make_kernel(), data(300)
    process, sizes = Process(x, y, kernel, scale=1 / float(kernel.diagonal(x).mean())), []
    before = [parameter.clone() for parameter in kernel.model.parameters()]
    optimizer = torch.optim.Adam(process.parameters(), lr=0.1)
    watch = nntk.models.observe.Observe(lambda function, arguments, options, out: sizes.append(_size(out)))
    with patch.object(NonlocalNTK, "features", autospec=True, side_effect=NonlocalNTK.features) as features:
        values = []
        for _ in range(30):
            optimizer.zero_grad()
            with watch:
                value, prior = process.evidence()
                (-value).backward()
            optimizer.step()
            values.append(value.item())
        assert features.call_count == 1
    assert values[-1] > values[0] + 0.1 and len(list(process.parameters())) == 3
    assert all(map(torch.equal, before, kernel.model.parameters()))
    noisy = process.likelihood(prior).lazy_covariance_matrix.evaluate_kernel()
    assert type(noisy.evaluate_kernel()).__name__ == "LowRankRootAddedDiagLinearOperator"
    assert max(sizes) < 300 * 300


def _size(out):
    return out.numel() if isinstance(out, torch.Tensor) else 0


def test_predictions_evaluate_each_input_once():
    """Features of the training inputs are cached, whatever mode they were computed in."""
    kernel, (x, y) = make_kernel(), data(100)
    process = Process(x, y, kernel)
    with patch.object(NonlocalNTK, "features", autospec=True, side_effect=NonlocalNTK.features) as features:
        with torch.inference_mode():
            for seed in (7, 8):
                assert (process.eval()(inputs(9, 3, torch.float64, seed=seed)).variance > 0).all()
        assert features.call_count == 3
        process.evidence()[0].backward()
        assert features.call_count == 3 and process.likelihood.noise_covar.raw_noise.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel, x: kernel.model[0].weight.data.mul_(1.1),
        lambda kernel, x: kernel.model[0].bias.requires_grad_(False),
        lambda kernel, x: kernel.model[1].shift.add_(0.5),
        lambda kernel, x: setattr(kernel, "settings", replace(kernel.settings, gamma=0.3)),
        lambda kernel, x: setattr(kernel, "settings", replace(kernel.settings, seed=5)),
        lambda kernel, x: x.mul_(1.1),
    ],
    ids=["parameters", "displaced parameters", "buffers", "settings", "seed", "inputs"],
)
def test_features_are_never_stale(change):
    """Everything that features depend on may change in place."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.zeros(8).double(), persistent=False)

        def forward(self, x):
            return torch.tanh(x + self.shift)

    kernel = NonlocalNTK(nn.Sequential(nn.Linear(3, 8), Shift(), nn.Linear(8, 1)).double(), samples=16)
    covariance, x = GPyTorchKernel(kernel), inputs(30, 3, torch.float64)
    before = covariance(x).to_dense()
    assert torch.equal(covariance(x).to_dense(), before)
    change(kernel, x)
    after = covariance(x).to_dense()
    assert relative_error(after, kernel(x)) < 1e-6 and relative_error(after, before) > 1e-4


def test_images_and_entries_of_inputs():
    """A network of images unflattens its inputs; active_dims select entries."""
    images = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    kernel, x = NonlocalNTK(images, samples=16), inputs(6, 16)
    assert relative_error(GPyTorchKernel(kernel)(x).to_dense(), kernel(x)) < 1e-6
    of_two = NonlocalNTK(mlp(2, 8, 1), samples=16)
    assert relative_error(GPyTorchKernel(of_two, active_dims=[3, 5])(x).to_dense(), of_two(x[:, [3, 5]])) < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, x: GPyTorchKernel(k.model), TypeError, "kernel must be a NonlocalNTK, got Sequential"),
        (lambda k, x: GPyTorchKernel(make_kernel(estimator="unbiased")), ValueError, "unbiased kernels are indefinite"),
        (lambda k, x: GPyTorchKernel(make_kernel(outputs="full")), ValueError, "outputs must be 'trace' or 'mean'"),
        (lambda k, x: GPyTorchKernel(k).forward(x, x, last_dim_is_batch=True), ValueError, "last_dim_is_batch must be"),
        (lambda k, x: GPyTorchKernel(k)(x.requires_grad_()).to_dense(), ValueError, "x1 must not require a gradient"),
        (lambda k, x: GPyTorchKernel(k)(x.float()).to_dense(), TypeError, "x must be torch.float64"),
        (lambda k, x: GPyTorchKernel(k)(x[:, :2]).to_dense(), ValueError, r"x must have shape \[N, 3\]"),
    ],
)
def test_unsupported_arguments_are_errors(call, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        call(make_kernel(), inputs(4, 3, torch.float64))


def test_without_gpytorch_the_message_says_what_to_install():
    """The rest of the package works without it."""
    with patch.dict(sys.modules, {"gpytorch.kernels": None}):
        sys.modules.pop("nntk.learning.gaussian_process")
        with pytest.raises(ImportError, match=r"nntk.GPyTorchKernel needs gpytorch: pip install 'nntk\[gp\]'"):
            _ = nntk.GPyTorchKernel
