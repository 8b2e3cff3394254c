"""Error bars of kernels: they hold the kernel of many displacements as often as they say, and end when they should."""

import functools
import itertools

import pytest
import torch
from conftest import covering, inputs, mlp, relative_error

from nntk import Attention, EffectiveSampleWarning, FixedKernel, NonlocalNTK
from nntk.estimators.errors.gram_products import gram_products
from nntk.kernels.assemble import ESTIMATORS, displacement_gram

GAUSSIAN = FixedKernel("gaussian")
PROPOSED = FixedKernel("gaussian", proposal=FixedKernel("gaussian", gamma=0.33))
OUT_OF_REACH = FixedKernel("ball", horizon=1e-9, proposal=GAUSSIAN)


def by_number(x, rows):
    """A score of one's own, which must be asked for the right displacements."""
    return torch.tensor([float(m % 7) for m in rows], dtype=x.dtype)[:, None] * x.sum(1) / 5


WEIGHTS = {
    "drawn": GAUSSIAN,
    "proposal": PROPOSED,
    "outputs": Attention(),
    "attended proposal": Attention(kernel=PROPOSED),
    "parameters": Attention(on="parameters", temperature=0.3, kernel=PROPOSED),
    "own": Attention(score=by_number),
}
# Each estimator with every kind of weights, and each of both with every mode of outputs.
MODES = {"trace": "paper", "mean": "gradient", "diagonal": "gradient", "full": "paper"}
estimates = pytest.mark.parametrize(
    ("estimator", "name", "outputs"),
    covering(list(itertools.product(ESTIMATORS, WEIGHTS, MODES)), (0, 1), (0, 2), (1, 2)),
)
jackknifed = pytest.mark.parametrize(
    ("estimator", "name", "outputs"),
    covering(
        [case for case in itertools.product(ESTIMATORS, WEIGHTS, ("trace", "full")) if case[:2] != ("energy", "drawn")],
        (0, 1), (0, 2), (1, 2),
    ),
)  # fmt: skip
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def alpha(made, x):
    """The weights [M, 1], or [M, N] where they depend on the input, float64."""
    given = made.displacement_weights(x if getattr(made.weights, "by_input", False) else None).double()
    return given if given.dim() == 2 else given[:, None]


def kernel(activation, seed, samples=256, **settings):
    """Return the kernel of a small network."""
    return NonlocalNTK(mlp(3, 8, 1, activation=activation), gamma=0.3, samples=samples, seed=seed, **settings)


@functools.cache
def mean_kernel(activation, samples, **settings):
    """The kernel of four times as many displacements, of seeds of their own."""
    x = inputs(3, 3)
    return sum(kernel(activation, 10**6 + part, samples, **settings)(x).double() for part in range(4)) / 4


@pytest.mark.parametrize(("activation", "rtol"), [("sign", 1e6), ("tanh", 0.1)], ids=["sixteen groups", "by tolerance"])
def test_intervals_cover(activation, rtol):
    """95 % intervals, averaged over entries, hold the kernel of 2^18 displacements in 92 to 98 % of 200 runs."""
    x, inside = inputs(3, 3), 0.0
    truth = mean_kernel(activation, 2**16)
    for seed in range(200):
        low, high = kernel(activation, seed).estimate(x, rtol=rtol).interval()
        inside += float(((low <= truth) & (truth <= high)).double().mean()) / 200
    assert 0.92 <= inside <= 0.98


