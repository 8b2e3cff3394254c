"""Fixed kernels and attention in the NonlocalNTK: laws of kernels under every weight, draws, limits, bad input."""

import math

import pytest
import torch
from conftest import FAMILIES, inputs, mlp, relative_error

from nntk import Attention, EffectiveSampleWarning, FixedKernel, NonlocalNTK
from nntk.kernels.fixed_weights import radii


def centred(x, rows):
    """A score of one's own: large for some inputs and displacements."""
    numbers = torch.tensor([float(m % 7) for m in rows], dtype=x.dtype)
    return torch.outer(numbers, x.sum(1)) / 10


def both_halves(x, rows):
    """The same for each half of the pairs."""
    return torch.stack((centred(x, rows), -centred(x, rows)))


GAUSSIAN = FixedKernel("gaussian")
WEIGHTS = {
    "gaussian": GAUSSIAN,
    "exponential": FixedKernel("exponential"),
    "cauchy": FixedKernel("cauchy"),
    "ball": FixedKernel("ball"),
    "power": FixedKernel("power", order=2.0),
    "proposal": FixedKernel("gaussian", proposal=FixedKernel("gaussian", gamma=0.21)),
    "outputs": Attention(),
    "distance": Attention(score="distance", temperature=0.5),
    "attended proposal": Attention(kernel=FixedKernel("gaussian", proposal=FixedKernel("gaussian", gamma=0.21))),
    "parameters": Attention(on="parameters"),
    "parameter distance": Attention(on="parameters", score="distance", dim=3),
    "own": Attention(score=centred),
    "own pairs": Attention(score=both_halves),
}


