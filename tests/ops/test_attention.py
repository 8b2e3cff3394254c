"""Attention over displacements: the softmax's laws, its limits, projections; and the ops' kernels on the device."""

import math

import pytest
import torch
from conftest import FAMILIES
from triton_device import DEVICE

from nntk.kernels.assemble import StreamingSum, assemble, attended_energy
from nntk.kernels.attention import (
    attend,
    attention_scores,
    attention_statistics,
    attention_weights,
    multiply_displacements,
    project_displacements,
    project_parameters,
    reference,
)
from nntk.kernels.attention.triton import launch
from nntk.kernels.fixed_weights import merge
from nntk.kernels.philox import unit_displacements
from nntk.kernels.philox.source import source_of

pytestmark = pytest.mark.usefixtures("poisoned_memory")

M, N, D = 37, 6, 50


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(pairs, outputs=1, dtype=torch.float64, rows=M):
    """Differences, outputs, log priors and factors."""
    shape = (*((2,) if pairs else ()), rows, N, outputs)
    return (
        random(*shape, seed=1, dtype=dtype),
        random(N, outputs, seed=2, dtype=dtype),
        random(rows, seed=3),
        (random(rows, seed=4).abs()),
    )


def written_out(d, keys, priors, factors, score):
    """The softmax over all displaced models, halves of a pair added: [M, N]."""
    halves = d if d.dim() == 4 else d[None]
    raw = (halves * keys).sum(-1) if score == "dot" else -halves.square().sum(-1) / 2
    e = priors[:, None] + factors[:, None] * raw
    return torch.softmax(e.flatten(0, 1), 0).view_as(e).sum(0)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("score", ["dot", "distance"])
def test_weights_are_the_softmax_written_out(score, pairs, outputs):
    """Over both halves of pairs, with priors, for one output and for several; scores given by hand too."""
    d, keys, priors, factors = case(pairs, outputs)
    expected = written_out(d, keys, priors, factors, score)
    attended = attend(d, score, priors, factors, keys)
    torch.testing.assert_close(attended.weights(), expected)
    torch.testing.assert_close(attended.weights().sum(0), torch.ones(N, dtype=torch.float64), rtol=1e-12, atol=0)
    if not pairs:
        given = attend(d, "given", priors, factors, scores=attention_scores(d, score, keys))
        torch.testing.assert_close(given.weights(), expected)


def test_equals_scaled_dot_product_attention():
    """Values D, keys f + D, query f: torch's attention, whose common term cancels."""
    d, f, _, _ = case(False, 4)
    zeros, factors = torch.zeros(M), torch.full((M,), 1 / 2.0)  # 1 / sqrt(C)
    attended = attend(d, "dot", zeros, factors, f)
    for n in range(N):
        query, key, value = f[n].view(1, 1, 4), (f[n] + d[:, n])[None], d[:, n][None]
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)[0, 0]
        torch.testing.assert_close(attended.weights()[:, n] @ d[:, n], expected)


@pytest.mark.parametrize("pairs", [False, True])
def test_constant_scores_leave_the_prior(pairs):
    """No score, or an infinite temperature: the fixed kernel's weights."""
    d, keys, priors, factors = case(pairs)
    expected = torch.softmax(priors, 0)[:, None].expand(M, N)
    torch.testing.assert_close(attend(d, "dot", priors, torch.zeros(M), keys).weights(), expected)
    torch.testing.assert_close(attend(d, "dot", priors, factors * 1e-14, keys).weights(), expected)


def test_low_temperature_leaves_the_best_score():
    """One-hot at the largest score of each input."""
    d, keys, _, _ = case(False)
    weights = attend(d, "dot", torch.zeros(M), torch.full((M,), 1e6), keys).weights()
    assert torch.equal(weights, torch.nn.functional.one_hot((d[..., 0] * keys.T).argmax(0), M).T.double())


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_do_not_overflow(sign):
    """Scores of +-1e4 in float32, and priors that exclude displacements; by the kernels too."""
    values = sign * 1e4 + random(M, N, 1, dtype=torch.float32)
    priors = torch.zeros(M)
    priors[::2] = -math.inf
    attended = attend(values, "given", priors, torch.ones(M), scores=values[..., 0])
    weights = attended.weights()
    assert (weights[::2] == 0).all() and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(N), rtol=1e-5, atol=0)
    arguments = on(DEVICE, values, None, priors, torch.ones(M))
    result = launch.attention_weights(*arguments, launch.attention_statistics(*arguments, "given"), "given")
    # An exponent of 1e4 is rounded to 5e-4 of one.
    torch.testing.assert_close(result.cpu(), weights, rtol=2e-3, atol=1e-7)


