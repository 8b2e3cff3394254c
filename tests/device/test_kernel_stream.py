"""The stream's kernels: the same integers bit for bit, the same noise to a rounding, and its law."""

import math

import pytest
import torch
import triton
import triton.language as tl
from scipy import stats
from triton_device import DEVICE

from nntk.kernels.assemble.triton import launch as assemble_launch
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import integers, noise, reference, unit_displacements
from nntk.kernels.philox.triton import kernel, launch
from nntk.kernels.target import target_of

EDGES = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
FAMILIES = ("gaussian", "rademacher", "flipout(2)", "lowrank(1)", "lowrank(2)")


@triton.jit
def write_philox(out, c0, c1, c2, c3, k0, k1, count, BLOCK: tl.constexpr):
    """The words of given counters."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    counter = [tl.load(part + i, mask=inside, other=0) for part in (c0, c1, c2, c3)]
    w0, w1, w2, w3 = kernel.philox(
        counter[0].to(tl.uint32), counter[1].to(tl.uint32), counter[2].to(tl.uint32), counter[3].to(tl.uint32), k0, k1
    )
    tl.store(out + 4 * i, w0.to(tl.int64), mask=inside)
    tl.store(out + 4 * i + 1, w1.to(tl.int64), mask=inside)
    tl.store(out + 4 * i + 2, w2.to(tl.int64), mask=inside)
    tl.store(out + 4 * i + 3, w3.to(tl.int64), mask=inside)


@triton.jit
def write_pairs(out, word, angle, count, PTX: tl.constexpr, BLOCK: tl.constexpr):
    """The packed normals of given words."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    w, a = tl.load(word + i, mask=inside, other=0), tl.load(angle + i, mask=inside, other=0)
    pair = kernel.normal_pair(w.to(tl.uint32, bitcast=True), a.to(tl.uint32, bitcast=True), PTX)
    tl.store(out + i, pair.to(tl.int32, bitcast=True), mask=inside)


def device_pairs(word, angle):
    """Two normals of each pair of int32 words, [n, 2], float32."""
    out = torch.empty(len(word), dtype=torch.int32, device=DEVICE)
    block = 1024 if DEVICE == "cuda" else 1 << 17
    write_pairs[(triton.cdiv(len(word), block),)](
        out, word.to(DEVICE), angle.to(DEVICE), len(word), target_of(out.device).ptx, block
    )
    return torch.stack((out << 16, out & -65536), dim=-1).view(torch.float32)


def allowed_error(expected):
    """One bfloat16 rounding or a thousandth, whichever is more."""
    return torch.clamp(torch.exp2(torch.floor(torch.log2(expected.abs().clamp(min=1e-30))) - 7), min=1e-3)


@pytest.mark.parametrize("key", [(0, 0), (2**32 - 1, 2**31), (5, 2**31 + 1)])
def test_integers_equal_the_reference(key):
    """A million random counters and all edges in every place, bit for bit."""
    counters = torch.randint(0, 2**32, (10**6, 4), generator=torch.Generator().manual_seed(1))
    edges = torch.cartesian_prod(*[torch.tensor(EDGES)] * 4)
    counters = torch.cat([edges, counters]) if key == (0, 0) else edges
    expected = torch.stack(integers.philox(tuple(counters.T), key), dim=1)
    out = torch.empty_like(counters, device=DEVICE)
    block = 1024 if DEVICE == "cuda" else 1 << 17
    columns = [column.contiguous().to(DEVICE) for column in counters.T]
    write_philox[(triton.cdiv(len(counters), block),)](out, *columns, *launch.keys(key), len(counters), block)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("first", [0, 2**32 - 64])
def test_words_of_blocks(first):
    """Blocks to both sides of 2**32 take their high bits along."""
    blocks = torch.arange(first, first + 128)
    rows = torch.tensor(EDGES)
    expected = torch.stack(integers.stream_words(rows, blocks, torch.tensor([2**32 - 1]), (7, 9)), dim=-1)
    out = torch.empty(len(rows), 128, 4, dtype=torch.int32, device=DEVICE)
    write_blocks[(len(rows),)](out, rows.to(DEVICE), *launch.keys((7, 9)), -1, first, 128)
    assert torch.equal(out.cpu().long() & 0xFFFFFFFF, expected)


@triton.jit(do_not_specialize=["key0", "key1", "ordinal", "first"])
def write_blocks(out, rows, key0, key1, ordinal, first, BLOCK: tl.constexpr):
    """The words of a range of blocks that may pass 2**32."""
    block = first.to(tl.int64) + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = kernel.words(block, ordinal, tl.load(rows + tl.program_id(0)), key0, key1, 0)
    packed = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK, 4)).to(tl.int32, bitcast=True)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at[:, None] * 4 + tl.arange(0, 4)[None, :], packed)


