"""Fixed kernels: lengths follow their laws, weights are the ratio of two densities, and mistakes are named."""

import functools
import math
import warnings

import mpmath
import numpy as np
import philox_oracle as oracle
import pytest
import torch
from scipy import special, stats

from nntk.kernels.fixed_weights import (
    EffectiveSampleWarning,
    FixedKernel,
    effective_samples,
    log_weights,
    merge,
    normalise,
    radial_weights,
    radii,
    reference,
    squared_norms,
    summarise,
    warn_if_few,
    weigh,
)
from nntk.kernels.fixed_weights.quantiles import gamma_quantile

KERNELS = {
    "gaussian": FixedKernel("gaussian"),
    "exponential": FixedKernel("exponential"),
    "cauchy": FixedKernel("cauchy"),
    "ball": FixedKernel("ball"),
    "power": FixedKernel("power", order=1.5),
}
LAWS = tuple(KERNELS)
DIMENSIONS = (1, 3, 1000, 10**6, 10**9)
SEED = 2**63 + 11
PROBABILITIES = [2.0**-53, 1e-15, 1e-9, 1e-4, 0.05, 0.3, 0.5, 0.51, 0.8, 0.99, 1 - 1e-4, 1 - 1e-9, 1 - 1e-15]


@functools.cache
def drawn(name, count, d, gamma=1.0):
    """Lengths of the rows 0, 1, ..."""
    return radii(torch.arange(count), SEED, KERNELS[name], d, gamma)


def distribution(name, d, r):
    """The probability of a length below r for gamma = 1, by SciPy's distributions."""
    typical = math.sqrt(d / 2)
    return {
        "gaussian": lambda: stats.gamma(d / 2).cdf(r**2),
        "exponential": lambda: stats.gamma(d).cdf(r * math.sqrt(d)),
        "cauchy": lambda: stats.f(d, 1).cdf(r**2 / d),
        "ball": lambda: np.exp(d * np.log(r / typical)),
        "power": lambda: stats.pareto(KERNELS["power"].order).cdf(r / typical),
    }[name]()


def weighted(name, proposal):
    """A kernel to be drawn from another."""
    settings = {"order": 1.5} if name == "power" else {}
    return FixedKernel(name, proposal=KERNELS[proposal], **settings)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", LAWS)
def test_lengths_follow_their_law(name, d):
    """Kolmogorov-Smirnov of 20000 draws at a confidence of 99.9 %."""
    below = distribution(name, d, drawn(name, 20000, d).numpy())
    assert stats.kstest(below, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", [name for name in LAWS if name != "cauchy"])
def test_lengths_invert_the_distribution(name, d):
    """The distribution at the length of u is u, of a power 1 - u, to what the rounding of a length leaves."""
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    below = distribution(name, d, KERNELS[name].radius(u, u, d, 1.0).numpy())
    # At shapes between 20 and 500 torch's incomplete gamma function is good to nine digits only.
    expected = 1 - u if name == "power" else u
    np.testing.assert_allclose(below, expected.numpy(), rtol=1e-9, atol=1e-15 * (1 + d))


def test_words_of_a_row():
    """Fifty-two bits of two words make one uniform number, the other two words another; only seed and row count."""
    rows = torch.tensor([5, 0, 2**32 - 1])
    first, second = reference.uniforms(rows, (SEED % 2**32, SEED >> 32))
    for i, m in enumerate(rows.tolist()):
        w = [int(word) for word in oracle.block_words(0, 0, m, SEED, purpose=6)]
        assert float(first[i]) == ((w[0] * 2**20 + (w[1] >> 12)) + 0.5) / 2**52
        assert float(second[i]) == ((w[2] * 2**20 + (w[3] >> 12)) + 0.5) / 2**52
    alone = [radii(rows[i : i + 1], SEED, KERNELS["cauchy"], 7, 1.0) for i in range(3)]
    assert torch.equal(torch.cat(alone), radii(rows, SEED, KERNELS["cauchy"], 7, 1.0))


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 5.0, 20.0, 20.5, 100.0, 499.5, 500.0, 1e3, 1e4, 1e5])
def test_gamma_quantiles_against_scipy(shape):
    """To 1e-13 where torch's incomplete gamma function is exact, to 3e-10 elsewhere, to 1e-12 from 1000 on."""
    u = np.array(PROBABILITIES)
    expected = np.where(u < 0.5, special.gammaincinv(shape, u), special.gammainccinv(shape, 1 - u))
    allowed = 1e-13 if shape <= 20 else 3e-10 if shape < 1000 else 1e-12
    np.testing.assert_allclose(gamma_quantile(shape, torch.from_numpy(u)).numpy(), expected, rtol=allowed)