def test_nothing_counts():
    """All displacements excluded, or none there: no NaN."""
    nothing = torch.full((M,), -math.inf)
    statistics = attention_statistics(torch.zeros(M, N, 1), "given", nothing, torch.ones(M))
    assert torch.equal(statistics[0], torch.full((N,), -math.inf).double()) and (statistics[1:] == 0).all()
    empty = attention_statistics(torch.zeros(0, N, 1), "given", torch.zeros(0), torch.zeros(0))
    assert torch.equal(merge(empty, statistics), statistics)
    for device in ("cpu", DEVICE):
        d = torch.ones(M, N, 1, device=device)
        attended = attend(d, "distance", nothing.to(device), torch.ones(M, device=device))
        total = StreamingSum()
        total.add(attended_energy(attended, None, torch.ones(M, device=device), D), attended.statistics, None)
        assert (attended.weights() == 0).all() and (total.result() == 0).all()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("score", ["dot", "distance"])
def test_chunks_and_order_do_not_matter(score, pairs):
    """Kernels of chunks, each relative to its own largest score, add up to the kernel of all; order is free."""
    outputs = 2
    d1, keys, priors, factors = case(pairs, outputs)
    d2, norms = random(*d1.shape, seed=7)[..., :4, :], random(M, seed=8).abs() + 1
    # Scores of very different sizes from chunk to chunk.
    priors = priors + torch.linspace(-60, 60, M)
    first, second = attend(d1, score, priors, factors, keys), attend(d2, score, priors, factors, keys[:4])
    for other in (None, second):
        whole = assemble(
            first.difference(), first.weights(), norms, D, d2=None if other is None else other.difference(),
            weights2=None if other is None else other.weights(),
        )  # fmt: skip
        for order in (torch.arange(M), torch.randperm(M, generator=torch.Generator().manual_seed(3))):
            total = StreamingSum()
            for chunk in order.split(10):
                parts = [
                    attend(d[..., chunk, :, :], score, priors[chunk], factors[chunk], k)
                    for d, k in ((d1, keys), (d2, keys[:4]))
                ][: 1 if other is None else 2]
                part = attended_energy(parts[0], None if other is None else parts[1], norms[chunk], D)
                total.add(part, parts[0].statistics, None if other is None else parts[1].statistics)
            result = total.result()
            torch.testing.assert_close(result, whole, rtol=1e-12, atol=1e-12)
            assert other is not None or torch.equal(result, result.T)


def test_statistics_merge_exactly():
    """Two sets of displacements know as much together as all of them."""
    d, keys, priors, factors = case(True)
    whole = attention_statistics(d, "dot", priors, factors, keys)
    parts = [attention_statistics(d[:, p], "dot", priors[p], factors[p], keys) for p in (slice(5), slice(5, None))]
    torch.testing.assert_close(merge(*parts), whole)


@pytest.mark.parametrize("directions", FAMILIES)
def test_projections_equal_explicit_products(directions):
    """With the projection written out as normals of its purpose; a given matrix likewise."""
    parameters = {0: random(7, 33), 1: random(9), 4: random(3, 5, 2)}
    rows, dim, seed = torch.tensor([0, 5, 2**32 - 1]), 4, 3
    slabs = [reference.Slab.whole(o, tuple(p.shape), reference.PROJECTION) for o, p in parameters.items()]
    lines = source_of(rows.device).normals(torch.arange(dim), slabs, (seed, 0), torch.float64)
    count = sum(parameter.numel() for parameter in parameters.values())
    projection = torch.cat([line.flatten(1) for line in lines], 1) / count**0.5
    noise = torch.cat(
        [
            unit_displacements(rows, o, p.shape, seed, directions, torch.float64).flatten(1)
            for o, p in parameters.items()
        ],
        1,
    )
    result = project_displacements(parameters, rows, seed, dim, directions)
    torch.testing.assert_close(result, noise @ projection.T)
    theta = torch.cat([parameter.flatten() for parameter in parameters.values()])
    torch.testing.assert_close(project_parameters(parameters, seed, dim), projection @ theta)
    matrix = random(5, count)
    torch.testing.assert_close(
        multiply_displacements(parameters, rows, seed, matrix, directions), noise @ matrix.T, rtol=1e-6, atol=1e-6
    )


def test_projections_of_ones_are_normal():
    """Sums of entries N(0, 1) / sqrt(d): 2000 of them, of mean 0 and variance 1 to 5 standard errors."""
    result = project_parameters({0: torch.ones(2, 15)}, 1, 2000)
    assert abs(float(result.mean())) < 5 / 2000**0.5 and abs(float(result.var()) - 1) < 5 * (2 / 2000) ** 0.5


# The kernels, on a GPU or in Triton's interpreter.