def test_an_estimate_is_the_kernel_of_its_samples():
    """The first displacements of the stream, whatever the groups, exactly symmetric; and between other inputs too."""
    x, other = inputs(4, 3), inputs(2, 3, seed=9)
    result = kernel("tanh", 5, 160).estimate(x, rtol=1e6)
    assert (result.samples, result.groups, result.evaluations) == (160, 16, 320) and result.converged
    torch.testing.assert_close(result.kernel, kernel("tanh", 5, 160)(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(result.kernel, result.kernel.T) and torch.equal(result.standard_error, result.standard_error.T)
    cross = kernel("tanh", 5, 160).estimate(x, other, rtol=1e6)
    torch.testing.assert_close(cross.kernel, kernel("tanh", 5, 160)(x, other), rtol=1e-5, atol=1e-6)


def test_the_standard_error_is_that_of_group_means():
    """By hand, from the kernels of sixteen groups: the differences of all displacements, ten at a time."""
    x = inputs(4, 3)
    result = kernel("tanh", 5, 160)
    d, norms = result.differences(x)[..., 0].double(), result.squared_norms()
    groups = (d[:, :, None] * d[:, None, :] * (result.num_params / norms)[:, None, None]).unflatten(0, (16, 10)).mean(1)
    expected = groups.std(0) / 4
    found_value = result.estimate(x, rtol=1e6)
    torch.testing.assert_close(found_value.standard_error.double(), expected, rtol=1e-4, atol=1e-8)
    assert found_value.relative_error == pytest.approx(float(expected.norm() / groups.mean(0).norm()), rel=1e-4)


def test_the_tolerance_or_the_limit_ends_it():
    """The error falls as the root of the samples; a trace tells, progress is shown, and a limit is no error."""
    x, seen = inputs(4, 3), []
    rough, fine = (kernel("tanh", 5, 64).estimate(x, rtol=rtol, progress=seen.append) for rtol in (0.1, 0.05))
    assert rough.converged and fine.converged and fine.relative_error <= 0.05 < rough.relative_error <= 0.1
    assert 2 < fine.samples / rough.samples < 8
    assert fine.trace == tuple((one.samples, one.relative_error) for one in seen[-len(fine.trace) :])
    limited = kernel("tanh", 5, 64).estimate(x, rtol=1e-6, max_samples=200)
    assert not limited.converged and limited.samples == 200


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"rtol": 0.0}, "rtol must be between"),
        ({}, {"max_samples": 15}, "max_samples must be at least 256"),
        ({"weights": OUT_OF_REACH}, {}, "0 of 256 displacements remain within the horizon"),
        ({"weights": Attention(kernel=OUT_OF_REACH)}, {}, "0 of 256 displacements remain within the horizon"),
        ({"weights": OUT_OF_REACH, "estimator": "plugin"}, {}, "0 of 256 displacements remain within the horizon"),
        (
            {"weights": Attention(temperature=1e-6), "estimator": "unbiased"},
            {},
            "effective sample size .* of 1, .*temperature",
        ),
    ],
)
def test_what_has_no_estimate_is_an_error(settings, arguments, message):
    """Limits before any work; weights when sixteen groups have none, or for a pair too few."""
    with pytest.raises(ValueError, match=message):
        kernel("tanh", 0, **settings).estimate(inputs(2, 3), **arguments)


@estimates
def test_every_estimate_is_the_kernel_of_its_samples(estimator, name, outputs):
    """It has 16 to 31 groups, some joined, is exactly symmetric, and has the effective samples of the weights."""
    x, other, weights = inputs(4, 3), inputs(2, 3, seed=9), WEIGHTS[name]
    result, whole = (
        NonlocalNTK(
            mlp(3, 8, 2), gamma=0.3, samples=samples, estimator=estimator, weights=weights, outputs=outputs,
            normalization=MODES[outputs],
        )
        for samples in (32, 68)
    )  # fmt: skip
    found_value, cross = (result.estimate(*pair, rtol=1e-6, max_samples=68) for pair in ((x,), (x, other)))
    assert found_value.samples == cross.samples == 68 and not found_value.converged
    assert found_value.groups == (34 if estimator == "energy" and weights is GAUSSIAN else 17)
    assert relative_error(found_value.kernel, whole(x)) < 1e-6 and relative_error(cross.kernel, whole(x, other)) < 1e-6
    swapped = (1, 0, 3, 2) if outputs == "full" else (1, 0, 2)[: found_value.kernel.dim()]
    for matrix in (found_value.kernel, found_value.standard_error):
        assert torch.equal(matrix, matrix.permute(swapped)) and matrix.dtype == torch.float32
    assert found_value.effective_samples == pytest.approx(float((1 / alpha(whole, x).square().sum(0)).min()), rel=1e-5)