def tail_probability(shape, x, lower):
    """P(a, x) or Q(a, x) by quadrature in 30 digits: the density within twelve standard deviations of x."""
    a, x = mpmath.mpf(shape), mpmath.mpf(x)
    at_x = mpmath.exp((a - 1) * mpmath.log(x) - x - mpmath.loggamma(a))
    ends = [x + (-1 if lower else 1) * k * mpmath.sqrt(a) for k in (0, 1, 2, 4, 6, 9, 12)]
    area = mpmath.quad(lambda y: mpmath.exp((a - 1) * mpmath.log(y / x) - (y - x)), ends)
    return abs(area) * at_x, at_x


@pytest.mark.parametrize("shape", [1e6, 5e8, 1e9])
def test_gamma_quantiles_of_large_shape(shape):
    """To 1e-14 by quadrature: SciPy's inverse has five digits there."""
    with mpmath.workdps(30):
        for u in (2.0**-53, 1e-4, 0.5, 0.8, 1 - 1e-15):
            x = float(gamma_quantile(shape, torch.tensor(u, dtype=torch.float64)))
            reached, density = tail_probability(shape, x, u < 0.5)
            wanted = mpmath.mpf(u) if u < 0.5 else 1 - mpmath.mpf(u)
            assert abs((reached - wanted) / density / x) < 1e-14


def test_quantiles_rise():
    """From 2^-53 to 1 - 2^-53 and over the middle, where the two tails meet."""
    u = torch.tensor([2.0**-53, *np.linspace(0.499, 0.501, 101), 1 - 2.0**-53], dtype=torch.float64)
    for shape in (0.5, 30.0, 499.5, 500.0, 1e9):
        x = gamma_quantile(shape, u)
        assert x.isfinite().all() and (x.diff() > 0).all()


