"""The rank update's kernel against the reference, in every mode, by every way to a weight.

Without a GPU it runs in Triton's interpreter, a program at a time.
"""

import math

import pytest
import torch
from conftest import relative_error
from triton_device import DEVICE

from nntk.kernels.assemble import OUTPUTS, gradients, reference
from nntk.kernels.assemble import gram as grams
from nntk.kernels.assemble.triton import config, launch
from nntk.kernels.attention import attend
from nntk.kernels.target import input_precision

# Displacements, inputs of lines and entries, outputs: ones, odd numbers, more than a tile.
SHAPES = ((1, 1, 1, 1), (5, 17, 3, 10), (70, 130, 66, 1))


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(rows, n1, n2, outputs, weighting, halves):
    """The op's arguments, entries included, but for the mode of outputs."""
    scales = random(rows, seed=1).abs().double() + 0.1
    shape = (*((2,) if halves == 2 else ()), rows)
    d1, d2 = random(*shape, n1, outputs, seed=2), random(*shape, n2, outputs, seed=3)
    if weighting == "rows":
        return d1, d2, scales, weighting, *[None] * 8
    if weighting == "weights":
        return d1, d2, scales, weighting, random(rows, n1, seed=4).abs(), random(rows, n2, seed=5).abs(), *[None] * 6
    priors, factors = random(rows, seed=6), random(rows, seed=7).abs()
    priors[0] = -math.inf if rows > 1 else 0
    keys = random(n1, outputs, seed=8), random(n2, outputs, seed=9)
    a, b = (attend(d, weighting, priors, factors, key) for d, key in zip((d1, d2), keys, strict=True))
    shifts = a.statistics[0], b.statistics[0]
    return d1, d2, scales, a.score, a.values, b.values, a.keys, b.keys, priors, factors, *shifts


def symmetric(call):
    """The same without entries of its own."""
    return [None if place in (1, 5, 7, 11) else argument for place, argument in enumerate(call)]


def doubled(call):
    return [part.double() if isinstance(part, torch.Tensor) else part for part in call]


def placed(call):
    return [part.to(DEVICE) if isinstance(part, torch.Tensor) else part for part in call]


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(
    ("weighting", "halves"), [("rows", 1), ("weights", 1), ("dot", 1), ("dot", 2), ("distance", 1), ("distance", 2)]
)
def test_kernel_against_float64(weighting, halves, outputs):
    """Within twice the reference's own error in float32; exactly symmetric; twice the same bits."""
    for shape in SHAPES:
        if outputs != "trace" and shape[0] == 70 and weighting != "rows":
            continue  # With one output, every mode computes the trace: one weighting shows the tiles of the others.
        call = arguments(*shape, weighting, halves)
        for some in (call, symmetric(call)):
            expected = reference.energy(*doubled(some), outputs)
            result = launch.energy(*placed(some), outputs)
            allowed = relative_error(reference.energy(*some, outputs), expected)
            # Exponents are float32 on the device: their own rounding is granted.
            least = torch.finfo(torch.float32).eps * (1 if weighting in ("rows", "weights") else 8)
            assert relative_error(result.cpu(), expected) <= 2 * max(allowed, least), shape
            if some[1] is None:
                swapped = result.transpose(0, 1)
                assert torch.equal(result, swapped.transpose(2, 3) if outputs == "full" else swapped)
        assert torch.equal(result, launch.energy(*placed(some), outputs))


@pytest.mark.parametrize("size", [-1e3, 1e3])
@pytest.mark.parametrize("halves", [1, 2])
def test_large_exponents_stay_finite(halves, size):
    """Far from zero on either side, with terms beyond the last displacement: only differences count."""
    d = random(*((2,) if halves == 2 else ()), 5, 17, 1, seed=1)
    scores = size + random(*d.shape[:-1], seed=2)
    one, zero, scales = torch.ones(5), torch.zeros(5), torch.ones(5).double()
    for dtype, close in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        a = attend(d, "given", zero, one, scores=scores.to(dtype))
        call = d, None, scales, "given", a.values, None, None, None, zero, one, a.statistics[0], None
        result = launch.energy(*placed(call), "trace").cpu()
        assert relative_error(result, reference.energy(*doubled(call), "trace")) < close


@pytest.mark.parametrize("block", [16, 32])
def test_tiles_do_not_matter(block, monkeypatch):
    """The same kernel, to rounding."""
    call = arguments(20, 40, 33, 3, "distance", 2)
    whole = launch.energy(*placed(call), "trace")
    monkeypatch.setattr(config, "tiles", lambda *_: config.Tiles(block, 16, 4, 1, 1))
    assert relative_error(launch.energy(*placed(call), "trace"), whole) < 1e-6


def test_nothing_to_do():
    """No inputs, or no displacements."""
    for rows, n1 in ((3, 0), (0, 2)):
        call = placed((torch.ones(rows, n1, 1), None, torch.ones(rows), "rows", *[None] * 8))
        result = launch.energy(*call, "trace")
        assert result.shape == (n1, n1) and (result == 0).all()


def test_sums_of_very_many_terms_are_left_to_the_reference():
    """Terms, rows and columns are counted in 32 bits."""

    def d(*shape):
        return torch.empty(shape, device="meta")

    assert launch._supports(d(1, 3, 1), d(1, 2**30, 1), "trace") and not launch._supports(
        d(1, 3, 1), d(1, 2**31, 1), "trace"
    )
    assert not launch._supports(d(2**15, 3, 2**16), d(2**15, 3, 2**16), "trace")
    assert launch._supports(d(1, 3, 2), d(1, 2**30, 2), "trace") and not launch._supports(
        d(1, 3, 2), d(1, 2**30, 2), "full"
    )


@pytest.mark.parametrize("directions", ["gaussian", "rademacher", "flipout(2)", "lowrank(1)"])
def test_slabs_of_the_gram_and_of_gradients(directions):
    """Products with slabs of generated noise equal those of the reference, which generates its own."""
    parameters, rows = [torch.zeros(7, 20), torch.zeros(5)], torch.tensor([0, 3, 2**32 - 1])
    stream = (parameters, [0, 1], rows, 1, 2, directions)
    there = (placed(parameters), [0, 1], rows.to(DEVICE), 1, 2, directions)
    close = 1e-6 if DEVICE == "cpu" else 1e-3
    assert relative_error(launch.displacement_gram(*there).cpu(), grams.displacement_gram(*stream)) < close
    d, weights, norms = random(3, 4, 2, seed=1), torch.full((3,), 1 / 3), torch.full((3,), 145.0)
    result = launch.nonlocal_gradients(*placed((d, weights, norms)), *there)
    assert relative_error(result.cpu(), gradients.nonlocal_gradients(d, weights, norms, *stream)) < close
    some = (d, None, weights, None, norms)
    result = launch.inner_product_of_gradients(*placed(some), *there, True, "full")
    assert relative_error(result.cpu(), gradients.inner_product_of_gradients(*some, *stream, True, "full")) < close


def test_precision_is_float32s():
    """Products are split on tensor cores, and whole elsewhere."""
    assert [input_precision("fp32", arch) for arch in ("sm_90", "gfx942", "interpreter")] == ["tf32x3", "ieee", "ieee"]