@jackknifed
def test_the_jackknife_by_hand(estimator, name, outputs):
    """Sixteen groups of three left out in turn, by the definitions of the kernels, between two sets of inputs."""
    x = inputs(5, 3, torch.float64)
    result = NonlocalNTK(
        mlp(3, 4, 2, dtype=torch.float64), gamma=0.3, samples=48, estimator=estimator, weights=WEIGHTS[name],
        outputs=outputs,
    )  # fmt: skip
    deltas = torch.stack([torch.cat([e.flatten() for e in result.displacements(m).values()]) for m in range(48)])
    rows = (result.differences(x), deltas, alpha(result, x).expand(48, 5), result.num_params, estimator, outputs)
    without = torch.stack([_by_definition(torch.arange(48) // 3 != group, *rows) for group in range(16)])
    error = (15 / 16 * (without - without.mean(0)).square().sum(0)).sqrt()
    found_value, cross = result.estimate(x, rtol=1e6), result.estimate(x[:2], x[2:], rtol=1e6)
    torch.testing.assert_close(found_value.kernel, _by_definition(torch.full((48,), True), *rows))
    torch.testing.assert_close(found_value.standard_error, error, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(cross.standard_error, error[:2, 2:], rtol=1e-6, atol=1e-9)
    assert found_value.relative_error == pytest.approx(float(error.norm() / found_value.kernel.norm()), rel=1e-6)


def _by_definition(kept, d, deltas, weights, num_params, estimator, outputs):
    """The kernel of the displacements that are kept."""
    d, deltas, weights = d[kept], deltas[kept], weights[kept] / weights[kept].sum(0)
    directions = deltas / deltas.square().sum(1, keepdim=True)
    if estimator == "energy":
        features = d * weights.sqrt()[..., None] / deltas.norm(dim=1)[:, None, None] * num_params**0.5
        full = torch.einsum("mic,mjk->ijck", features, features)
    else:
        terms = num_params * torch.einsum("mn,mnc,mp->mncp", weights, d, directions)
        full = torch.einsum("icp,jkp->ijck", terms.sum(0), terms.sum(0))
    if estimator == "unbiased":
        full = full - torch.einsum("micp,mjkp->ijck", terms, terms)
        full = full / (1 - torch.einsum("mi,mj->ij", weights, weights))[..., None, None]
    return full if outputs == "full" else torch.einsum("ijcc->ij", full)


@pytest.mark.parametrize(
    "settings",
    [{"estimator": "unbiased"}, {"weights": PROPOSED}, {"weights": Attention(score="distance", temperature=0.1)}],
    ids=["unbiased", "proposal", "attention"],
)
def test_intervals_by_the_jackknife_cover(settings):
    """95 % intervals hold the kernel of 2^17 displacements in 92 to 98 % of 200 runs."""
    x = inputs(3, 3)
    truth = sum(kernel("tanh", 10**6 + part, 2**15, **settings)(x).double() for part in range(4)) / 4
    assert 0.92 <= _covered(truth, x, **settings) <= 0.98


def test_intervals_of_plugin_cover_the_mean_of_plugin_kernels():
    """Their mean follows from the unbiased and the energy form: M of the M^2 pairs are of one displacement each."""
    x, samples = inputs(3, 3), 256
    pairs, alone = (kernel("tanh", 10**6, 2**16, estimator=one)(x).double() for one in ("unbiased", "energy"))
    biased = (1 - 1 / samples) * pairs + kernel("tanh", 0).num_params / samples * alone
    assert 0.92 <= _covered(biased, x, estimator="plugin") <= 0.98


def _covered(truth, x, **settings):
    """Return how often intervals of 256 displacements hold the truth, over 200 runs and all entries."""
    bounds = (kernel("tanh", seed, **settings).estimate(x, rtol=1e6).interval() for seed in range(200))
    return sum(float(((low <= truth) & (truth <= high)).double().mean()) for low, high in bounds) / 200


@every_estimator
@pytest.mark.parametrize("name", ["proposal", "outputs"])
def test_joining_groups_does_not_matter(estimator, name):
    """Sixteen groups of one that were joined twice, and sixteen of four."""
    x = inputs(4, 3, torch.float64)
    joined, drawn = (
        NonlocalNTK(
            mlp(3, 8, 1, dtype=torch.float64), gamma=0.3, samples=samples, estimator=estimator, weights=WEIGHTS[name]
        ).estimate(x, rtol=1e-6, max_samples=64)
        for samples in (16, 64)
    )
    assert (joined.samples, joined.groups) == (drawn.samples, drawn.groups) == (64, 16)
    torch.testing.assert_close(joined.kernel, drawn.kernel)
    torch.testing.assert_close(joined.standard_error, drawn.standard_error)
    assert len(joined.trace) > len(drawn.trace) == 1


def test_a_tolerance_ends_the_jackknife_too():
    """The error falls as the root of the samples, and the trace tells."""
    x = inputs(4, 3)
    for settings in ({"weights": Attention()}, {"estimator": "unbiased"}):
        rough, fine = (kernel("tanh", 5, 64, **settings).estimate(x, rtol=rtol) for rtol in (0.2, 0.1))
        assert fine.converged and fine.relative_error <= 0.1 < rough.relative_error <= 0.2
        assert 2 < fine.samples / rough.samples < 8 and fine.trace[-1] == (fine.samples, fine.relative_error)
        assert 16 <= fine.groups < 32


@every_estimator
def test_groups_may_have_no_weight(estimator):
    """Groups of one, many of them beyond the horizon: the others make the kernel, and the warning is about all."""
    weights = FixedKernel("ball", horizon=1.25, proposal=FixedKernel("gaussian", gamma=0.3))
    result = kernel("tanh", 3, 16, weights=weights, estimator=estimator)
    assert 3 <= int((result.squared_norms() <= 1.25**2).sum()) <= 8
    found_value = result.estimate(inputs(4, 3), rtol=1e6)
    assert (
        relative_error(found_value.kernel, result(inputs(4, 3))) < 1e-6
        and torch.isfinite(found_value.standard_error).all()
    )


def test_one_displacement_with_all_the_weight_is_all_the_error():
    """The information of the other displacements is lost to rounding, and a warning says so."""
    with pytest.warns(EffectiveSampleWarning, match=r"the weights leave 1 effective of 64 displacements.*temperature"):
        result = kernel("tanh", 0, 64, weights=Attention(temperature=1e-6)).estimate(inputs(1, 3), rtol=1e6)
    assert result.effective_samples == pytest.approx(1) and result.relative_error == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("samples", [6, 600], ids=["matrix", "gradients"])
def test_products_with_the_gram_matrix(samples, monkeypatch):
    """By the matrix or by the gradients of two inputs at a time, of all displacements and of groups of three."""
    parameters, rows = {0: torch.zeros(3, 4), 2: torch.zeros(5)}, torch.arange(4, 4 + samples)
    numbers, matrix = inputs(samples, 10, torch.float64).view(samples, 5, 2), displacement_gram(parameters, rows, 7)
    if samples == 600:
        monkeypatch.delattr("nntk.estimators.errors.gram_products.displacement_gram")
    by_all, by_own = gram_products(numbers, rows, 3, parameters, 7, "gaussian", 800)
    torch.testing.assert_close(by_all, torch.tensordot(matrix, numbers, dims=1), rtol=1e-6, atol=1e-5)
    group = torch.arange(samples) // 3
    blocks = matrix * (group[:, None] == group)
    torch.testing.assert_close(by_own, torch.tensordot(blocks, numbers, dims=1), rtol=1e-6, atol=1e-5)


def test_levels_are_probabilities():
    """And the higher one is wider."""
    result = kernel("tanh", 0).estimate(inputs(2, 3), rtol=1e6)
    narrow, wide = result.interval(0.5), result.interval(0.99)
    assert bool((wide[0] < narrow[0]).all()) and bool((narrow[1] < wide[1]).all())
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        result.interval(95)
