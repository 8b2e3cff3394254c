"""The random stream: known answers, an independent oracle, and independence of how it is cut."""

import itertools
from contextlib import nullcontext

import numpy as np
import philox_oracle as oracle
import pytest
import scipy.stats
import torch
from conftest import plain_torch

from nntk.kernels.philox import Directions, integers, noise, parse, reference, slabs, split_seed, unit_displacements
from nntk.kernels.philox.source import source_of

CPU = torch.device("cpu")
EDGES = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
SEED = 0xA4093822_299F31D0


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def backend(request):
    """Plain torch, the definition, and the compiled kernels."""
    with plain_torch() if request.param == "plain" else nullcontext():
        yield


def words(counters, key):
    return torch.stack(torch.broadcast_tensors(*integers.philox(tuple(counters.unbind(-1)), key)), -1).numpy()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter, key, expected):
    """The answers published with Random123."""
    assert [f"{word:08x}" for word in words(torch.tensor(counter), key)] == expected.split()


def test_integers_equal_the_oracle_at_random_and_edge_counters():
    """Bit for bit, for 10^6 random counters and all combinations of edges, under edge keys."""
    edges = np.array(list(itertools.product(EDGES, repeat=4)), dtype=np.int64)
    random = np.random.default_rng(0).integers(0, 2**32, (1_000_000, 4), dtype=np.int64)
    for key in ((0, 0), (2**32 - 1, 2**31), split_seed(SEED)):
        counters = np.concatenate((edges, random)) if key == (0, 0) else edges
        np.testing.assert_array_equal(words(torch.from_numpy(counters), key), oracle.philox(counters, key))


SHAPES = [(1,), (5,), (130,), (1, 1), (7, 3), (4, 16), (9, 33), (6, 2, 3, 3)]


def some_indices(shape):
    return [np.unravel_index(i, shape) for i in {0, *np.linspace(0, np.prod(shape) - 1, 23, dtype=int).tolist()}]


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_equal_the_oracle(shape):
    """Every sampled entry has the bit that the layout names."""
    rows = torch.tensor([0, 3, 2**32 - 1])
    result = unit_displacements(rows, 2**32 - 1, shape, SEED, "rademacher")
    for (i, m), index in itertools.product(enumerate(rows.tolist()), some_indices(shape)):
        assert result[i][index] == oracle.sign(m, 2**32 - 1, shape, index, SEED)


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_equal_the_oracle(shape):
    """Every sampled entry is the oracle's normal within one bfloat16 rounding."""
    rows = torch.tensor([0, 3, 2**32 - 1])
    result = unit_displacements(rows, 7, shape, SEED)
    for (i, m), index in itertools.product(enumerate(rows.tolist()), some_indices(shape)):
        expected = oracle.normal(m, 7, shape, index, SEED)
        assert abs(float(result[i][index]) - expected) <= 2.0**-8 * abs(expected) + 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_flipout_equals_the_oracle(shape):
    """Every sampled entry is the product of the three signs that the definition names."""
    rows = torch.tensor([0, 3, 8, 2**32 - 1])
    result = unit_displacements(rows, 7, shape, SEED, "flipout(5)")
    for (i, m), index in itertools.product(enumerate(rows.tolist()), some_indices(shape)):
        assert result[i][index] == oracle.flipout(m, 7, shape, index, SEED, 5)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_lowrank_equals_the_oracle(shape, rank):
    """Every entry, to float64 rounding; a hundredth where a factor's rounding to bfloat16 fell the other way."""
    rows = torch.tensor([0, 3, 2**32 - 1])
    result = unit_displacements(rows, 7, shape, SEED, f"lowrank({rank})", torch.float64).numpy()
    error = np.abs(result - np.stack([oracle.lowrank(m, 7, shape, SEED, rank) for m in rows.tolist()]))
    assert np.median(error) < 1e-12 and error.max() < 0.01 * np.abs(result).max()