@pytest.mark.parametrize("directions", FAMILIES)
@pytest.mark.parametrize("shape", [(1,), (130,), (1, 1), (3, 17), (17, 130), (5, 3, 7)])
def test_noise_equals_the_reference(directions, shape):
    """Every family and odd shape: signs exactly, normals to a bfloat16 rounding, low rank to the factors' rounding."""
    rows = torch.tensor([0, 5, 2**32 - 1])
    expected = unit_displacements(rows, 3, shape, 2**63 + 7, directions)
    result = launch.unit_displacements(
        rows.to(DEVICE), 3, list(shape), *launch_key(2**63 + 7), directions, torch.float32
    ).cpu()
    if directions == "gaussian":
        assert ((result - expected).abs() <= allowed_error(expected)).all()
    elif directions.startswith("lowrank"):
        torch.testing.assert_close(result, expected, rtol=1e-2 if DEVICE == "cuda" else 1e-5, atol=5e-3)
    else:
        assert torch.equal(result, expected)


@pytest.mark.parametrize("rows_per_factor", [1, 16])
@pytest.mark.parametrize("shape", [(1, 1), (70, 50), (3, 1100)])
def test_factors_of_rank_one(shape, rows_per_factor):
    """One launch writes both factors, zeros behind them, and the scale of the very factors that it wrote."""
    rows, padded = torch.tensor([0, 5, 2**32 - 1]), [launch.padded(length) for length in shape]
    left, right, scale = launch.lowrank_factors(
        rows.to(DEVICE), 1, 3, *shape, launch_key(9), torch.float32, rows_per_factor
    )  # fmt: skip
    assert [part.shape[1:] for part in (left, right)] == [(rows_per_factor, length) for length in padded]
    a, b = left[:, :1, : shape[0]], right[:, :1, : shape[1]]
    torch.testing.assert_close(scale, reference.lowrank_scale(a, b), rtol=1e-12, atol=0)
    assert not left[:, 1:].any() and not right[:, 1:].any()
    noise = unit_displacements(rows, 3, shape, 9, "lowrank(1)", torch.float64)
    product = (a.double().mT @ b.double() * scale[:, None, None]).cpu()
    torch.testing.assert_close(product, noise, rtol=1e-2 if DEVICE == "cuda" else 1e-6, atol=5e-3)


@pytest.mark.usefixtures("poisoned_memory")
def test_many_vectors_and_matrices_by_few_launches(monkeypatch):
    """Each is what it is alone: more than a launch has, lengths of zero and one, few samples a grid, any ordinals."""
    monkeypatch.setattr(launch, "_LARGEST_GRID", 20)
    rows, key = torch.tensor([7, 0, 2**32 - 1], device=DEVICE), launch_key(9)
    lengths = (1, 0, 16, 300, 15, 17, 32, 5, 1, 257)
    for signs, dtype in ((False, torch.float32), (True, torch.float16)):
        wanted = [
            launch.Vector(2**31 * (n % 2) + n, length, (integers.DISPLACEMENT, integers.INPUT_SIGNS)[n % 3 == 0])
            for n, length in enumerate(lengths)
        ]
        together = launch.vectors(rows, wanted, key, signs, dtype)
        for vector, written in zip(wanted, together, strict=True):
            (alone,) = launch.vectors(rows, [vector], key, signs, dtype)
            assert written.shape == (3, vector.length) and torch.equal(written, alone) and written.dtype == dtype
            if signs and vector.purpose == integers.DISPLACEMENT:
                shape = [vector.length]
                expected = launch.unit_displacements(rows, vector.ordinal, shape, *key, "rademacher", dtype)
                assert torch.equal(written, expected)
    shapes = ((1, 1), (70, 50), (3, 520), (16, 16), (1, 9), (9, 1), (5, 5), (2, 2), (33, 17))
    matrices = [launch.Matrix(2 * n, *shape, (1, 16)[n % 2]) for n, shape in enumerate(shapes)]
    together = launch.rank_one_factors(rows, matrices, key, torch.float32)
    for matrix, factors in zip(matrices, together, strict=True):
        alone = launch.lowrank_factors(
            rows, 1, matrix.ordinal, matrix.height, matrix.width, key, torch.float32, matrix.rows
        )  # fmt: skip
        assert all(torch.equal(part, one) for part, one in zip(factors, alone, strict=True))
    assert launch.vectors(rows, [], key, True, torch.float32) == launch.rank_one_factors(rows, [], key, dtype) == []