def on(device, *tensors):
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (3, 17), (50, 130)])
@pytest.mark.parametrize("pairs", [False, True])
def test_kernels_of_the_softmax(pairs, rows, inputs):
    """Statistics and weights within rounding of the reference's in float64; twice the same bits."""
    shape = (*((2,) if pairs else ()), rows, inputs, 1)
    values, keys = random(*shape, seed=1, dtype=torch.float32), random(inputs, 1, seed=2, dtype=torch.float32)
    priors, factors = random(rows, seed=3), 3 * random(rows, seed=4).abs()
    if rows > 1:
        priors[0] = -math.inf
    for score in ("dot", "distance", "given"):
        k = keys if score == "dot" else None
        expected = reference.attention_statistics(
            values.double(), None if k is None else k.double(), priors, factors, score
        )
        arguments = on(DEVICE, values, k, priors, factors)
        result = launch.attention_statistics(*arguments, score)
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(result, launch.attention_statistics(*arguments, score))
        weights = launch.attention_weights(*arguments, result, score).cpu()
        again = reference.attention_weights(values, k, priors, factors, expected, score)
        torch.testing.assert_close(weights, again, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("outputs", [1, 3, 17, 1030])
def test_kernel_of_the_scores(outputs):
    """More outputs than a tile, one, and odd numbers."""
    d, keys = random(2, 5, 3, outputs, dtype=torch.float32), random(3, outputs, seed=1, dtype=torch.float32)
    for score, k in (("dot", keys), ("distance", None)):
        result = launch.attention_scores(*on(DEVICE, d, k), score).cpu()
        expected = reference.attention_scores(d.double(), None if k is None else k.double(), score)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5 * outputs**0.5)


@pytest.mark.parametrize("directions", ["gaussian", "rademacher", "flipout(2)", "lowrank(1)"])
def test_kernel_of_the_projections(directions):
    """Odd widths, a vector, more rows than a tile; the last row of the stream."""
    parameters, rows = [torch.zeros(5, 37), torch.zeros(9), torch.zeros(3, 130)], torch.arange(2**32 - 66, 2**32)
    result = launch.project_displacements(on(DEVICE, *parameters), [0, 1, 2], rows.to(DEVICE), 1, 2, directions, 5)
    expected = reference.project_displacements(parameters, [0, 1, 2], rows, 1, 2, directions, 5)
    error = (result.cpu() - expected).abs().max()
    assert error < (1e-5 if DEVICE == "cpu" or directions != "gaussian" else 1e-2)
    matrix = random(4, 5 * 37 + 9 + 390)
    result = launch.multiply_displacements(
        on(DEVICE, *parameters), [0, 1, 2], rows.to(DEVICE), 1, 2, directions, matrix.to(DEVICE)
    )
    expected = reference.multiply_displacements(parameters, [0, 1, 2], rows, 1, 2, directions, matrix)
    assert (result.cpu() - expected).abs().max() < (1e-4 if DEVICE == "cpu" or "gauss" not in directions else 1e-1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend(torch.ones(3, 2, 1), "cosine", torch.zeros(3), torch.ones(3)), "score must be one of"),
        (
            lambda: attend(torch.ones(3, 2, 1), "dot", torch.zeros(3), torch.ones(3)),
            r"keys must be the outputs \(2, 1\)",
        ),
        (
            lambda: attend(torch.ones(3, 2, 1), "given", torch.zeros(3), torch.ones(3)),
            r"scores must be \(3, 2\) for score 'given'",
        ),
        (lambda: attend(torch.ones(3, 2), "distance", torch.zeros(3), torch.ones(3)), "differences must be a floating"),
        (lambda: attend(torch.ones(3, 2, 1), "distance", torch.zeros(2), torch.ones(3)), r"priors must be \[3\]"),
        (
            lambda: attention_statistics(torch.ones(3, 2, 2), "distance", torch.zeros(3), torch.ones(3)),
            "values must have a last axis of 1",
        ),
        (
            lambda: attention_weights(torch.ones(3, 2, 1), "distance", *torch.ones(2, 3), torch.ones(2)),
            r"statistics must be \[3, 2\]",
        ),
        (
            lambda: multiply_displacements({0: torch.ones(3)}, torch.arange(2), 0, torch.ones(2, 4)),
            r"matrix must be \[k, 3\], a column for each parameter; got \(2, 4\)",
        ),
        (lambda: attention_scores(torch.ones(3, 2, 1), "given"), "score must be one of 'dot', 'distance'; got 'given'"),
        (
            lambda: attention_scores(torch.ones(3, 2, 1), "dot", torch.ones(2, 2)),
            r"keys must be the outputs \(2, 1\) for score 'dot', got shape \(2, 2\)",
        ),
        (
            lambda: attention_statistics(torch.ones(3, 2, 1), "cosine", torch.zeros(3), torch.ones(3)),
            "score must be one of .* got 'cosine'",
        ),
        (
            lambda: attention_statistics(torch.ones(3, 2, 1), "distance", torch.zeros(3), torch.ones(2)),
            r"factors must be \[3\], got \(2,\)",
        ),
        (
            lambda: attention_weights(torch.ones(3, 2, 1), "cosine", *torch.ones(2, 3), torch.ones(3, 2)),
            "score must be one of .* got 'cosine'",
        ),
        (
            lambda: attention_weights(torch.ones(3, 2, 1), "distance", *torch.ones(2, 2), torch.ones(3, 2)),
            r"priors must be \[3\], got \(2,\)",
        ),
        (lambda: StreamingSum().result(), "a sum of no chunks has no result"),
        (
            lambda: [StreamingSum(torch.ones(2, 2), torch.ones(3, 2)).add(torch.ones(1, 1), torch.ones(3, 1), None)],
            r"statistics must be two of \[3\] or \[3, N\], got \(3, 2\) and \(3, 1\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    """Each error names the argument, the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()


def distant(*shape, dtype=torch.float32):
    """Attention on differences of a shape."""
    return attend(torch.ones(*shape, dtype=dtype), "distance", torch.zeros(shape[0]), torch.ones(shape[0]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"squared_norms": torch.ones(2)}, ValueError, r"squared_norms must be \[3\], got \(2,\)"),
        ({"num_params": 0}, ValueError, "num_params must be at least 1, got 0"),
        ({"num_params": 0.5}, TypeError, "num_params must be an integer, got 0.5"),
        ({"normalization": "none"}, ValueError, "normalization must be one of .* got 'none'"),
        ({"outputs": "sum"}, ValueError, "outputs must be one of .* got 'sum'"),
        ({"second": distant(2, 5, 1)}, ValueError, r"second must have differences \[3, N, 1\] .* got .* \[2, N, 1\]"),
        ({"second": distant(3, 5, 2)}, ValueError, r"second must have .* got differences \[3, N, 2\] .* under 'given'"),
        ({"second": distant(3, 5, 1, dtype=torch.float64)}, ValueError, "second must have .* got .* in torch.float64"),
    ],
)
def test_bad_attention_is_named(arguments, error, message):
    """Both sets of inputs are under the same attention."""
    with pytest.raises(error, match=message):
        attended_energy(**{"first": distant(3, 2, 1), "second": None, "squared_norms": torch.ones(3), "num_params": D,
                           **arguments})  # fmt: skip