def test_the_factors_of_a_displacement_multiply_to_it():
    """The factors that an evaluation uses for flipout and lowrank multiply to the displacement itself."""
    rows, shape, key = torch.tensor([4, 0, 9]), (13, 37), split_seed(SEED)
    r, s = reference.flipout_signs(rows, {2: shape}, key, torch.float64, source=source_of(CPU))[2]
    base = reference.flipout_bases(rows % 4, {2: shape}, key, torch.float64, source=source_of(CPU))[2]
    result = unit_displacements(rows, 2, shape, SEED, "flipout(4)", torch.float64)
    assert torch.equal(base * r[:, :, None] * s[:, None], result)
    left, right, scale = reference.lowrank_factors(rows, {2: shape}, 3, key, torch.float32, source=source_of(CPU))[2]
    result = unit_displacements(rows, 2, shape, SEED, "lowrank(3)", torch.float64)
    torch.testing.assert_close(scale[:, None, None] * (left.double().mT @ right.double()), result, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.square().sum((1, 2)), torch.full_like(scale, 13 * 37), rtol=1e-14, atol=0)


def test_a_vanishing_product_of_factors_is_no_displacement():
    """The scale is zero, not infinite."""
    left, right = torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[[1.0]], [[3.0]]])
    assert reference.lowrank_scale(left, right).tolist() == pytest.approx([0, 1 / 6])


def test_normals_are_exact_in_bfloat16_and_equal_in_every_dtype():
    """Rounding to bfloat16 is part of the definition."""
    result = {dtype: unit_displacements(torch.arange(3), 1, (20, 37), 5, dtype=dtype) for dtype in reference_dtypes()}
    for values in result.values():
        assert torch.equal(values.double(), result[torch.float64])
    assert torch.equal(result[torch.float64].to(torch.bfloat16).double(), result[torch.float64])


