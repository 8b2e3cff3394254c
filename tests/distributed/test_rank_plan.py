"""Plans over ranks: least work, shared by all ranks, at the rates given."""

from dataclasses import replace

import pytest
from conftest import inputs, mlp
from torch import nn

from nntk import NonlocalNTK, Stream
from nntk.distributed import H100, RankPlan


@pytest.fixture
def kernel():
    """Kernel of a small MLP."""
    return NonlocalNTK(mlp(3, 6, 2), samples=64)


def test_one_rank_has_the_plan_of_one_device(kernel):
    """Nothing is added to it."""
    x = inputs(8, 3)
    one, plain = kernel.plan(x, ranks=1), kernel.plan(x)
    assert type(one) is type(plain) and replace(one, free=0) == replace(plain, free=0)


def test_ranks_share_the_work_of_one_device(kernel):
    """Displacements or inputs: products of d parameters for two members of each pair, and half of the matrix."""
    x = inputs(80, 3)
    weights = [3 * 6, 6 * 2]
    for over in ("displacements", "inputs", "features"):
        for ranks in (2, 4, 8):
            plan = kernel.plan(x, ranks=ranks, over=over)
            assert isinstance(plan, RankPlan) and plan.ranks == ranks
            held = 80 if over == "displacements" else 80 // ranks
            products = {"direct": 2 * sum(weights), "difference": 2 * weights[0] + 3 * weights[1]}[plan.propagation]
            evaluations = 64 * 80 / ranks
            assert plan.flops == 2 * (held * sum(weights) + evaluations * products)
            sums = 0 if over == "features" else 2 * 64 * 2 * (80 * 81 / 2) / ranks
            assert plan.assembly_seconds == pytest.approx(sums / H100.assembly)
            parts = plan.product_seconds + plan.noise_seconds + plan.assembly_seconds + plan.exchange_seconds
            assert plan.seconds == parts and plan.fits


def test_noise_is_drawn_by_every_rank_that_has_other_inputs(kernel):
    """Over displacements it is divided among the ranks."""
    d = 3 * 6 + 6 + 6 * 2 + 2
    x = inputs(80, 3)
    assert kernel.plan(x, ranks=4, over="inputs").noise_seconds == pytest.approx(64 * d / H100.normals)
    assert kernel.plan(x, ranks=4, over="displacements").noise_seconds == pytest.approx(16 * d / H100.normals)


def test_rates_divide_the_work(kernel):
    """Twice the rate is half of the time, and no memory is too little."""
    x = inputs(80, 3)
    plan, fast = kernel.plan(x, ranks=4), kernel.plan(x, ranks=4, rates=replace(H100, products=2 * H100.products))
    assert fast.product_seconds == plan.product_seconds / 2 and fast.exchange_seconds == plan.exchange_seconds
    small = kernel.plan(x, ranks=4, rates=replace(H100, memory=1000.0, bandwidth=1.0))
    assert not small.fits and small.exchange_seconds == small.bytes_sent and "too large" in str(small)


def test_products_of_any_module_are_counted():
    """Two passes for a pair; by rules one more."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Softmax(-1), nn.Linear(5, 2))
    plan = NonlocalNTK(model, samples=64).plan(inputs(80, 3), ranks=4)
    assert plan.flops == 2 * (15 + 10) * (3 if plan.route == "rules" else 2) * 64 * 20


def test_tiles_repeat_evaluations(kernel, monkeypatch):
    """Each tile evaluates the inputs of its rows and of its columns."""
    monkeypatch.setattr("nntk.estimators.rank_plan.TILE_BYTES", 4 * 20**2)
    tiles, rows = (kernel.plan(inputs(80, 3), ranks=5, over=over) for over in ("tiles", "inputs"))
    # 10 tiles of 20 x 20 on 5 ranks, each of 40 inputs, beside 16 inputs of a rank.
    assert tiles.flops == rows.flops * 2 * 40 / 16 and tiles.bytes_sent == 0


def test_what_cannot_be_planned_is_refused(kernel):
    """The message names the argument."""
    x = inputs(8, 3)
    for arguments, message in (
        ({"ranks": 0}, "ranks must be"),
        ({"ranks": 2, "over": "space"}, "over must be one of displacements, inputs, features, tiles"),
        ({"ranks": 2, "x2": x}, "x2 must be None"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel.plan(x, **arguments)
    with pytest.raises(ValueError, match="estimator must be 'energy', got 'plugin'"):
        NonlocalNTK(mlp(3, 6, 2), samples=8, estimator="plugin").plan(x, ranks=2)
    with pytest.raises(ValueError, match="must not be a stream"):
        kernel.plan(Stream([x]), ranks=2)
    with pytest.raises(ValueError, match=r"rates\.bandwidth must"):
        replace(H100, bandwidth=0.0)