@pytest.mark.parametrize("gamma", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("name", LAWS)
def test_lengths_scale_with_gamma(name, gamma):
    """At extreme scales too, and so do the weights not change."""
    d, unit = 50, drawn(name, 100, 50)
    lengths = drawn(name, 100, d, gamma)
    torch.testing.assert_close(lengths, gamma * unit, rtol=1e-14, atol=0)
    for target in LAWS:
        kernel = FixedKernel(target, proposal=KERNELS[name], **({"order": 2.0} if target == "power" else {}))
        torch.testing.assert_close(
            log_weights(kernel, lengths.square(), d, gamma), log_weights(kernel, unit.square(), d, 1.0),
            rtol=1e-12, atol=1e-12 * d,
        )  # fmt: skip


def density(name, d, r):
    """The log density for gamma = 1, straight from its definition, in extended precision."""
    typical = np.sqrt(np.longdouble(d) / 2)
    with np.errstate(divide="ignore"):
        return {
            "gaussian": lambda: -(r**2),
            "exponential": lambda: -np.sqrt(np.longdouble(d)) * r,
            "cauchy": lambda: -(np.longdouble(d) + 1) / 2 * np.log1p(r**2),
            "ball": lambda: np.log((r <= typical * (1 + 1e-6)).astype(np.longdouble)),
            "power": lambda: np.where(
                r >= typical * (1 - 1e-6), -(d + np.longdouble(1.5)) * np.log(r / typical), -np.inf
            ),
        }[name]()


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("proposal", LAWS)
@pytest.mark.parametrize("name", LAWS)
def test_log_weights_are_the_ratio_of_the_densities(name, proposal, d):
    """To a few roundings of d, which is what the rounding of a length alone does to them."""
    lengths = drawn(proposal, 300, d)
    result = log_weights(weighted(name, proposal), lengths.square(), d, 1.0).numpy()
    r = np.sqrt(lengths.square().numpy().astype(np.longdouble))
    expected = density(name, d, r)
    inside = expected > -np.inf
    assert np.array_equal(inside, result > -np.inf)
    own, other = expected[inside], density(proposal, d, r[inside])
    allowed = 4 * np.finfo(float).eps * (d + np.abs(own) + np.abs(other))
    assert (np.abs(result[inside] - (own - other)) <= allowed).all()


@pytest.mark.parametrize("proposal", LAWS)
@pytest.mark.parametrize("name", LAWS)
def test_weights_sum_to_one(name, proposal):
    """At every dimension at which any displacement remains; and both ways to them agree."""
    for d in DIMENSIONS:
        lengths = drawn(proposal, 4096, d)
        raw = log_weights(weighted(name, proposal), lengths.square(), d, 1.0)
        if raw.amax() == -math.inf:
            continue
        weights, effective = normalise(raw)
        assert abs(float(weights.sum()) - 1) < 1e-12 and (weights >= 0).all()
        assert 1 - 1e-12 <= effective <= 4096 * (1 + 1e-12)
        assert effective == pytest.approx(float(1 / weights.square().sum()), rel=1e-12)
        again, statistics = radial_weights(weighted(name, proposal), lengths.square(), d, 1.0)
        assert torch.equal(again, weights) and float(effective_samples(statistics)) == effective


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", LAWS)
def test_a_kernel_drawn_from_itself_has_equal_weights(name, d):
    """Exactly 1 / M, with the proposal named and without; even where lengths were rounded to float32."""
    lengths = drawn(name, 3000, d)
    for kernel in (KERNELS[name], weighted(name, name)):
        for squared in (lengths.square(), lengths.float().double().square()):
            weights, statistics = radial_weights(kernel, squared, d, 1.0)
            assert (weights == 1 / 3000).all() and float(effective_samples(statistics)) == 3000
            assert (log_weights(kernel, squared, d, 1.0) == 0).all()


@pytest.mark.parametrize(
    ("name", "proposal"), [("gaussian", "cauchy"), ("exponential", "gaussian"), ("ball", "cauchy")]
)
def test_weighted_moments_are_those_of_the_kernel(name, proposal):
    """The mean length by weights is that of the kernel's own draws, within five standard errors, at d = 3."""
    own, other = drawn(name, 20000, 3), drawn(proposal, 20000, 3)
    weights, _ = radial_weights(weighted(name, proposal), other.square(), 3, 1.0)
    mean = float((weights * other).sum())
    error = math.sqrt(float((weights * (other - mean)).square().sum() + own.var() / len(own)))
    assert abs(mean - float(own.mean())) < 5 * error


def test_weights_collapse_with_dimension():
    """A proposal ten per cent too wide leaves as many samples as the integral of the squared ratio says."""
    kernel = FixedKernel("gaussian", gamma=1.0, proposal=FixedKernel("gaussian", gamma=1.1))
    for d, tolerance in ((10, 0.05), (100, 0.2)):
        lengths = radii(torch.arange(20000), SEED, kernel, d)
        _, statistics = radial_weights(kernel, lengths.square(), d)
        # The mean of w^2 over the square of that of w: (1.21^2 / 1.42)^(d / 2).
        expected = 20000 / (1.21**2 / 1.42) ** (d / 2)
        assert float(effective_samples(statistics)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("inputs", [(), (3,)])
def test_statistics_of_parts_merge_to_those_of_the_whole(inputs):
    """Cut anywhere, in any order; empty parts and parts without weight change nothing."""
    log = 300 * torch.randn(100, *inputs, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    log[40:60] = -math.inf
    whole = summarise(log)
    for cuts in ((0, 1), (40, 60), (1, 99), (50, 50)):
        parts = [summarise(part) for part in torch.tensor_split(log, cuts)]
        for order in ((0, 1, 2), (2, 0, 1)):
            merged = merge(merge(parts[order[0]], parts[order[1]]), parts[order[2]])
            torch.testing.assert_close(merged, whole, rtol=1e-12, atol=0)
    nothing = summarise(log[45:50])
    assert torch.equal(merge(nothing, nothing), nothing) and not nothing.isnan().any()
    assert (weigh(log[45:50], nothing) == 0).all() and (effective_samples(nothing) == 0).all()
    torch.testing.assert_close(weigh(log, whole), torch.softmax(log, 0), rtol=1e-12, atol=0)


def test_merge_needs_equal_shapes():
    with pytest.raises(ValueError, match=r"\[3\] or \[3, N\]"):
        merge(torch.zeros(3), torch.zeros(3, 2))


def test_large_log_weights_do_not_overflow():
    """Only differences count."""
    weights, effective = normalise(torch.tensor([1e9, 1e9, -1e9, -math.inf], dtype=torch.float64))
    assert weights.tolist() == [0.5, 0.5, 0.0, 0.0] and effective == 2


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("gausian",), {}, "'gaussian', 'exponential', 'cauchy', 'ball', 'power'; got 'gausian'"),
        (("gaussian",), {"horizon": 1.0}, "horizon is no parameter of 'gaussian', which takes gamma"),
        (("cauchy",), {"order": 1.0}, "order is no parameter of 'cauchy'"),
        (("ball",), {"cutoff": 1.0}, "cutoff is no parameter of 'ball', which takes gamma, horizon"),
        (("power",), {}, "order must be given"),
        (("power",), {"order": 0}, "not integrable at infinity"),
        (("power",), {"order": -1.0}, "not integrable at infinity"),
        (("power",), {"order": 1.0, "cutoff": 0.0}, "not integrable at 0"),
        (("ball",), {"horizon": 0.0}, "horizon must be between"),
        (("ball",), {"horizon": -1.0}, "horizon must be between"),
        (("gaussian",), {"gamma": math.nan}, "gamma must be between"),
        (("ball",), {"gamma": 1.0, "horizon": 1.0}, "gamma and horizon both set the size"),
        (
            ("gaussian",),
            {"proposal": FixedKernel("ball", proposal=FixedKernel())},
            "proposal must have no proposal of its own",
        ),
    ],
)
def test_a_wrong_kernel_is_refused(arguments, settings, message):
    """As soon as it is written down."""
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        FixedKernel(*arguments, **settings)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="proposal must be a FixedKernel"):
        FixedKernel("gaussian", proposal="cauchy")
    with pytest.raises(TypeError, match="gamma must be a number"):
        FixedKernel("gaussian", gamma="wide")