def reference_dtypes():
    return (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("shape", [(300,), (13, 21), (16, 64), (8, 3, 5)])
def test_slabs_and_row_subsets_give_the_same_numbers(shape, directions):
    """A displacement does not depend on how it is cut, nor on which rows are made beside it, nor on their order."""
    whole = unit_displacements(torch.arange(10), 3, shape, SEED, directions)
    order = torch.tensor([7, 2, 9])
    key = split_seed(SEED)
    cut = list(slabs.slabs_of(3, shape, 5))
    assert len(cut) > 1
    parts = [reference.unit_slabs(directions, order, [slab], key, torch.float32, source_of(CPU))[0] for slab in cut]
    assert torch.equal(torch.cat(parts, 1), whole[order])
    assert torch.equal(
        torch.cat(reference.unit_slabs(directions, order, cut, key, torch.float32, source_of(CPU)), 1), whole[order]
    )


def test_parameters_made_together_are_those_made_alone(directions):
    """Batches of small tensors and cuts of large ones change nothing."""
    shapes = {4: (7, 33), 0: (130,), 9: (), 2: (40, 17), 5: (3, 2, 2)}
    rows = torch.tensor([3, 1, 8])
    alone = {ordinal: unit_displacements(rows, ordinal, shape, SEED, directions) for ordinal, shape in shapes.items()}
    for numbers in (1, 200, 10**6):
        result = reference.displacements(
            directions, rows, shapes, split_seed(SEED), torch.float32, numbers, source_of(CPU)
        )
        assert list(result) == list(shapes) and all(torch.equal(result[ordinal], alone[ordinal]) for ordinal in shapes)


def test_empty_shapes_and_rows(directions):
    """Nothing asked for, nothing made."""
    assert unit_displacements(torch.arange(3), 0, (5, 0), 0, directions).shape == (3, 5, 0)
    assert unit_displacements(torch.arange(0), 0, (5, 2), 0, directions).shape == (0, 5, 2)
    assert unit_displacements(torch.arange(3), 0, (), 0, directions).shape == (3,)


def test_threads_do_not_matter(directions):
    """One thread and two give the same bits."""
    threads = torch.get_num_threads()
    result = []
    for number in (1, 2):
        torch.set_num_threads(number)
        result.append(unit_displacements(torch.arange(64), 0, (128, 96), 9, directions))
    torch.set_num_threads(threads)
    assert torch.equal(*result)


def test_row_parameter_seed_and_purpose_change_every_word():
    """Streams that differ in one of them share nothing."""
    block = torch.arange(1000)
    base = torch.stack(integers.stream_words(torch.tensor([0]), block, torch.tensor([0]), (1, 0)))
    for row, ordinal, key, purpose in ((1, 0, (1, 0), 0), (0, 1, (1, 0), 0), (0, 0, (1, 1), 0), (0, 0, (1, 0), 1)):
        other = torch.stack(integers.stream_words(torch.tensor([row]), block, torch.tensor([ordinal]), key, purpose))
        assert (other == base).float().mean() < 1e-3


def test_blocks_beyond_32_bits_are_new():
    """The high bits of a block number count."""
    zero = torch.tensor([0])
    low, high = (torch.stack(integers.stream_words(zero, zero + 5 + far, zero, (1, 0))) for far in (0, 2**32))
    assert not torch.equal(low, high)
    np.testing.assert_array_equal(high.flatten(), oracle.block_words(5 + 2**32, 0, 0, 1))


def test_normals_follow_the_normal_law():
    """Moments within five standard errors, and Kolmogorov-Smirnov against the bfloat16-rounded normal law."""
    sample = unit_displacements(torch.arange(40), 0, (250, 1000), 11).flatten().numpy()
    n = len(sample)
    assert abs(sample.mean()) < 5 / n**0.5
    assert abs(sample.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(scipy.stats.kurtosis(sample)) < 5 * (24 / n) ** 0.5
    # Rounding moves no probability across the midpoints between neighbouring bfloat16 numbers: test it there.
    grid = np.unique(sample)
    midpoints = ((grid[1:].astype(np.float64) + grid[:-1]) / 2)[::7]
    empirical = np.searchsorted(np.sort(sample), midpoints, side="right") / n
    assert np.abs(empirical - scipy.stats.norm.cdf(midpoints)).max() < 1.95 / n**0.5  # 0.1 % level


def test_extreme_words_give_finite_normals():
    """The radius is zero at the largest word and 6.76 at the smallest; never NaN."""
    edges = torch.tensor(EDGES)
    grid = torch.cartesian_prod(edges, edges)
    normals = noise.box_muller(grid[:, 0], grid[:, 1])
    assert torch.isfinite(normals).all()
    assert 6.7 < normals.abs().max() < 6.8
    assert (normals[grid[:, 0] == 2**32 - 1] == 0).all()


@pytest.mark.parametrize("directions", ["rademacher", "flipout(16)"])
def test_signs_are_balanced_and_uncorrelated(directions):
    """Mean and neighbour correlations of a million signs within five standard errors."""
    result = unit_displacements(torch.arange(16), 0, (256, 256), 3, directions)
    n = result.numel()
    for product in (
        result,
        result[1:] * result[:-1],
        result[:, 1:] * result[:, :-1],
        result[..., 1:] * result[..., :-1],
    ):
        assert abs(float(product.sum())) < 5 * n**0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be at most"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"directions": "cauchy"}, ValueError, "directions must be one of 'gaussian', 'rademacher', 'flipout"),
        ({"directions": "flipout"}, ValueError, r"got 'flipout'. Write 'flipout\(8\)', for example."),
        ({"ordinal": -1}, ValueError, "ordinal must be at least 0"),
        ({"ordinal": 0.5}, TypeError, "ordinal must be an integer, got 0.5"),
        ({"sample_ids": torch.arange(2.0)}, TypeError, "sample_ids must be an int64 vector"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    """Each error names the argument, the value and what is allowed."""
    good = {"sample_ids": torch.arange(2), "ordinal": 0, "shape": (2, 2), "seed": 0}
    with pytest.raises(error, match=message):
        unit_displacements(**{**good, **arguments})


def test_names_of_directions():
    """Read and written the same; whatever else is refused."""
    names = {"gaussian": 0, "rademacher": 0, "flipout(1)": 1, "flipout(1024)": 1024, "lowrank(64)": 64}
    for name, count in names.items():
        assert parse(name) == Directions(name.partition("(")[0], count) and str(parse(name)) == name
    refused = ["", "flipout", "lowrank", "flipout()", "flipout(0)", "flipout(1025)", "lowrank(65)", "lowrank(-1)"]
    refused += ["flipout(08)", "flipout(8", "flipout(8))", "flipout( 8)", "Gaussian", "gaussian(2)", "lowrank(²)", 8]
    for name in refused:
        with pytest.raises(ValueError, match="directions must be one of"):
            parse(name)
