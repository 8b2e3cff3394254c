"""The kernels of weights against the reference, without a GPU in Triton's interpreter."""

import math

import pytest
import torch
from triton_device import DEVICE

from nntk.kernels.fixed_weights import FixedKernel, radii, reference, summarise
from nntk.kernels.fixed_weights.distributions import log_density
from nntk.kernels.fixed_weights.triton import config, launch

KERNELS = {
    "gaussian": FixedKernel("gaussian"),
    "exponential": FixedKernel("exponential"),
    "cauchy": FixedKernel("cauchy"),
    "ball": FixedKernel("ball", gamma=1.1),
    "power": FixedKernel("power", order=1.5),
}
PAIRS = [(name, proposal) for name in KERNELS for proposal in KERNELS]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def laws(name, proposal, d, gamma=1.0):
    """A pair as the op takes it."""
    both = ((one, [KERNELS[one].scale(d, gamma), KERNELS[one].steepness(d)]) for one in (name, proposal))
    return tuple(part for law in both for part in law)


def check(squared, pair):
    """Weights and statistics within a few roundings of the log densities, and zero where those of the reference are."""
    expected, statistics = reference.radial_weights(squared, *pair)
    result, found_value = launch.radial_weights(squared.to(DEVICE), *pair)
    densities = [log_density(squared, law, *parameters) for law, parameters in (pair[:2], pair[2:])]
    sizes = torch.stack(densities).nan_to_num(neginf=0.0).abs().sum(0)
    allowed = 1e-13 + 8 * torch.finfo(torch.float64).eps * float(sizes.max() if len(sizes) else 0)
    torch.testing.assert_close(result.cpu(), expected, rtol=allowed, atol=1e-300)
    torch.testing.assert_close(found_value.cpu(), statistics, rtol=allowed, atol=allowed)
    assert (result.cpu()[expected == 0] <= 1e-300).all()


@pytest.mark.parametrize(("name", "proposal"), PAIRS)
def test_weights_against_the_reference(name, proposal):
    """Every pair of laws, a block and a part of one, in few dimensions and in many."""
    for count, d in ((1000, 3), (1500, 10**4)):
        check(radii(torch.arange(count), 1, KERNELS[proposal], d, 1.0).square(), laws(name, proposal, d))


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
@pytest.mark.parametrize(("name", "proposal"), [("gaussian", "gaussian"), ("ball", "exponential"), ("power", "cauchy")])
def test_every_number_of_displacements(name, proposal, count):
    """None, one, a few, several programs; and the same bits twice."""
    squared, pair = radii(torch.arange(count), 1, KERNELS[proposal], 3, 1.0).square(), laws(name, proposal, 3)
    check(squared, pair)
    first, second = (launch.radial_weights(squared.to(DEVICE), *pair) for _ in range(2))
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))


def test_programs_take_several_blocks(monkeypatch):
    """More blocks than programs; all sizes of the two passes give the same weights."""
    monkeypatch.setattr(config, "pick", lambda count: config.WeightsConfig(block=128, programs=3))
    for count in (1, 385, 1000):
        check(radii(torch.arange(count), 2, KERNELS["cauchy"], 7, 1.0).square(), laws("ball", "cauchy", 7))


@pytest.mark.parametrize("name", list(KERNELS))
def test_equal_laws_give_equal_weights(name):
    """Exactly 1 / M."""
    squared = radii(torch.arange(3000), 3, KERNELS[name], 10**9, 1.0).square().to(DEVICE)
    weights, statistics = launch.radial_weights(squared, *laws(name, name, 10**9))
    assert (weights == 1 / 3000).all() and statistics.tolist() == [0, 3000, 3000]


@pytest.mark.parametrize("gamma", [1e-30, 1e30])
def test_extreme_scales(gamma):
    """Squares of lengths neither vanish nor overflow."""
    squared = radii(torch.arange(100), 4, KERNELS["cauchy"], 10, gamma).square()
    check(squared, laws("gaussian", "cauchy", 10, gamma))


def test_nothing_left_has_no_weight():
    """Zeros, and the statistics of an empty set."""
    squared = torch.full((2000,), 100.0, dtype=torch.float64, device=DEVICE)
    weights, statistics = launch.radial_weights(squared, *laws("ball", "gaussian", 3))
    assert (weights == 0).all() and statistics.tolist() == [-math.inf, 0, 0]
    weights, statistics = launch.radial_weights(squared[:0], *laws("ball", "gaussian", 3))
    assert torch.equal(statistics.cpu(), summarise(squared[:0].cpu())) and not len(weights)


@pytest.mark.parametrize("at", [0, 1500])
def test_a_wrong_length_does_not_pass(at):
    """NaN reaches the sum, whatever the law."""
    squared = torch.ones(2000, dtype=torch.float64, device=DEVICE)
    squared[at] = math.nan
    for name in KERNELS:
        _, statistics = launch.radial_weights(squared, *laws(name, "gaussian", 3))
        assert statistics[1].isnan()


def test_lengths_need_not_be_contiguous():
    """A strided view has the weights of its copy."""
    squared = radii(torch.arange(100), 5, KERNELS["gaussian"], 10, 1.0).square().to(DEVICE)
    pair = laws("cauchy", "gaussian", 10)
    assert torch.equal(launch.radial_weights(squared[::2], *pair)[0],
                       launch.radial_weights(squared[::2].clone(), *pair)[0])  # fmt: skip
