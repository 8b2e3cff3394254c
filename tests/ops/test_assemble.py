"""Assembly: the estimators against their sums written out, and the laws that kernels obey."""

import itertools

import pytest
import torch
from conftest import FAMILIES

from nntk.kernels.assemble import (
    ESTIMATORS,
    OUTPUTS,
    assemble,
    assemble_by_gradients,
    displacement_gram,
    inner_product_route,
    nonlocal_gradients,
    reference,
    streaming,
)
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import slabs, unit_displacements

M, N1, N2, C, D = 9, 5, 4, 3, 20


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(weights):
    """Differences, weights, and displacements of D parameters."""
    d1, d2, e = random(M, N1, C, seed=1), random(M, N2, C, seed=2), random(M, D, seed=3)
    if weights == "uniform":
        w1 = w2 = torch.full((M,), 1 / M, dtype=torch.float64)
    elif weights == "row":
        w1 = w2 = torch.softmax(random(M, seed=4), 0)
    else:
        w1, w2 = torch.softmax(random(M, N1, seed=4), 0), torch.softmax(random(M, N2, seed=5), 0)
    return d1, d2, w1, w2, e @ e.T


def written_out(d1, d2, w1, w2, q, estimator):
    """The definitions, summed term by term: [N1, N2, C, C]."""
    a1 = w1 if w1.dim() == 2 else w1[:, None].expand(M, d1.shape[1])
    a2 = w2 if w2.dim() == 2 else w2[:, None].expand(M, d2.shape[1])
    total = torch.zeros(d1.shape[1], d2.shape[1], C, C, dtype=torch.float64)
    for i, j in itertools.product(range(d1.shape[1]), range(d2.shape[1])):
        for m, p in itertools.product(range(M), range(M)):
            outer = torch.outer(d1[m, i], d2[p, j])
            if estimator == "energy":
                total[i, j] += D * (a1[m, i] * a2[m, j]).sqrt() * outer / q[m, m] if m == p else 0
            elif estimator == "plugin" or m != p:
                total[i, j] += D**2 * a1[m, i] * a2[p, j] * outer * q[m, p] / (q[m, m] * q[p, p])
        if estimator == "unbiased":
            total[i, j] /= 1 - (a1[:, i] * a2[:, j]).sum()
    return total


def select(full, outputs):
    diagonal = full.diagonal(dim1=2, dim2=3)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(2), "mean": diagonal.mean(2)}[outputs]