def launch_key(seed):
    """Both words of a seed."""
    return seed & 0xFFFFFFFF, seed >> 32


SQUARED = (
    [(7,), (5,)], [(33, 50), (5,)], [(4, 64), (8,)], [(1,), (3, 16), (2, 3, 5), (20,), (6, 7)], [(64,)] * 3,
    [(3, 17)] * 2, [(4, 0), (9,)], [(130, 130), (1, 1)], [(n, 2 * n + 1) for n in range(1, 12)],
)  # fmt: skip
"""Shapes of parameters: vectors and matrices with and without padding, none, more than a tile, more than a launch."""


@pytest.mark.parametrize("shapes", SQUARED)
def test_squared_norms_equal_those_of_the_noise(shapes):
    """The kernel's sum of squares is that of the explicit displacements to 1e-6; padding does not count."""
    rows, generator = torch.tensor([0, 2**32 - 1, 2]), torch.Generator().manual_seed(len(shapes))
    ordinals = torch.randperm(40, generator=generator)[: len(shapes)].tolist()
    parameters = {ordinal: torch.zeros(shape) for ordinal, shape in zip(ordinals, shapes, strict=True)}
    result = launch.squared_norms(
        [part.to(DEVICE) for part in parameters.values()], list(parameters), rows.to(DEVICE), 1, 2, "gaussian"
    )
    expected = squared_norms(parameters, rows, 1 + 2 * 2**32)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-6 if DEVICE == "cpu" else 1e-3, atol=0)


def test_squares_of_many_displacements_take_several_grids(monkeypatch):
    """Each of some displacements, for each eight parameters."""
    rows, shapes = torch.arange(5, device=DEVICE), [(n, 2 * n + 1) for n in range(1, 12)]
    parameters = [torch.zeros(shape, device=DEVICE) for shape in shapes]
    expected = launch.squared_norms(parameters, list(range(11)), rows, 1, 2, "gaussian")
    monkeypatch.setattr(launch, "_LARGEST_GRID", 16)
    assert torch.equal(launch.squared_norms(parameters, list(range(11)), rows, 1, 2, "gaussian"), expected)


@pytest.mark.skipif(DEVICE == "cuda", reason="one program of a huge grid runs, which only the interpreter can do")
@pytest.mark.parametrize("shape", [(2**31 - 4,), (2**31 - 3,), (2**31,), (1, 2**31 - 16), (1, 2**31 - 15), (1, 2**31)])
def test_blocks_at_the_limit_of_32_bits_are_counted(shape, monkeypatch):
    """The first program sums four tiles of blocks: 16 Ki normals, with squares of mean 1 and variance 2."""
    launched, sum_squares = [], kernel.sum_squares

    class Kept:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(arguments)

    monkeypatch.setattr(kernel, "sum_squares", Kept())
    launch.squared_norms([torch.empty(shape, device="meta")], [0], torch.arange(1), 1, 2, "gaussian")
    ((out, stride, *rest),) = launched
    sum_squares[(1,)](out, stride, *rest)
    blocks = 4 * launch.SQUARES_BLOCK
    assert abs(float(out[0, 0]) - 4 * blocks) < 5 * math.sqrt(8 * blocks)


def test_sums_in_64_bits_are_the_same(monkeypatch):
    """Loops over more than 2**29 blocks count in 64 bits; so does a short one if told to, with the same bits."""
    rows, parameters = torch.arange(2, device=DEVICE), [torch.zeros(33, 500, device=DEVICE)]
    expected = launch.squared_norms(parameters, [0], rows, 1, 2, "gaussian")
    monkeypatch.setattr(launch, "_WIDE_BLOCKS", 0)
    assert torch.equal(launch.squared_norms(parameters, [0], rows, 1, 2, "gaussian"), expected)


