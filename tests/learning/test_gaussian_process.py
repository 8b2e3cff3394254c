"""Gaussian processes with nonlocal kernels, in gpytorch: exact, low-rank, and never of yesterday's network."""

import sys
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
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.covariance(x))

    def evidence(self):
        """The marginal log likelihood, and what it was made of."""
        prior = self.train()(*self.train_inputs)
        return gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self)(prior, self.train_targets), prior


def made(samples=24, activation="sign", **settings):
    """A float64 kernel of a network of two outputs."""
    return NonlocalNTK(mlp(3, 12, 2, activation=activation, dtype=torch.float64), samples=samples, **settings)


def data(number, seed=1):
    """Inputs, and targets that a sign network takes to."""
    x = inputs(number, 3, torch.float64, seed=seed)
    return x, torch.sign(x[:, 0]) + 0.1 * inputs(number, 1, torch.float64, seed=seed + 1)[:, 0]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore::nntk.EffectiveSampleWarning")
@pytest.mark.parametrize("number", [20, 60], ids=["more features", "fewer features"])
def test_the_covariance_is_the_kernel(settings, number):
    """Of inputs with themselves and with others, its diagonal, and parts of it."""
    kernel, x, other = made(**settings), inputs(number, 3, torch.float64), inputs(7, 3, torch.float64, seed=4)
    covariance, k = GPyTorchKernel(kernel), kernel(x)
    assert relative_error(covariance(x).to_dense(), k) < 1e-6 and covariance(x).dtype == torch.float64
    assert relative_error(covariance(x, x.clone()).to_dense(), k) < 1e-6
    assert relative_error(covariance(other, x).to_dense(), kernel(other, x)) < 1e-6
    assert relative_error(covariance(x, diag=True), k.diagonal()) < 1e-6
    assert relative_error(covariance(x, x.flip(0), diag=True), k.flip(1).diagonal()) < 1e-6
    assert relative_error(covariance(x)[3:9, 5:].to_dense(), k[3:9, 5:]) < 1e-6
    batch = torch.stack((x, 2 * x))
    assert relative_error(covariance(batch).to_dense()[1], kernel(2 * x)) < 1e-6


def test_its_operators_are_low_rank():
    """Also scaled; the matrix where that is the smaller of both."""
    covariance = gpytorch.kernels.ScaleKernel(GPyTorchKernel(made()).double()).double()
    many, few = inputs(100, 3, torch.float64), inputs(5, 3, torch.float64)
    assert type(covariance(many).evaluate_kernel()) is LowRankRootLinearOperator
    assert type(covariance(few).evaluate_kernel()) is RootLinearOperator
    crossed = covariance(few, many).evaluate_kernel().base_linear_op
    assert type(crossed) is MatmulLinearOperator and crossed.left_linear_op.shape == (5, 48)


@pytest.mark.parametrize("number", [20, 200], ids=["by the matrix", "by Woodbury"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_predictions_are_those_of_the_textbook(number, scale):
    """Mean and variance, and the marginal likelihood."""
    kernel, (x, y), new = made(), data(number), inputs(9, 3, torch.float64, seed=7)
    process = Process(x, y, kernel, noise=0.2, scale=scale)
    noisy, cross = scale * kernel(x) + 0.2 * torch.eye(number), scale * kernel(new, x)
    expected = torch.distributions.MultivariateNormal(torch.zeros(number).double(), noisy).log_prob(y) / number
    assert process.evidence()[0].item() == pytest.approx(float(expected), rel=1e-8)
    with torch.no_grad():
        found = process.eval()(new)
    assert relative_error(found.mean, cross @ torch.linalg.solve(noisy, y)) < 1e-5
    variance = scale * kernel(new) - cross @ torch.linalg.solve(noisy, cross.T)
    assert relative_error(found.covariance_matrix, variance) < 1e-5


def test_the_mean_is_ridge_regression():
    """With the noise as its ridge."""
    kernel, (x, y), new = made(), data(150), inputs(9, 3, torch.float64, seed=7)
    ridge = KernelRidge(kernel.model, samples=24, alpha=0.2).fit(x.numpy(), y.numpy())
    with torch.no_grad():
        mean = Process(x, y - y.mean(), kernel, noise=0.2).eval()(new).mean
    assert relative_error(mean + y.mean(), torch.as_tensor(ridge.predict(new.numpy()))) < 1e-5


def test_training_raises_the_evidence_without_the_matrix():
    """Noise, scale and mean are trained, the network is not; its features are evaluated once; nothing is [N, N]."""
    kernel, (x, y) = made(), data(300)
    process, largest = Process(x, y, kernel, scale=1 / float(kernel.diagonal(x).mean())), []
    before = [parameter.clone() for parameter in kernel.model.parameters()]
    optimizer = torch.optim.Adam(process.parameters(), lr=0.1)
    watch = nntk.models.observe.Observe(lambda function, arguments, options, out: largest.append(_numbers(out)))
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
    assert max(largest) < 300 * 300


def _numbers(made):
    return made.numel() if isinstance(made, torch.Tensor) else 0


def test_predictions_evaluate_each_input_once():
    """Those of training are kept, whatever the mode that they were made in."""
    kernel, (x, y) = made(), data(100)
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
        lambda kernel, x: setattr(kernel, "gamma", 0.3),
        lambda kernel, x: setattr(kernel, "seed", 5),
        lambda kernel, x: x.mul_(1.1),
    ],
    ids=["parameters", "what moves", "buffers", "settings", "seed", "inputs"],
)
def test_features_are_never_stale(change):
    """Whatever they depend on may change in place."""

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
    """A network of images takes vectors that it unflattens; active_dims leave entries out."""
    images = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    kernel, x = NonlocalNTK(images, samples=16), inputs(6, 16)
    assert relative_error(GPyTorchKernel(kernel)(x).to_dense(), kernel(x)) < 1e-6
    some = NonlocalNTK(mlp(2, 8, 1), samples=16)
    assert relative_error(GPyTorchKernel(some, active_dims=[3, 5])(x).to_dense(), some(x[:, [3, 5]])) < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, x: GPyTorchKernel(k.model), TypeError, "kernel must be a NonlocalNTK, got Sequential"),
        (lambda k, x: GPyTorchKernel(made(estimator="unbiased")), ValueError, "unbiased kernels are indefinite"),
        (lambda k, x: GPyTorchKernel(made(outputs="full")), ValueError, "outputs must be 'trace' or 'mean'"),
        (lambda k, x: GPyTorchKernel(k).forward(x, x, last_dim_is_batch=True), ValueError, "last_dim_is_batch must be"),
        (lambda k, x: GPyTorchKernel(k)(x.requires_grad_()).to_dense(), ValueError, "x1 must not require a gradient"),
        (lambda k, x: GPyTorchKernel(k)(x.float()).to_dense(), TypeError, "x must be torch.float64"),
        (lambda k, x: GPyTorchKernel(k)(x[:, :2]).to_dense(), ValueError, r"x must have shape \[N, 3\]"),
    ],
)
def test_what_cannot_be_is_an_error(call, error, message):
    """It names the argument."""
    with pytest.raises(error, match=message):
        call(made(), inputs(4, 3, torch.float64))


def test_without_gpytorch_the_message_says_what_to_install():
    """And the rest of the package works."""
    with patch.dict(sys.modules, {"gpytorch.kernels": None}):
        sys.modules.pop("nntk.learning.gaussian_process")
        with pytest.raises(ImportError, match=r"nntk.GPyTorchKernel needs gpytorch: pip install 'nntk\[gp\]'"):
            _ = nntk.GPyTorchKernel