LENGTHS = torch.ones(3, dtype=torch.float64)
WEIGHTED = FixedKernel("gaussian", proposal=FixedKernel("cauchy"))
SIZED = {
    "scale": lambda num_params, gamma: FixedKernel().scale(num_params, gamma),
    "radius": lambda num_params, gamma: FixedKernel().radius(LENGTHS / 2, LENGTHS / 2, num_params, gamma),
    "log_density": lambda num_params, gamma: FixedKernel().log_density(LENGTHS, num_params, gamma),
    "radii": lambda num_params, gamma: radii(torch.arange(3), 0, FixedKernel(), num_params, gamma),
    "log_weights": lambda num_params, gamma: log_weights(WEIGHTED, LENGTHS, num_params, gamma),
    "radial_weights": lambda num_params, gamma: radial_weights(WEIGHTED, LENGTHS, num_params, gamma),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(
    ("num_params", "gamma", "error", "message"),
    [
        (5, None, ValueError, r"gamma must be given, here or to FixedKernel\('gaussian'.*; got None"),
        (5, -1.0, ValueError, "gamma must be between 1e-30 and 1e[+]30, got -1"),
        (5, "wide", TypeError, "gamma must be a number, got 'wide'"),
        (0, 1.0, ValueError, "num_params must be at least 1, got 0"),
        (2.5, 1.0, TypeError, "num_params must be an integer, got 2.5"),
    ],
)
def test_a_law_has_a_size(name, num_params, gamma, error, message):
    """Whatever is asked of it."""
    with pytest.raises(error, match=message):
        SIZED[name](num_params, gamma)


@pytest.mark.parametrize("call", [log_weights, radial_weights])
def test_wrong_lengths_are_refused(call):
    """By their shape and dtype."""
    with pytest.raises(TypeError, match="squared_lengths must be float64, got torch.float32"):
        call(FixedKernel(), LENGTHS.float(), 5, 1.0)
    with pytest.raises(ValueError, match=r"squared_lengths must be a vector \[M\], got shape \(1, 3\)"):
        call(FixedKernel(), LENGTHS[None], 5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sample_ids": torch.ones(2)}, TypeError, "sample_ids must be an int64 vector .* got torch.float32"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
    ],
)
def test_a_wrong_stream_is_refused(arguments, error, message):
    """By lengths and norms alike."""
    arguments = {"sample_ids": torch.arange(2), "seed": 0, **arguments}
    with pytest.raises(error, match=message):
        radii(**arguments, kernel=FixedKernel(), num_params=5, gamma=1.0)
    with pytest.raises(error, match=message):
        squared_norms({0: torch.ones(5)}, **arguments)