def test_many_blocks_are_counted_in_64_bits(monkeypatch):
    """From 2**29 on, which hold 2**31 normals."""
    wide = {}

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: wide.update({(arguments[6][0] - 3) // 2: arguments[-3]})

    monkeypatch.setattr(kernel, "sum_squares", Recorder())
    for shape in ((2**14 - 1, 2**17), (2**14, 2**17), (2**16, 2**17)):
        launch.squared_norms([torch.empty(shape, device="meta")], [0], torch.arange(1, device=DEVICE), 1, 2, "gaussian")
    assert wide == {2**14 - 1: False, 2**14: True, 2**16: True}


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_few_rows_make_few_bases(rows, monkeypatch):
    """Displacements of flipout take a base for each row, or all bases where these are fewer."""
    result, write = [], launch.write_matrix
    monkeypatch.setattr(launch, "write_matrix", lambda out, *rest: (result.append(len(out)), write(out, *rest)))
    launch.unit_displacements(torch.arange(rows, device=DEVICE), 0, [5, 9], 1, 2, "flipout(7)", torch.float32)
    assert result == [min(rows, 7)]


@pytest.mark.parametrize("directions", FAMILIES)
def test_gram_of_displacements(directions, monkeypatch):
    """Slabs of noise, however small, give the Gram of the explicit displacements to 1e-6 of d."""
    parameters = {0: torch.zeros(33, 50), 2: torch.zeros(7), 3: torch.zeros(9, 2, 3)}
    d = sum(parameter.numel() for parameter in parameters.values())
    rows = torch.tensor([4, 2**32 - 1, 6])
    noise = torch.cat(
        [unit_displacements(rows, ordinal, one.shape, 3, directions, torch.float64).flatten(1)
         for ordinal, one in parameters.items()], dim=1,
    )  # fmt: skip
    monkeypatch.setattr(launch, "_SLAB_BYTES", 4 * 3 * 50 * 8)
    result = assemble_launch.displacement_gram(
        [one.to(DEVICE) for one in parameters.values()], list(parameters), rows.to(DEVICE), 3, 0, directions
    )
    tolerance = 1e-6 if DEVICE == "cpu" else 1e-3
    torch.testing.assert_close(result.cpu(), noise @ noise.T, rtol=0, atol=tolerance * d)
    assert torch.equal(result, result.T)


def test_normals_of_all_kinds_of_words():
    """A million random words and the ends of the range: within a bfloat16 rounding or 1e-3, and never NaN."""
    word = torch.randint(0, 2**32, (10**6,), generator=torch.Generator().manual_seed(2))
    ends = torch.cartesian_prod(torch.tensor(EDGES + (2**30, 2**32 - 2, 2**32 - 129)), torch.tensor(EDGES))
    word, angle = torch.cat([word, ends[:, 0]]), torch.cat([word.flip(0), ends[:, 1]])
    expected = noise.box_muller(word, angle).to(torch.bfloat16).float()
    result = device_pairs(*(part.to(torch.int32) for part in (word, angle))).cpu()
    assert result.isfinite().all()
    assert ((result - expected).abs() <= allowed_error(expected)).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: 2**32 words")
@pytest.mark.parametrize("which", ["radius", "angle"])
def test_normals_of_every_word(which):
    """All radii at one angle, all angles at one radius."""
    for start in range(0, 2**32, 2**26):
        moving = torch.arange(start, start + 2**26, device=DEVICE)
        still = torch.full_like(moving, 2**29)
        word, angle = (moving, still) if which == "radius" else (still, moving)
        expected = noise.box_muller(word, angle).to(torch.bfloat16).float()
        result = device_pairs(word.to(torch.int32), angle.to(torch.int32))
        assert ((result - expected).abs() <= allowed_error(expected)).all()


def moments_and_distance(sample):
    """Mean, variance, kurtosis, and the Kolmogorov-Smirnov distance to the normal law rounded to bfloat16."""
    sample = sample.double().flatten()
    values, counts = torch.unique(sample, return_counts=True)
    empirical = counts.cumsum(0) / len(sample)
    following = values.to(torch.bfloat16).nextafter(torch.tensor(math.inf, dtype=torch.bfloat16)).double()
    law = torch.from_numpy(stats.norm.cdf(((values + following) / 2).numpy()))
    variance = sample.var()
    kurtosis = (sample - sample.mean()).pow(4).mean() / variance**2
    return sample.mean(), variance, kurtosis, (empirical - law).abs().max()


def test_law_of_ten_million_normals():
    """Each moment within five standard errors, and the distance below the one-in-a-million quantile.

    Rounding to bfloat16 adds a variance of about 2^-18/3 x^2 to each number: far below the bounds. Words are the
    stream's, which the kernels make bit for bit; the mapping is theirs.
    """
    count = 10**7
    words = integers.stream_words(torch.arange(10), torch.arange(count // 40), torch.tensor([0]), (11, 0))
    w0, w1, w2, w3 = (word.flatten().to(torch.int32) for word in words)
    sample = device_pairs(torch.cat([w0, w2]), torch.cat([w1, w3])).cpu()
    assert sample.numel() == count
    mean, variance, kurtosis, distance = moments_and_distance(sample)
    assert abs(mean) < 5 / math.sqrt(count)
    assert abs(variance - 1) < 5 * math.sqrt(2 / count) + 2**-17
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count) + 2**-14
    assert distance < math.sqrt(-math.log(1e-6 / 2) / (2 * count))