PARAMETERS, ROWS = {0: torch.ones(3)}, torch.arange(2)


@pytest.mark.parametrize(
    ("call", "arguments", "error", "message"),
    [
        (
            project_displacements,
            {"sample_ids": torch.ones(2), "dim": 1},
            TypeError,
            "sample_ids must be an int64 vector",
        ),
        (project_displacements, {"directions": "cubic", "dim": 1}, ValueError, "directions must be one of .*'cubic'"),
        (project_displacements, {"seed": -1, "dim": 1}, ValueError, "seed must be at least 0, got -1"),
        (project_displacements, {"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        (project_displacements, {"dim": 0.5}, TypeError, "dim must be an integer, got 0.5"),
        (project_displacements, {"parameters": {}, "dim": 1}, ValueError, "parameters must hold .* got none"),
        (
            multiply_displacements,
            {"sample_ids": torch.ones(2), "matrix": None},
            TypeError,
            "sample_ids must be an int64 vector",
        ),
        (multiply_displacements, {"directions": "cubic", "matrix": None}, ValueError, "directions must be .*'cubic'"),
        (multiply_displacements, {"seed": -1, "matrix": torch.ones(1, 3)}, ValueError, "seed must be at least 0, got"),
        (multiply_displacements, {"seed": "1", "matrix": torch.ones(1, 3)}, TypeError, "seed must be an integer, got"),
    ],
)
def test_bad_projections_are_named(call, arguments, error, message):
    """The message names the argument of a projection of displacements."""
    with pytest.raises(error, match=message):
        call(**{"parameters": PARAMETERS, "sample_ids": ROWS, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PARAMETERS, -1, 2), ValueError, "seed must be at least 0, got -1"),
        ((PARAMETERS, 0, 0), ValueError, "dim must be at least 1, got 0"),
        ((PARAMETERS, 0.5, 2), TypeError, "seed must be an integer, got 0.5"),
        (({}, 0, 2), ValueError, "parameters must hold .* got none"),
    ],
)
def test_bad_projections_of_parameters_are_named(arguments, error, message):
    """The message names the argument of a projection of parameters."""
    with pytest.raises(error, match=message):
        project_parameters(*arguments)