def test_norms_are_of_known_directions():
    """Each family has a law of its own."""
    with pytest.raises(ValueError, match="directions must be one of .* got 'cubic'"):
        squared_norms({0: torch.ones(5)}, torch.arange(2), 0, "cubic")


@pytest.mark.parametrize("settings", [{"name": "ball", "horizon": 0.1}, {"name": "power", "cutoff": 9.0, "order": 1.0}])
def test_nothing_left_is_an_error(settings):
    """It says of how many, and which edge it was."""
    kernel = FixedKernel(**settings, proposal=FixedKernel("gaussian", gamma=1.0))
    lengths = torch.ones(7, dtype=torch.float64)
    edge = {"ball": "within the horizon", "power": "beyond the cutoff"}[kernel.name]
    with pytest.raises(ValueError, match=f"0 of 7 displacements remain {edge}"):
        radial_weights(kernel, lengths, 5)
    with pytest.raises(ValueError, match="0 of 7 displacements remain within the horizon"):
        normalise(log_weights(kernel, lengths, 5))


def test_lengths_that_cannot_be_are_an_error():
    """NaN, and lengths that the proposal does not have."""
    kernel = FixedKernel("gaussian", gamma=1.0, proposal=FixedKernel("ball", horizon=2.0))
    for wrong, message in ((math.nan, "NaN"), (9.0, "where the proposal is zero")):
        with pytest.raises(ValueError, match=message):
            radial_weights(kernel, torch.tensor([1.0, wrong, 1.0], dtype=torch.float64), 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([math.nan, 0.0], "log weights must not be NaN"),
        ([math.inf, 0.0], "log weights must be finite or minus infinity, got plus infinity"),
        ([-math.inf] * 2, "0 of 2 displacements remain"),
        ([[0.0, 0.0]], r"log_weights must be a vector \[M\], got shape \(1, 2\)"),
    ],
)
def test_log_weights_that_cannot_be_are_an_error(wrong, message):
    """A softmax has none of them."""
    with pytest.raises(ValueError, match=message):
        normalise(torch.tensor(wrong, dtype=torch.float64))


def test_few_effective_samples_warn():
    """Below a tenth, with the remedy; not at a tenth."""
    with pytest.warns(EffectiveSampleWarning, match="9.99 effective of 100 displacements.* Turn it off and on"):
        warn_if_few(9.99, 100, "Turn it off and on.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few(10.0, 100, "")


def test_kernels_are_values():
    """Equal by what they are, usable as keys, and written as they are read."""
    kernel = FixedKernel("power", order=2, cutoff=0.5, proposal=FixedKernel("cauchy", gamma=1))
    assert kernel == eval(repr(kernel)) and hash(kernel) == hash(eval(repr(kernel)))
    assert kernel.drawn_from == FixedKernel("cauchy", gamma=1.0) and FixedKernel().drawn_from == FixedKernel()