@pytest.mark.parametrize("directions", ["gaussian", "rademacher"])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_kernels_are_symmetric_and_semidefinite(weights, directions):
    """Bit for bit; energy and plugin without negative eigenvalues; the entries (x1, x2) are those of all inputs."""
    model, x = mlp(4, 12, 2), inputs(30, 4)
    for estimator in ("energy", "plugin"):
        kernel = NonlocalNTK(
            model, gamma=0.2, samples=64, weights=weights, estimator=estimator, directions=directions, seed=3
        )
        k = kernel(x)
        assert torch.equal(k, k.T) and torch.equal(k, kernel(x))
        eigenvalues = torch.linalg.eigvalsh(k.double())
        assert eigenvalues[0] >= -1e-6 * eigenvalues[-1]
        assert relative_error(kernel(x[:11], x[11:]), k[:11, 11:]) < 1e-5


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_sum_to_one_and_inputs_may_be_permuted(weights):
    """Weights are a law over displacements; permuting the inputs permutes lines and entries."""
    model, x = mlp(4, 12, 2, dtype=torch.float64), inputs(9, 4, torch.float64)
    kernel = NonlocalNTK(model, gamma=0.2, samples=50, weights=weights)
    by_input = isinstance(weights, Attention) and weights.by_input
    alpha = kernel.displacement_weights(x if by_input else None)
    assert alpha.shape == ((50, 9) if by_input else (50,)) and (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum(0), torch.ones_like(alpha.sum(0)), rtol=1e-12, atol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernel(x[order]), kernel(x)[order][:, order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("score", ["dot", "distance", centred, both_halves])
def test_chunks_do_not_matter(score):
    """A budget of 1 MiB cuts the displacements into chunks, whose softmaxes merge."""
    model, x = mlp(4, 12, 3), inputs(300, 4)
    kernel, small = (
        NonlocalNTK(model, gamma=0.2, samples=300, weights=Attention(score=score), max_memory=budget)
        for budget in (2**28, 2**20)
    )
    assert small.plan(x).displacements < 300 / 2
    assert relative_error(small(x), kernel(x)) < 1e-5


def test_an_infinite_temperature_gives_the_fixed_kernel():
    """Attention without attention."""
    model, x = mlp(4, 12, 2, dtype=torch.float64), inputs(9, 4, torch.float64)
    plain = NonlocalNTK(model, gamma=0.2, samples=50)(x)
    for on in ("outputs", "parameters"):
        attention = Attention(on=on, temperature=1e14)
        torch.testing.assert_close(NonlocalNTK(model, gamma=0.2, samples=50, weights=attention)(x), plain)


def test_attention_on_outputs_written_out():
    """From the differences of both halves: the pair's weight is the sum of its halves'."""
    model, x = mlp(4, 12, 2, dtype=torch.float64), inputs(5, 4, torch.float64)
    kernel = NonlocalNTK(model, gamma=0.3, samples=20, weights=Attention(temperature=0.5))
    d = kernel.differences(x, halves=True)
    scores = torch.einsum("hmnc,nc->hmn", d, model(x).detach()) / 2**0.5 / 0.5
    alpha = torch.softmax(scores.flatten(0, 1), 0).view_as(scores).sum(0)
    torch.testing.assert_close(kernel.displacement_weights(x), alpha, rtol=1e-6, atol=1e-12)
    odd = (d[0] - d[1]) / 2 * alpha.sqrt()[..., None] / kernel.squared_norms().sqrt()[:, None, None]
    expected = kernel.num_params * torch.einsum("mic,mjc->ij", odd, odd)
    torch.testing.assert_close(kernel(x), expected, rtol=1e-6, atol=1e-12)


def test_scores_of_ones_own_may_be_large():
    """A constant that all scores share cancels, and they are not rounded to the model's float32."""
    model, x = mlp(4, 12, 2), inputs(5, 4)
    for offset in (1e8, -1e3):
        kernels = [
            NonlocalNTK(
                model,
                gamma=0.2,
                samples=50,
                weights=Attention(score=lambda x, rows, o=o: centred(x.double(), rows) + o),
            )
            for o in (0.0, offset)
        ]
        assert relative_error(kernels[1](x), kernels[0](x)) < 1e-6
        torch.testing.assert_close(kernels[1].displacement_weights(x), kernels[0].displacement_weights(x))


def test_outputs_are_made_once_and_for_dot_alone(monkeypatch):
    """Not again for every chunk of displacements."""
    from nntk.kernels import mlp as layers

    model, x, calls = mlp(4, 12, 3), inputs(300, 4), []
    whole = layers.unperturbed
    monkeypatch.setattr(layers, "unperturbed", lambda *arguments: calls.append(1) or whole(*arguments))
    for score, expected in (("dot", 1), ("distance", 0)):
        kernel = NonlocalNTK(model, gamma=0.2, samples=300, weights=Attention(score=score), max_memory=2**20)
        calls.clear()
        kernel(x)
        assert len(calls) == expected


def test_given_projections():
    """W_Q and W_K, with scores from the displacements themselves."""
    model = mlp(3, 5, 1, dtype=torch.float64)
    count = sum(p.numel() for p in model.parameters())
    query, key = inputs(4, count, torch.float64), inputs(4, count, torch.float64, seed=5)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    for score in ("dot", "distance"):
        attention = Attention(on="parameters", score=score, projection=(query, key), temperature=3.0)
        for antithetic in (True, False):
            kernel = NonlocalNTK(model, gamma=0.2, samples=12, weights=attention, antithetic=antithetic)
            deltas = torch.stack(
                [torch.cat([e.flatten() for e in kernel.displacements(m).values()]) for m in range(12)]
            )
            halves = []
            for sign in (1, -1) if antithetic else (1,):
                keys = (theta + sign * deltas) @ key.T
                dot = keys @ (query @ theta) / 2
                halves.append((dot if score == "dot" else -(query @ theta - keys).square().sum(1) / 2) / 3)
            alpha = torch.softmax(torch.cat(halves), 0).view(len(halves), 12).sum(0)
            torch.testing.assert_close(kernel.displacement_weights(), alpha)


@pytest.mark.parametrize(("widths", "samples"), [((2, 1), 40), ((9, 100), 40), ((999, 1000), 2)])
@pytest.mark.parametrize("directions", FAMILIES)
@pytest.mark.parametrize("name", ["gaussian", "exponential", "cauchy", "ball", "power"])
def test_lengths_are_drawn_from_the_law(name, directions, widths, samples):
    """At d = 3, 10^3, 10^6 displacements have the lengths that the stream gives the law, and so have both norms.

    A normal vector has those of the gaussian by itself. The scale, rounded to float32, is what differs.
    """
    model, weights = mlp(*widths), WEIGHTS[name]
    kernel = NonlocalNTK(model, gamma=0.2, samples=samples, weights=weights, directions=directions)
    assert kernel.num_params in (3, 1000, 10**6)
    norms = torch.stack(
        [sum(e.double().square().sum() for e in kernel.displacements(m).values()) for m in range(samples)]
    )
    torch.testing.assert_close(norms, kernel.squared_norms(), rtol=1e-6, atol=0)
    if (name, directions) != ("gaussian", "gaussian"):
        expected = radii(torch.arange(samples), 0, weights, kernel.num_params, 0.2).square()
        torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ["energy", "unbiased"])
def test_importance_weights_estimate_the_same_kernel(estimator):
    """From a proposal 1.15 times too wide, on a model far from linear: within 4 standard errors of ten seeds."""
    model, x = mlp(3, 8, 1, dtype=torch.float64), inputs(4, 3, torch.float64)
    proposed = FixedKernel("gaussian", proposal=FixedKernel("gaussian", gamma=1.15))
    assert sum(p.numel() for p in model.parameters()) <= 50
    kernels = {}
    for weights in (GAUSSIAN, proposed):
        every = [
            NonlocalNTK(model, gamma=1.0, samples=4096, weights=weights, estimator=estimator, seed=seed)
            for seed in range(10)
        ]
        if weights is proposed:
            assert min(1 / float(k.displacement_weights().square().sum()) for k in every) > 1000
        kernels[weights] = torch.stack([k(x) for k in every])
    means, errors = zip(*[(k.mean(0), k.std(0) / 10**0.5) for k in kernels.values()], strict=True)
    assert ((means[0] - means[1]).abs() <= 4 * torch.hypot(*errors)).all()
    # And it is another kernel than that of the proposal.
    other = NonlocalNTK(model, gamma=1.15, samples=4096, estimator=estimator)(x)
    assert not ((means[0] - other).abs() <= 4 * torch.hypot(*errors)).all()


def test_collapse_in_many_dimensions_is_seen():
    """At d = 10^4 the same proposal leaves next to nothing, and the warning says what to do."""
    model, x = mlp(60, 150, 6), inputs(3, 60)
    assert sum(p.numel() for p in model.parameters()) > 10_000
    weights = FixedKernel("gaussian", proposal=FixedKernel("gaussian", gamma=0.11))
    with pytest.warns(EffectiveSampleWarning, match=r"effective of 64 displacements.*proposal=None") as seen:
        NonlocalNTK(model, gamma=0.1, samples=64, weights=weights)(x)
    assert seen[0].filename == __file__
    with pytest.warns(EffectiveSampleWarning, match="temperature"):
        NonlocalNTK(model, gamma=0.1, samples=64, weights=Attention(temperature=1e-6))(x)
    with pytest.warns(EffectiveSampleWarning, match="temperature"):
        NonlocalNTK(model, gamma=0.1, samples=64, weights=Attention(on="parameters", temperature=1e-6))(x)


def test_jacobian_of_a_linear_model():
    """G f of f = W x is sum_m alpha_m <E_m, x> E_m d / |E_m|^2: unbiased, and its products are the plugin kernel."""
    model, x = mlp(5, 2, dtype=torch.float64), inputs(3, 5, torch.float64)
    kernel = NonlocalNTK(model, gamma=0.2, samples=4000, estimator="plugin")
    g = kernel.jacobian(x)
    assert g.shape == (3, 2, 12)
    torch.testing.assert_close(torch.einsum("icd,jcd->ij", g, g), kernel(x), rtol=1e-9, atol=1e-9)
    exact = torch.cat([torch.einsum("cj,nk->ncjk", torch.eye(2), x).flatten(2), torch.eye(2).expand(3, 2, 2)], 2)
    # An entry of d <e, a> e / |e|^2 has a variance of about |a|^2 + a_i^2: 5 standard errors.
    error = (exact.square().sum(2, keepdim=True) + exact.square()).sqrt() / 4000**0.5
    assert ((g - exact).abs() <= 5 * error).all()
    paper = NonlocalNTK(model, gamma=0.2, samples=4000, estimator="plugin", normalization="paper")
    torch.testing.assert_close(paper.jacobian(x), g / 12)


@pytest.mark.parametrize("estimator", ["plugin", "unbiased"])
def test_many_displacements_go_by_the_gradients(estimator, monkeypatch):
    """The Gram matrix and the nonlocal gradients give the same, in slabs that cut tensors, in every mode."""
    from nntk.estimators import inner_product as module
    from nntk.kernels.assemble import gradients

    monkeypatch.setattr(gradients, "TILE", 40)
    model, x = mlp(4, 12, 2, dtype=torch.float64), inputs(5, 4, torch.float64)
    for outputs in ("trace", "mean", "diagonal", "full"):
        for weights in (GAUSSIAN, Attention()):
            result = []
            for route in ("gram", "gradients"):
                monkeypatch.setattr(module, "inner_product_route", lambda *_, route=route: route)
                kernel = NonlocalNTK(
                    model, gamma=0.2, samples=60, estimator=estimator, weights=weights, outputs=outputs
                )
                result += [kernel(x), kernel(x[:2], x[2:])]
            torch.testing.assert_close(result[0], result[2], rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(result[1], result[3], rtol=1e-8, atol=1e-8)


def test_the_rademacher_lengths_follow_the_gaussian():
    """Random signs have one length of their own; the law's is drawn, near gamma sqrt(d / 2)."""
    kernel = NonlocalNTK(mlp(40, 60, 5), gamma=0.2, samples=400, directions="rademacher")
    lengths = kernel.squared_norms() / (0.04 * kernel.num_params / 2)
    assert lengths.std() == pytest.approx((2 / kernel.num_params) ** 0.5, rel=0.2)


def good(**changed):
    return {"model": mlp(4, 6, 2), "samples": 8, **changed}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Attention(temperature=0), ValueError, "temperature must be between 1e-30 and 1e\\+30, got 0"),
        (lambda: Attention(temperature=-1.0), ValueError, "temperature must be between"),
        (lambda: Attention(on="inputs"), ValueError, "on must be one of 'outputs', 'parameters'; got 'inputs'"),
        (lambda: Attention(score="cosine"), ValueError, "score must be one of 'dot', 'distance'; got 'cosine'"),
        (lambda: Attention(on="parameters", score=centred), ValueError, "on must be 'outputs' for a score of your own"),
        (lambda: Attention(dim=3), ValueError, "dim must be None for attention on outputs.* got 3"),
        (lambda: Attention(projection=()), ValueError, "projection must be None for attention on outputs.* got tuple"),
        (lambda: Attention(on="parameters", dim=2.5), TypeError, "dim must be an integer, got 2.5"),
        (lambda: Attention(temperature="hot"), TypeError, "temperature must be a number, got 'hot'"),
        (lambda: Attention(on="parameters", dim=0), ValueError, "dim must be at least 1, got 0"),
        (
            lambda: Attention(on="parameters", projection=(torch.ones(2, 3), torch.ones(2, 4))),
            ValueError,
            r"projection must be two matrices \[k, d\], got shapes \(2, 3\) and \(2, 4\)",
        ),
        (lambda: Attention(on="parameters", projection=3), TypeError, "projection must be a pair of tensors"),
        (lambda: Attention(on="parameters", projection=(1, 2)), TypeError, "a matrix of projection must be a torch"),
        (
            lambda: Attention(on="parameters", projection=(torch.full((2, 3), math.nan),) * 2),
            ValueError,
            "W_Q of projection must be finite",
        ),
        (
            lambda: Attention(on="parameters", dim=2, projection=(torch.ones(2, 3),) * 2),
            ValueError,
            "dim must be None where projection is given, which has a dimension of its own; got 2",
        ),
        (lambda: Attention(kernel="gaussian"), TypeError, "kernel must be a FixedKernel, got str"),
        (lambda: Attention(prior=1), TypeError, "prior must be True or False, got 1"),
        (lambda: NonlocalNTK(**good(weights="gaussian")), TypeError, r"weights must be .*, got 'gaussian' \(str\)"),
        (
            lambda: NonlocalNTK(**good(weights=FixedKernel("ball", horizon=1e-9, proposal=GAUSSIAN)))(inputs(2, 4)),
            ValueError,
            "0 of 8 displacements remain within the horizon",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(kernel=FixedKernel("ball", horizon=1e-9, proposal=GAUSSIAN))))(
                inputs(2, 4)
            ),
            ValueError,
            "0 of 8 displacements remain within the horizon",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(score=lambda x, rows: torch.ones(3))))(inputs(2, 4)),
            ValueError,
            r"score must return scores of shape \(8, 2\), or \(2, 8, 2\) for both members of the pairs; got \(3,\)",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(score=lambda x, rows: torch.full((8, 2), math.nan))))(
                inputs(2, 4)
            ),
            ValueError,
            "the scores that score returned must be finite, got 16 NaN or infinite of 16",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(score=lambda x, rows: torch.ones(8, 2, device="meta"))))(
                inputs(2, 4)
            ),
            ValueError,
            "score must return scores on cpu like the inputs, got meta",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(score=lambda x, rows: 3)))(inputs(2, 4)),
            TypeError,
            "score must return a floating tensor, got int",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention(on="parameters", projection=(torch.ones(2, 3),) * 2)))(
                inputs(2, 4)
            ),
            ValueError,
            "projection must have 44 columns, one a parameter; got 3",
        ),
        (
            lambda: NonlocalNTK(**good(weights=Attention())).displacement_weights(),
            ValueError,
            "x must be given for attention on outputs",
        ),
        (lambda: NonlocalNTK(**good()).displacement_weights(inputs(2, 4)), ValueError, "x must be None for weights"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    """Each error names the argument, the value and what is allowed."""
    with pytest.raises(error, match=message):
        make()
