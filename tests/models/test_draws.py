"""Stochastic models: the same random numbers at every displacement, and the mean over draws of them."""

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from torch import nn

import nntk
from nntk import BlackBox, NonlocalNTK
from nntk.models.draws import Draws
from nntk.models.isolation.generators import seeded

W, X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), inputs(5, 4)


def dropped():
    """A network that drops a third of its hidden units, and of its inputs too."""
    model = mlp(4, 16, 1)
    return nn.Sequential(nn.Dropout(0.3), *model[:2], nn.Dropout(0.3), model[2]).train()


def noisy(p, x, seed):
    """Outputs with noise that multiplies and noise that is added."""
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return (x @ p["w"].T).tanh() * (1 + noise) + 100 * noise


def test_noise_that_is_added_cancels():
    """A difference is taken under one draw: what does not depend on the parameters leaves no trace."""
    kernel = NonlocalNTK(lambda p, x, seed: noisy(p, x, seed), parameters={"w": W}, samples=16, draws=1)
    without = NonlocalNTK(
        lambda p, x, seed: noisy(p, x, seed) - noisy({"w": 0 * p["w"]}, x, seed),
        parameters={"w": W}, samples=16, draws=1,
    )  # fmt: skip
    assert relative_error(kernel.differences(X), without.differences(X)) < 1e-9
    assert torch.equal(kernel(X), kernel(X))


def test_the_kernel_is_that_of_the_mean_over_draws():
    """A deterministic function, and what a module with dropout is averaged over."""
    seeds = list(Draws(0, 0, 3))
    by_hand = NonlocalNTK(
        lambda p, x: sum(noisy(p, x, seed) for seed in seeds) / 3, parameters={"w": W}, samples=16, propagation="direct"
    )
    kernel = NonlocalNTK(noisy, parameters={"w": W}, samples=16, draws=3)
    assert relative_error(kernel.differences(X), by_hand.differences(X)) < 1e-9
    assert len(set(seeds)) == 3 and list(Draws(0, 1, 2)) == seeds[1:] and list(Draws(1, 0, 3)) != seeds


def test_many_draws_of_dropout_are_its_mean():
    """For a network that is linear in the dropped units, the kernel tends to that in evaluation mode."""
    one, two = mlp(4, 16, 1)[::2]
    model = nn.Sequential(one, nn.Dropout(0.5), two)
    expected = NonlocalNTK(model.eval(), samples=16)(X)
    few, many = (relative_error(NonlocalNTK(model.train(), samples=16, draws=n)(X), expected) for n in (4, 256))
    assert many < few / 3 and many < 0.1


def test_black_boxes_are_given_a_seed():
    """NumPy's generators serve as well as PyTorch's, with points of their own too."""
    theta = W[0].double().numpy()

    def shot(t, x, seed):
        """Counts of ten shots."""
        p = 1 / (1 + np.exp(-x @ t))
        return (np.random.default_rng(seed).random((10, len(x))) < p).mean(0)

    boxes = (BlackBox(shot, theta), BlackBox(lambda t, seed: shot(t, X.numpy(), seed), theta, points=5))
    box, again = (NonlocalNTK(one, gamma=0.5, samples=64, draws=20) for one in boxes)
    assert torch.equal(box(X.double()), again(torch.arange(5))) and bool((box(X.double()).diagonal() > 0).all())


def test_intervals_hold_the_mean_over_draws():
    """The error of an estimate is that of displacements and draws together, here of draws above all."""

    def scaled(p, x, seed):
        """A function that a uniform number multiplies: its mean square is a third."""
        return (x @ p["w"].T) * torch.rand(1, generator=torch.Generator().manual_seed(seed)).to(x.dtype)

    truth, inside = X @ X.T / 3, 0.0
    for seed in range(100):
        kernel = NonlocalNTK(scaled, parameters={"w": W[:1]}, samples=256, draws=1, seed=seed)
        low, high = kernel.estimate(X, rtol=1e6).interval()
        inside += float(((low <= truth) & (truth <= high)).double().mean()) / 100
    # Entries share their draws: a hundred coins of 95 %, and twice their standard deviation.
    assert 0.91 <= inside <= 0.99


def test_generators_go_on_as_before():
    """Other users of PyTorch's random numbers notice nothing."""
    kernel = NonlocalNTK(dropped(), samples=2, draws=2)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    kernel(X)
    with seeded(3, X.device):
        torch.rand(1)
    assert torch.equal(torch.rand(2), expected)


def test_chunks_of_displacements_do_not_matter():
    """Each is evaluated at all inputs, so that the noise of an input is the same."""
    options = {"samples": 9, "draws": 2}
    result = (NonlocalNTK(dropped(), max_memory=budget, **options)(X) for budget in (2**20, None))
    assert torch.equal(*result)


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (dropped(), {}, ValueError, r"layer '0' .Dropout. is in training mode; call model.*draws=16"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            {"draws": 2},
            ValueError,
            r"\(BatchNorm1d\) is in training",
        ),
        (mlp(4, 3), {"draws": 0}, ValueError, "draws must be at least 1"),
        (mlp(4, 3), {"draws": 1.5}, TypeError, "draws must be an integer"),
        (mlp(4, 3), {"draws": 1, "propagation": "difference"}, ValueError, "propagation must be 'auto' or 'direct'"),
        (
            mlp(4, 3),
            {"draws": 1, "precision": "bf16"},
            ValueError,
            "for a stochastic model; got 'auto' and 'bf16'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_an_error(model, settings, error, message):
    """On construction."""
    with pytest.raises(error, match=message):
        nntk.NonlocalNTK(model, **settings)
