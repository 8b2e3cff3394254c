"""Error bars of kernels: they hold the kernel of many displacements as often as they say, and end when they should."""

import pytest
import torch
from conftest import inputs, mlp
from scipy import stats

from nntk import Attention, FixedKernel, NonlocalNTK
from nntk.estimate import t_quantile


def kernel(activation, seed, samples=256, **settings):
    """That of a small network."""
    return NonlocalNTK(mlp(3, 8, 1, activation=activation), gamma=0.3, samples=samples, seed=seed, **settings)


@pytest.mark.parametrize("rtol", [1e6, 0.1], ids=["sixteen groups", "by tolerance"])
@pytest.mark.parametrize("activation", ["tanh", "sign"])
def test_intervals_cover(activation, rtol):
    """95 % intervals, averaged over entries, hold the kernel of 2^18 displacements in 92 to 98 % of 200 runs."""
    x, inside = inputs(3, 3), 0.0
    truth = sum(kernel(activation, 10**6 + part, 2**16)(x).double() for part in range(4)) / 4
    for seed in range(200):
        low, high = kernel(activation, seed).estimate(x, rtol=rtol).interval()
        inside += float(((low <= truth) & (truth <= high)).double().mean()) / 200
    assert 0.92 <= inside <= 0.98


def test_an_estimate_is_the_kernel_of_its_samples():
    """The first displacements of the stream, whatever the groups, exactly symmetric; and between other inputs too."""
    x, other = inputs(4, 3), inputs(2, 3, seed=9)
    found = kernel("tanh", 5, 160).estimate(x, rtol=1e6)
    assert (found.samples, found.groups, found.evaluations) == (160, 16, 320) and found.converged
    torch.testing.assert_close(found.kernel, kernel("tanh", 5, 160)(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.kernel, found.kernel.T) and torch.equal(found.standard_error, found.standard_error.T)
    cross = kernel("tanh", 5, 160).estimate(x, other, rtol=1e6)
    torch.testing.assert_close(cross.kernel, kernel("tanh", 5, 160)(x, other), rtol=1e-5, atol=1e-6)


def test_the_standard_error_is_that_of_group_means():
    """By hand, from the kernels of sixteen groups: the differences of all displacements, ten at a time."""
    x = inputs(4, 3)
    made = kernel("tanh", 5, 160)
    d, norms = made.differences(x)[..., 0].double(), made.squared_norms()
    groups = (d[:, :, None] * d[:, None, :] * (made.num_params / norms)[:, None, None]).unflatten(0, (16, 10)).mean(1)
    expected = groups.std(0) / 4
    found = made.estimate(x, rtol=1e6)
    torch.testing.assert_close(found.standard_error.double(), expected, rtol=1e-4, atol=1e-8)
    assert found.relative_error == pytest.approx(float(expected.norm() / groups.mean(0).norm()), rel=1e-4)


def test_the_tolerance_or_the_limit_ends_it():
    """The error falls as the root of the samples; a trace tells, progress is shown, and a limit is no error."""
    x, seen = inputs(4, 3), []
    rough, fine = (kernel("tanh", 5, 64).estimate(x, rtol=rtol, progress=seen.append) for rtol in (0.1, 0.05))
    assert rough.converged and fine.converged and fine.relative_error <= 0.05 < rough.relative_error <= 0.1
    assert 2 < fine.samples / rough.samples < 8
    assert fine.trace == tuple((one.samples, one.relative_error) for one in seen[-len(fine.trace) :])
    limited = kernel("tanh", 5, 64).estimate(x, rtol=1e-6, max_samples=200)
    assert not limited.converged and limited.samples == 200


@pytest.mark.parametrize("freedom", [15, 30, 200])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.995])
def test_quantiles_of_t(probability, freedom):
    """Against SciPy's."""
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=2e-5)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"estimator": "plugin"}, {}, "estimate needs estimator='energy'"),
        ({"weights": Attention()}, {}, "weights=FixedKernel"),
        ({"weights": FixedKernel("gaussian", proposal=FixedKernel("cauchy"))}, {}, "without a proposal"),
        ({}, {"rtol": 0.0}, "rtol must be between"),
        ({}, {"max_samples": 15}, "max_samples must be at least 256"),
    ],
)
def test_what_has_no_estimate_is_an_error(settings, arguments, message):
    """Before any work."""
    with pytest.raises(ValueError, match=message):
        kernel("tanh", 0, **settings).estimate(inputs(2, 3), **arguments)


def test_levels_are_probabilities():
    """And the higher one is wider."""
    found = kernel("tanh", 0).estimate(inputs(2, 3), rtol=1e6)
    narrow, wide = found.interval(0.5), found.interval(0.99)
    assert bool((wide[0] < narrow[0]).all()) and bool((narrow[1] < wide[1]).all())
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        found.interval(95)