@pytest.mark.parametrize("weights", ["uniform", "row", "input"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equals_the_sum_written_out(estimator, weights):
    """All outputs, symmetric and cross, both normalisations."""
    d1, d2, w1, w2, q = case(weights)
    cross, own = written_out(d1, d2, w1, w2, q, estimator), written_out(d1, d1, w1, w1, q, estimator)
    for outputs, normalization in itertools.product(OUTPUTS, ("gradient", "paper")):
        options = {"estimator": estimator, "gram": q, "outputs": outputs, "normalization": normalization}
        factor = 1 if normalization == "gradient" else D**2
        second = None if weights != "input" else w2
        result = assemble(d1, w1, q.diagonal(), D, d2=d2, weights2=second, **options)
        torch.testing.assert_close(result, select(cross, outputs) / factor)
        result = assemble(d1, w1, q.diagonal(), D, **options)
        torch.testing.assert_close(result, select(own, outputs) / factor)


@pytest.mark.parametrize("weights", ["row", "input"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_symmetric_kernels_are_exactly_symmetric_and_semidefinite(estimator, weights):
    """Bit for bit in float32; energy and plugin without negative eigenvalues beyond rounding."""
    m, n = 40, 300
    d = random(m, n, C).float()
    w = torch.softmax(random(*((m,) if weights == "row" else (m, n)), seed=1), 0)
    e = random(m, 400, seed=2)
    q = e @ e.T
    for outputs in OUTPUTS:
        k = assemble(d, w, q.diagonal(), 400, estimator=estimator, gram=q, outputs=outputs)
        swapped = k.transpose(0, 1).transpose(2, 3) if outputs == "full" else k.transpose(0, 1)
        assert torch.equal(k, swapped)
    if estimator != "unbiased":
        flat = assemble(d[:, :100], w[..., :100] if w.dim() == 2 else w, q.diagonal(), 400, estimator=estimator, gram=q)
        eigenvalues = torch.linalg.eigvalsh(flat.double())
        assert eigenvalues[0] >= -1e-6 * eigenvalues[-1]


def test_energy_is_additive_over_chunks():
    """Chunks of displacements, with their global weights, add up."""
    d1, d2, w1, w2, q = case("input")
    parts = [
        assemble(d1[part], w1[part], q.diagonal()[part], D, d2=d2[part], weights2=w2[part])
        for part in (slice(0, 4), slice(4, 5), slice(5, M))
    ]
    torch.testing.assert_close(sum(parts), assemble(d1, w1, q.diagonal(), D, d2=d2, weights2=w2))


def test_unbiased_survives_the_cancellation():
    """Float32 differences with d/M = 10^5: the error is that of the inputs' rounding, not d/M times it."""
    m, d = 8, 800_000
    e = torch.stack([unit_displacements(torch.tensor([i]), 0, (d,), 0)[0] for i in range(m)]).double()
    differences = random(m, 6, 1)
    settings = {"num_params": d, "estimator": "unbiased", "gram": e @ e.T}
    weights, norms = torch.full((m,), 1 / m, dtype=torch.float64), (e @ e.T).diagonal()
    exact = assemble(differences, weights, norms, **settings)
    result = assemble(differences.float(), weights, norms, **settings)
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("directions", [*FAMILIES, "flipout(1)", "lowrank(1)", "lowrank(40)"])
def test_norms_and_gram_equal_the_explicit_ones(directions):
    """From generated displacements of several tensors, to 1e-6; but for gaussian, the norm is exactly d."""
    shapes = {1: (300, 70), 3: (300,), 6: (4, 2, 3, 3), 9: (), 10: (1, 33), 12: (5, 0)}
    parameters = {ordinal: torch.zeros(shape) for ordinal, shape in shapes.items()}
    rows = torch.tensor([5, 0, 17, 4])
    explicit = torch.cat(
        [
            unit_displacements(rows, ordinal, parameter.shape, 2, directions, torch.float64).reshape(4, -1)
            for ordinal, parameter in parameters.items()
        ],
        dim=1,
    )
    gram = displacement_gram(parameters, rows, 2, directions)
    norms = squared_norms(parameters, rows, 2, directions)
    assert gram.dtype == norms.dtype == torch.float64 and torch.equal(gram, gram.T)
    torch.testing.assert_close(norms, explicit.square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(gram.diagonal(), norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(gram, explicit @ explicit.T, rtol=1e-6, atol=1e-6 * 300)
    if directions != "gaussian":
        assert (norms == explicit.shape[1]).all() and (gram.diagonal() == explicit.shape[1]).all()


def test_gram_of_flipouts_bases():
    """Rows of one base go by their own signs, rows of several by slabs: the same integers, also of many rows."""
    parameters = {0: torch.zeros(40, 33), 1: torch.zeros(7, 40)}
    rows = torch.tensor([3, 7, 11, 2**32 - 1, 6])
    together = displacement_gram(parameters, rows, 2, "flipout(4)")
    assert torch.equal(displacement_gram(parameters, rows[:4], 2, "flipout(4)"), together[:4, :4])
    assert displacement_gram(parameters, rows[:0], 2, "flipout(4)").shape == (0, 0)


@pytest.mark.parametrize("directions", [*FAMILIES, "lowrank(1)"])
def test_directions_are_isotropic(directions):
    """E[e e^T / |e|^2] = I / d, of each tensor and of all: no entry off by five standard errors of 40 000 draws.

    Of 261 entries, one would be with a probability of 2e-4.
    """
    draws, shapes = 40_000, ((3, 4), (3,), (1, 3))
    parts = [
        unit_displacements(torch.arange(draws), ordinal, shape, 1, directions, torch.float64).flatten(1)
        for ordinal, shape in enumerate(shapes)
    ]
    for e in (*parts, torch.cat(parts, 1)):
        d = e.shape[1]
        products = torch.einsum("mi,mj,m->mij", e, e, 1 / e.square().sum(1))
        error = products.std(0) / draws**0.5
        assert ((products.mean(0) - torch.eye(d, dtype=torch.float64) / d).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_blocks_of_a_symmetric_kernel_do_not_matter(outputs, monkeypatch):
    """Blocks on and below the diagonal, the last one short."""
    a = random(M, 10, C)
    whole = reference.symmetric_contract(a, outputs)
    monkeypatch.setattr(reference, "_BLOCK", 4)
    torch.testing.assert_close(reference.symmetric_contract(a, outputs), whole)


@pytest.mark.parametrize("directions", [*FAMILIES, "lowrank(1)"])
@pytest.mark.parametrize("estimator", ["plugin", "unbiased"])
@pytest.mark.parametrize("weights", ["uniform", "input"])
def test_gradients_give_what_the_gram_gives(weights, estimator, directions):
    """Two ways to one inner product, in all modes of outputs, symmetric and cross; the gradients' products are it."""
    d1, d2, w1, w2, _ = case(weights)
    parameters, rows = {0: torch.zeros(6, 7).double(), 3: torch.zeros(9).double()}, torch.arange(M)
    stream = (parameters, rows, 5, directions)
    gram, norms = displacement_gram(*stream), squared_norms(*stream)
    for outputs, second in itertools.product(OUTPUTS, (False, True)):
        options = {"estimator": estimator, "outputs": outputs}
        options |= {"d2": d2, "weights2": w2} if second else {}
        expected = assemble(d1, w1, norms, 51, gram=gram, **options)
        result = assemble_by_gradients(d1, w1, norms, *stream, **options)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    if estimator == "plugin":
        g1, g2 = (nonlocal_gradients(d, w, norms, *stream) for d, w in ((d1, w1), (d2, w2)))
        torch.testing.assert_close(torch.einsum("icd,jkd->ijck", g1, g2), result, rtol=1e-6, atol=1e-6)


def test_the_cheaper_way_to_an_inner_product():
    """Many displacements of few inputs go by the gradients, few of many by the Gram matrix."""
    assert inner_product_route(4096, (8, 0), 1, 10**6, False) == "gradients"
    assert inner_product_route(256, (1000, 1000), 10, 10**6, False) == "gram"


def test_mirror_copies_the_lower_triangle():
    """For [N, N], [N, N, C] and [N, N, C, C]."""
    for shape in ((4, 4), (4, 4, 3), (4, 4, 3, 3)):
        k = random(*shape)
        m = mirror(k)
        for i, j in itertools.product(range(4), range(4)):
            if i > j:
                assert torch.equal(m[i, j], k[i, j])
                assert torch.equal(m[j, i], k[i, j].mT if len(shape) == 4 else k[i, j])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "median"}, "estimator must be one of 'energy', 'plugin', 'unbiased'; got 'median'"),
        ({"outputs": "sum"}, "outputs must be one of"),
        ({"normalization": "none"}, "normalization must be one of"),
        ({"d2": torch.ones(M, N2, C + 1)}, r"d2 must be \[9, N2, 3\] in torch.float32 like d1"),
        ({"d2": torch.ones(M, N2, C).double()}, "d2 must be .* in torch.float32 like d1, got torch.float64"),
        ({"squared_norms": torch.ones(M + 1)}, r"squared_norms must be \[9\]"),
        ({"weights1": torch.ones(M, N1 + 1)}, r"weights1 must be \[9\] or \[9, 5\]"),
        ({"weights1": torch.ones(M, N1), "d2": torch.ones(M, N2, C)}, "weights2 must be given with d2"),
        ({"weights2": torch.ones(M)}, "weights2 must be None where d2 is None"),
        ({"weights2": torch.ones(M, 1), "d2": torch.ones(M, N2, C)}, r"weights2 must be \[9\] or \[9, 4\]"),
        ({"d1": torch.ones(M, N1)}, r"d1 must be a floating tensor \[M, N1, C\], got torch.float32 of shape \(9, 5\)"),
        ({"d1": torch.ones(M, N1, C).long()}, "d1 must be a floating tensor"),
        ({"num_params": 0}, "num_params must be at least 1, got 0"),
        ({"squared_norms": torch.ones(M, 1)}, r"squared_norms must be \[9\]"),
        ({"estimator": "plugin"}, r"gram must be the \[9, 9\] Gram of displacements for 'plugin', got None"),
        ({"estimator": "plugin", "gram": torch.eye(3)}, r"gram must be the \[9, 9\] .* got shape \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    """Each error names the argument, the value and what is allowed."""
    good = {"d1": torch.ones(M, N1, C), "weights1": torch.ones(M), "squared_norms": torch.ones(M), "num_params": D}
    with pytest.raises(ValueError, match=message):
        assemble(**{**good, **arguments})


STREAM = {"parameters": {0: torch.ones(D)}, "sample_ids": torch.arange(M), "seed": 0}
BAD_STREAMS = [
    (
        {"sample_ids": torch.ones(M)},
        TypeError,
        r"sample_ids must be an int64 vector .* got torch.float32 of shape \(9,\)",
    ),
    ({"directions": "cubic"}, ValueError, "directions must be one of .* got 'cubic'"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
    ({"parameters": {}}, ValueError, "parameters must hold the displaced parameters by ordinal, got none"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_STREAMS)
def test_bad_displacements_are_named(arguments, error, message):
    """By whatever is made of them."""
    arguments = {**STREAM, **arguments}
    d, ones = torch.ones(M, N1, C), torch.ones(M)
    for call in (
        lambda: displacement_gram(**arguments),
        lambda: nonlocal_gradients(d, ones, ones, **arguments),
        lambda: assemble_by_gradients(d, ones, ones, **arguments),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.ones(N1, C), r"d1? must be a floating tensor \[M, N1, C\], got torch.float32 of shape \(5, 3\)"),
        (1, torch.ones(2), r"weights1? must be \[9\] or \[9, 5\], got \(2,\)"),
        (2, torch.ones(2), r"squared_norms must be \[9\], got \(2,\)"),
        (4, torch.arange(3), r"sample_ids must be \[9\], got \(3,\)"),
    ],
)
def test_gradients_of_bad_shapes_are_named(place, wrong, message):
    """Before any work."""
    arguments = [torch.ones(M, N1, C), torch.ones(M), torch.ones(M), *STREAM.values()]
    arguments[place] = wrong
    for call in (nonlocal_gradients, assemble_by_gradients):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "energy"}, "estimator must be one of 'plugin', 'unbiased'; got 'energy'"),
        ({"normalization": "none"}, "normalization must be one of .* got 'none'"),
        ({"outputs": "sum"}, "outputs must be one of .* got 'sum'"),
        ({"d2": torch.ones(M, N2, C + 1)}, r"d2 must be \[9, N2, 3\] .* got torch.float32 of shape \(9, 4, 4\)"),
    ],
)
def test_bad_settings_of_assembly_by_gradients_are_named(settings, message):
    """The energy form has no gradients."""
    with pytest.raises(ValueError, match=message):
        assemble_by_gradients(torch.ones(M, N1, C), torch.ones(M), torch.ones(M), **STREAM, **settings)


def test_unbiased_needs_two_displacements():
    """One displacement has no other to pair with."""
    one, stream = (torch.ones(1, 2, 1), torch.ones(1), torch.ones(1)), {**STREAM, "sample_ids": torch.arange(1)}
    with pytest.raises(ValueError, match="samples must be at least 2 .* got 1"):
        assemble(*one, 3, estimator="unbiased", gram=torch.ones(1, 1))
    with pytest.raises(ValueError, match="samples must be at least 2 .* got 1"):
        assemble_by_gradients(*one, **stream, estimator="unbiased")


def test_a_number_of_parameters_is_an_integer():
    """It is a count of the model's parameters, not a measure."""
    with pytest.raises(TypeError, match="num_params must be an integer, got 1.5"):
        assemble(torch.ones(M, N1, C), torch.ones(M), torch.ones(M), 1.5)


def test_steps_of_a_gpu_are_larger(monkeypatch):
    """Sixteen times a CPU's, 64 MiB in float64; sums over chunks are the same bits, however many rows are scaled."""
    assert slabs.tile_of(torch.device("cuda")) == 16 * slabs.tile_of(torch.device("cpu")) == 2**23
    kernel, factors = torch.rand(5, 7), torch.rand(5, dtype=torch.float64)
    expected = kernel * torch.outer(factors, torch.ones(7).double()).to(kernel.dtype)
    for tile in (1, 2**23):
        monkeypatch.setattr(streaming, "tile_of", lambda device, tile=tile: tile)
        assert torch.equal(streaming._scale(kernel.clone(), factors, torch.ones(7).double()), expected)
