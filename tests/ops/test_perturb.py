"""Perturbation evaluation: differences against float64 on the same displacements, and what they must not depend on."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ACTIVATIONS, JUMPS, inputs, mlp, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nntk import FixedKernel, NonlocalNTK
from nntk.bench.measure.reference import float64_differences, float64_kernel
from nntk.kernels import perturb
from nntk.kernels.activations import encode
from nntk.kernels.fixed_weights import radii
from nntk.kernels.mlp import unperturbed
from nntk.kernels.perturb import Layer, mlp_differences
from nntk.kernels.perturb.config import (
    ReferencePlan,
    choose_precision,
    choose_propagation,
    count_noise_numbers,
    plan_reference,
    predicted_rounding_error,
)
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.reference import ROUNDINGS
from nntk.kernels.philox import parse, unit_displacements
from nntk.kernels.philox.reference import lowrank_factors
from nntk.models.recognise import recognise

GAMMAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_differences_keep_their_digits_at_every_gamma(name, directions):
    """Relative error at most 1e-5 in float32, widths up to 512; at most one in 10^6 activations lands across a jump."""
    model, x = mlp(33, 512, 130, 3, activation=name), inputs(65, 33)
    flips = evaluated = 0
    for gamma in GAMMAS:
        kernel = NonlocalNTK(model, gamma=gamma, samples=8, directions=directions, propagation="difference")
        expected = float64_differences(kernel, x)
        error = (kernel.differences(x).double() - expected).abs()
        # An activation across a jump shows as an entry of D that is off by far more than rounding.
        flipped = (error > 1e-3 * expected.abs().mean()).any(-1) if name in JUMPS else torch.zeros(error.shape[:-1])
        flips, evaluated = flips + int(flipped.sum()), evaluated + 2 * flipped.numel() * (512 + 130)
        same = flipped == 0
        assert error[same].norm() <= 1e-5 * expected[same].norm(), f"gamma {gamma}"
    assert flips <= max(1, 1e-6 * evaluated)


@pytest.mark.parametrize("name", ["relu", "tanh", "sign"])
def test_direct_evaluation_loses_them(name):
    """The reason for propagating differences: at gamma 1e-6 subtraction is off by more than a thousandth."""
    model, x = mlp(33, 512, 130, 3, activation=name), inputs(65, 33)
    kernel = NonlocalNTK(model, gamma=1e-6, samples=8, propagation="direct")
    assert relative_error(kernel.differences(x), float64_differences(kernel, x)) > 1e-3


def test_float64_is_exact_to_its_rounding(directions, propagation):
    """In float64 both forms agree with the definition."""
    model, x = mlp(7, 33, 20, 2, dtype=torch.float64), inputs(9, 7, torch.float64)
    kernel = NonlocalNTK(model, gamma=0.1, samples=5, directions=directions, propagation=propagation)
    torch.testing.assert_close(kernel.differences(x), float64_differences(kernel, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gamma", [1e-1, 1e-6, 1e-20])
def test_difference_of_a_linear_model_is_the_displacement(gamma, directions):
    """For f = W x + b the difference is E x + e, whatever gamma."""
    model, x = mlp(5, 3), inputs(4, 5)
    kernel = NonlocalNTK(model, gamma=gamma, samples=6, directions=directions, propagation="difference")
    for m, difference in enumerate(kernel.differences(x)):
        delta = kernel.displacements(m)
        expected = x.double() @ delta["0.weight"].double().T + delta["0.bias"].double()
        assert relative_error(difference, expected) < 1e-6


def test_halves_make_the_odd_part(directions, propagation):
    """D+ and D- are the one-sided differences at +delta and -delta, and D = (D+ - D-) / 2."""
    model, x = mlp(5, 17, 2, dtype=torch.float64), inputs(6, 5, torch.float64)
    settings = {"gamma": 0.5, "samples": 7, "directions": directions, "propagation": propagation}
    plus, minus = NonlocalNTK(model, **settings).differences(x, halves=True)
    one_sided = NonlocalNTK(model, antithetic=False, **settings).differences(x)
    torch.testing.assert_close(plus, one_sided, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close((plus - minus) / 2, NonlocalNTK(model, **settings).differences(x))
    mirrored = nn.functional.linear  # f(theta - delta) by hand
    delta = NonlocalNTK(model, **settings).displacements(3)
    moved = {name: parameter - delta[name] for name, parameter in model.named_parameters()}
    h = torch.tanh(mirrored(x, moved["0.weight"], moved["0.bias"]))
    expected = mirrored(h, moved["2.weight"], moved["2.bias"]) - model(x)
    torch.testing.assert_close(minus[3], expected.detach(), rtol=1e-11, atol=1e-13)


def unit(model, x, rows=None, **settings):
    rows = torch.arange(11) if rows is None else rows
    settings = {"directions": "gaussian", "propagation": "difference", **settings}
    return mlp_differences(x, recognise(model).layers, rows, torch.full(rows.shape, 0.01), 3, **settings)


def test_chunks_order_batches_and_threads_do_not_matter(directions, propagation):
    """The same D to float rounding, and the same norms, however the work is cut."""
    model, x = mlp(19, 260, 33, 2, activation="relu"), inputs(300, 19)
    settings = {"directions": directions, "propagation": propagation}
    whole, norms = unit(model, x, **settings)
    tolerance = 1e-6 if propagation == "difference" else 1e-4

    def check(part, expected):
        assert relative_error(part, expected) < tolerance

    small, small_norms = unit(model, x, max_bytes=2**20, **settings)
    check(small, whole)
    torch.testing.assert_close(small_norms, norms, rtol=1e-7, atol=0)
    order = torch.tensor([7, 0, 10, 3])
    shuffled, shuffled_norms = unit(model, x, order, **settings)
    check(shuffled, whole[order])
    torch.testing.assert_close(shuffled_norms, norms[order], rtol=1e-7, atol=0)
    check(torch.cat([unit(model, x[:1], **settings)[0], unit(model, x[1:], **settings)[0]], dim=1), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = unit(model, x, **settings)[0]
    torch.set_num_threads(threads)
    check(alone, whole)


def test_every_cut_of_the_plan_gives_the_same_differences(monkeypatch, directions, propagation):
    """Tiles of rows and inputs, slabs, kept noise and noise made anew: all the same D."""
    model, x = mlp(19, 40, 33, 2), inputs(40, 19)
    settings = {"directions": directions, "propagation": propagation}
    whole, norms = unit(model, x, **settings)
    plans = [
        ReferencePlan(40, 11, 40, 11, 1 << 20, True),
        ReferencePlan(40, 4, 13, 3, 1 << 20, True),
        ReferencePlan(22, 3, 22, 1, 100, True),
        ReferencePlan(22, 1, 22, 1, 1, False),
        ReferencePlan(22, 2, 22, 2, 100, False),
    ]
    for plan in plans:
        monkeypatch.setattr(perturb.reference, "plan_reference", lambda *_, plan=plan: plan)
        result, made_norms = unit(model, x, **settings)
        assert relative_error(result, whole) < (1e-6 if propagation == "difference" else 1e-4)
        torch.testing.assert_close(made_norms, norms, rtol=1e-7, atol=0)


@pytest.mark.parametrize("fits_caches", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize("budget", [2**20, 2**24, 2**27, 2**31])
def test_plans_fit_their_budget(budget, directions, fits_caches):
    """The bytes that a plan holds stay within the budget, for small and large networks and numbers of inputs."""
    for n in (1, 64, 10**6):
        for widths in ((1, 1), (64, 256, 256, 1), (784, 1024, 1024, 10)):
            plan = plan_reference(n, 1000, widths, parse(directions), 2, 4, budget, fits_caches)
            per_sample, shared = count_noise_numbers(parse(directions), widths)
            kept = plan.group_samples * per_sample + shared if plan.keep_noise else 0
            held = plan.tile_samples * plan.tile_inputs * 2 * max(widths) * 8 * 4
            held_inputs = plan.block_inputs * sum(widths) * 24
            smallest = 48 * 4 * max(widths) + 24 * sum(widths) + 128 * 2 * max(widths) * 8 * 4
            assert 48 * plan.slab_numbers + 4 * kept + held + held_inputs <= max(budget, smallest)


class CountedOperators(TorchDispatchMode):
    """Context that counts the operators of PyTorch, each a launch on a GPU, and those that would wait for the GPU."""

    def __init__(self):
        """Begin with none."""
        super().__init__()
        self.count, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one; those that give a number to Python wait for the device."""
        self.count += 1
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_gets_few_large_operations(monkeypatch, directions, propagation, dtype):
    """Blocked for a GPU, the reference gives the same D by few operators, and reads two numbers a call."""
    model, x = mlp(64, 256, 256, 1, activation="relu").to(dtype), inputs(256, 64).to(dtype)
    layers, samples = recognise(model).layers, 64
    names, parameters = encode([layer.activation for layer in layers])
    tensors = [layer.weight for layer in layers], [layer.bias for layer in layers], names, parameters
    scales = torch.full((samples,), 0.1, dtype=dtype)
    call = (*tensors, [0, 2, 4], [1, 3, 5], torch.arange(samples), scales, 1, 2, directions, "odd", propagation, "fp32")
    results, counted = [], []
    for fits_caches, budget in ((True, 2**27), (False, 2**31)):
        plan = partial(plan_reference, fits_caches=fits_caches)
        monkeypatch.setattr(perturb.reference, "plan_reference", lambda *sizes, plan=plan: plan(*sizes[:7]))
        with CountedOperators() as operators:
            results.append(perturb.reference.mlp_differences(x, *call, budget)[0])
        counted.append(operators)
    assert relative_error(results[1], results[0]) < 1e-4
    assert counted[1].count < counted[0].count / (2 if "flipout" in directions or "lowrank" in directions else 8)
    assert counted[1].reads <= 2


def test_rows_may_have_different_scales():
    """Scales are a vector: each row is the one it would be alone."""
    model, x, rows = mlp(5, 16, 2), inputs(6, 5), torch.arange(4)
    scales = torch.tensor([1e-1, 1e-2, 1e-3, 1e-5])
    layers = recognise(model).layers
    together, _ = mlp_differences(x, layers, rows, scales, 0, propagation="difference")
    for m in range(4):
        alone, _ = mlp_differences(x, layers, rows[m : m + 1], scales[m : m + 1], 0, propagation="difference")
        assert relative_error(together[m], alone[0]) < 1e-6


def test_frozen_parameters_stay(directions, propagation):
    """A frozen tensor is not displaced, and the others keep their streams."""
    model, x = mlp(5, 16, 9, 2, dtype=torch.float64), inputs(6, 5, torch.float64)
    everything = NonlocalNTK(model, samples=3, directions=directions).displacements(1)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    kernel = NonlocalNTK(model, samples=3, directions=directions, propagation=propagation)
    some = kernel.displacements(1)
    assert list(some) == ["0.bias", "2.weight", "4.bias"] and kernel.num_params == 16 + 9 * 16 + 2
    # Fewer parameters are shorter; their directions stay.
    shorter = some["4.bias"].norm() / everything["4.bias"].norm()
    assert directions != "gaussian" or shorter == 1
    for name in some:
        torch.testing.assert_close(some[name], shorter * everything[name], rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel.differences(x), float64_differences(kernel, x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        kernel.squared_norms()[1], sum(delta.square().sum() for delta in some.values()), rtol=1e-6, atol=0
    )


def test_tied_layers_move_together(directions, propagation):
    """A layer that stands twice has one displacement, counted once."""
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(8, 1)).double()
    x = inputs(5, 8, torch.float64)
    kernel = NonlocalNTK(model, samples=4, directions=directions, propagation=propagation)
    assert kernel.num_params == 72 + 9
    torch.testing.assert_close(kernel.differences(x), float64_differences(kernel, x), rtol=1e-10, atol=1e-12)
    listed = torch.stack([sum(e.square().sum() for e in kernel.displacements(m).values()) for m in range(4)])
    torch.testing.assert_close(kernel.squared_norms(), listed, rtol=1e-6, atol=0)


def test_odd_sizes_and_empty_inputs(directions):
    """Widths, inputs and samples of one; no inputs give no columns but all norms."""
    for widths in ((1, 1), (1, 1, 1), (3, 1, 17, 1), (2, 130, 1)):
        for n, m in ((1, 1), (3, 2), (0, 3)):
            model, x = mlp(*widths, dtype=torch.float64), inputs(n, widths[0], torch.float64)
            kernel = NonlocalNTK(model, samples=m, directions=directions, propagation="difference")
            result = kernel.differences(x)
            assert result.shape == (m, n, widths[-1])
            torch.testing.assert_close(result, float64_differences(kernel, x), rtol=1e-9, atol=1e-12)
            assert (unit(model, x, torch.arange(m), directions=directions)[1] > 0).all()
    assert unit(model, x, torch.arange(0), directions=directions)[0].shape == (0, 0, 1)


def test_auto_takes_the_direct_form_only_where_its_error_is_small():
    """The choice is a function of the model and gamma alone, and its prediction bounds the error seen."""
    cpu = torch.device("cpu")
    for name in ("relu", "sign"):
        model, x = mlp(33, 256, 130, 1, activation=name), inputs(40, 33)
        layers = recognise(model).layers
        chosen = [choose_propagation(layers, gamma / math.sqrt(2), 1024, cpu, "gaussian") for gamma in GAMMAS]
        assert chosen[0] == "direct" and chosen[-1] == "difference"
        for gamma, form in zip(GAMMAS, chosen, strict=True):
            kernel = NonlocalNTK(model, gamma=gamma, samples=16, propagation=form)
            seen = relative_error(kernel.differences(x), float64_differences(kernel, x))
            assert seen < 0.1 * math.sqrt(2 / 1024)
    assert choose_propagation(layers, 0.1, 1024, torch.device("cuda"), "gaussian") == "difference"
    assert choose_propagation(layers, 0.1, 1024, cpu, "lowrank(1)") == "difference"  # direct evaluation saves nothing


@pytest.mark.parametrize("case", ["frozen weights", "saturated output", "sawtooth"])
def test_auto_propagates_where_the_prediction_would_not_hold(case):
    """Large inputs under frozen weights, an output that saturates, teeth finer than the rounding: the error in K."""
    model, x = mlp(16, 64, 64, 1, activation="sawtooth" if case == "sawtooth" else "relu"), inputs(20, 16)
    if case == "frozen weights":
        x = 1e5 * x
        for layer in model[::2]:
            layer.weight.requires_grad_(False)
    if case == "saturated output":
        model = nn.Sequential(*model, nn.Tanh())
        with torch.no_grad():
            model[-2].bias.fill_(9.0)
    kernel = NonlocalNTK(model, gamma=1e-3, samples=64)
    expected = float64_kernel(kernel, x)
    assert relative_error(kernel(x), expected) < 1e-4
    if case != "sawtooth":
        direct = NonlocalNTK(model, gamma=1e-3, samples=64, propagation="direct")
        assert relative_error(direct(x), expected) > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu_tanh"])
def test_saturated_outputs_keep_their_digits(activation):
    """The difference is right relative to itself even where the function is nearly flat."""
    model, x = nn.Sequential(*mlp(16, 64, 1, activation="relu"), ACTIVATIONS[activation]()), inputs(20, 16)
    for bias in (-4.0, 4.0, 7.0):
        with torch.no_grad():
            model[2].bias.fill_(bias)
        kernel = NonlocalNTK(model, gamma=1e-3, samples=8, propagation="difference")
        assert relative_error(kernel.differences(x), float64_differences(kernel, x)) < 1e-5


ARGUMENTS = {
    "x": torch.ones(3, 4),
    "layers": [Layer(torch.ones(5, 4), torch.ones(5), weight_ordinal=0, bias_ordinal=1)],
    "sample_ids": torch.arange(2),
    "scales": torch.full((2,), 0.1),
    "seed": 2**64 - 1,
}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(3, 4, dtype=torch.float16)}, TypeError, "x must be float32 or float64, got torch.float16"),
        ({"x": torch.ones(4)}, ValueError, r"x must be a matrix \[N, K\], got shape \(4,\)"),
        ({"x": torch.ones(3, 5)}, ValueError, r"weight of layer '0' must be .* since the inputs have 5 features"),
        ({"x": torch.ones(3, 4).double()}, TypeError, "weight of layer '0' must be torch.float64 like the inputs"),
        ({"layers": []}, ValueError, "layers must hold at least one layer"),
        ({"layers": [Layer(torch.ones(5, 4))]}, ValueError, "at least one parameter with an ordinal"),
        (
            {"layers": [Layer(torch.ones(5, 4), weight_ordinal=-5)]},
            ValueError,
            "weight_ordinal of layer '0' must be at",
        ),
        (
            {"layers": [Layer(torch.ones(5, 4), weight_ordinal=0.5)]},
            TypeError,
            "weight_ordinal of layer '0' must be an",
        ),
        ({"scales": torch.zeros(2)}, ValueError, "scales must be positive, got 0 among them"),
        ({"layers": [Layer(torch.ones(5, 4), torch.ones(4))]}, ValueError, r"bias of layer '0' must have shape \(5,\)"),
        ({"sample_ids": torch.arange(2).int()}, TypeError, "sample_ids must be an int64 vector"),
        ({"scales": torch.ones(3)}, ValueError, r"scales must be a floating vector of the shape of sample_ids, \(2,\)"),
        (
            {"sample_ids": torch.arange(2, device="meta")},
            ValueError,
            "sample_ids must be on cpu like the inputs, got meta",
        ),
        ({"scales": torch.ones(2, device="meta")}, ValueError, "scales must be on cpu like the inputs, got meta"),
        ({"seed": "1"}, TypeError, "seed must be an integer, got '1'"),
        ({"seed": 2**64}, ValueError, "seed must be at most 18446744073709551615, got 18446744073709551616"),
        ({"directions": "cubic"}, ValueError, "directions must be one of .* got 'cubic'"),
        ({"pairs": "even"}, ValueError, "pairs must be one of 'none', 'odd', 'both'; got 'even'"),
        ({"propagation": "fast"}, ValueError, "propagation must be one of"),
        ({"precision": "fp16"}, ValueError, "precision must be one of 'auto', 'fp32', 'tf32', 'bf16'; got 'fp16'"),
        ({"precision": "bf16", "propagation": "direct"}, ValueError, "precision must be 'auto' or 'fp32' with"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"max_bytes": 10}, ValueError, "max_bytes must be at least 1048576, got 10"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    """Each error names the argument, the value and what is allowed."""
    with pytest.raises(error, match=message):
        mlp_differences(**{**ARGUMENTS, **arguments})


def test_roundings_are_to_the_nearest_and_keep_what_is_not_finite():
    """bf16 and tf32: within half a unit in the last place, the same when repeated, signs and infinities kept."""
    x = torch.cat([inputs(1000, 1, seed=s)[:, 0] * 10.0 ** (s - 20) for s in range(40)])
    for name, roundoff in (("bf16", 2.0**-8), ("tf32", 2.0**-11)):
        rounded = ROUNDINGS[name](x)
        assert ((rounded - x).abs() <= roundoff * x.abs()).all() and (rounded != x).float().mean() > 0.9
        assert torch.equal(ROUNDINGS[name](rounded), rounded) and torch.equal(ROUNDINGS[name](-x), -rounded)
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.0, 3.0e38])
        torch.testing.assert_close(ROUNDINGS[name](special), special, rtol=roundoff, atol=0)
        assert ROUNDINGS[name](torch.tensor([torch.nan, -torch.nan])).isnan().all()
    ties = torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2 - 2.0**-11])
    assert ROUNDINGS["tf32"](ties).tolist() == [1 + 2.0**-10, 1 + 2 * 2.0**-10, 2.0]


ROUNDOFF = {"tf32": 2.0**-11, "bf16": 2.0**-8}


@pytest.mark.parametrize("precision", ROUNDOFF)
@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)"])
def test_precision_rounds_the_operands_of_the_products(directions, precision):
    """Layer 0 sees rounded inputs; the next is its formula with rounded operands, dz = d W^T + rho (q E^T + e).

    Differences are divided by a power of two: the scale 0.01 is rho = 1.28 times 2^-7.
    """
    rounded, settings = ROUNDINGS[precision], {"directions": directions, "pairs": "none"}
    model, x, rows = mlp(40, 30, 3, activation="identity"), inputs(20, 40), torch.arange(4)
    d, _ = unit(model[:1], x, rows, precision=precision, **settings)
    assert relative_error(d, unit(model[:1], rounded(x), rows, **settings)[0]) < 1e-6
    result, _ = unit(model, x, rows, precision=precision, **settings)
    q, weight = model[0](x).detach() + 0.01 * d, model[2].weight.detach()
    e, bias = (
        unit_displacements(rows, ordinal, p.shape, 3, directions) for ordinal, p in ((2, weight), (3, weight[:, 0]))
    )
    expected = rounded(1.28 * d) @ rounded(weight).T / 1.28 + rounded(q) @ e.mT + bias[:, None]
    # One operand in ten thousand may round the other way.
    assert relative_error(result, expected) < 0.05 * ROUNDOFF[precision]
    assert relative_error(result, unit(model, x, rows, **settings)[0]) > 0.2 * ROUNDOFF[precision]


@pytest.mark.parametrize("height", [70, 30])
@pytest.mark.parametrize("precision", ROUNDOFF)
def test_precision_rounds_the_inner_product_of_lowrank(precision, height):
    """The product c q B^T is an operand of the second product, and rounded as one; of few units E is."""
    rounded, model, x, rows = ROUNDINGS[precision], mlp(40, height), inputs(20, 40), torch.arange(4)
    left, right, scale = lowrank_factors(rows, {0: (height, 40)}, 2, (3, 0), torch.float64)[0]
    scale = scale[:, None, None]
    if height > FORMED_UNITS:
        expected = rounded((scale * (rounded(x).double() @ right.mT)).float()).double() @ left
    else:
        expected = rounded(x).double() @ rounded((scale * (left.mT @ right)).float()).double().mT
    expected += unit_displacements(rows, 1, (height,), 3, "lowrank(2)")[:, None]
    result, _ = unit(model, x, rows, directions="lowrank(2)", pairs="none", precision=precision)
    assert relative_error(result, expected) < 0.05 * ROUNDOFF[precision]


@pytest.mark.parametrize("gamma", [1e-1, 1e-6])
@pytest.mark.parametrize("precision", ROUNDOFF)
def test_error_of_low_precision_does_not_depend_on_gamma(precision, directions, gamma):
    """Relative to the differences it is within a factor of two of its roundings' root mean square, u / 2 sqrt(L)."""
    for name in ("relu", "tanh", "gelu"):
        model, x = mlp(33, 256, 130, 3, activation=name), inputs(40, 33)
        kernel = NonlocalNTK(model, gamma=gamma, samples=8, directions=directions, precision=precision)
        error = relative_error(kernel.differences(x), float64_differences(kernel, x))
        assert 0.5 < error / (0.5 * ROUNDOFF[precision] * math.sqrt(3)) < 2


@pytest.mark.parametrize("name", ["relu", "tanh", "sign", "quantise"])
def test_predicted_rounding_error_bounds_that_of_the_kernel(name):
    """In units of the Monte-Carlo error: its least for smooth networks, its own where an activation jumps."""
    samples, settings = 256, {"directions": "gaussian", "propagation": "difference"}
    for widths in ((16, 16, 16, 1), (64, 128, 10)):
        model, x = mlp(*widths, activation=name), inputs(24, widths[0])
        layers = recognise(model).layers
        exact = NonlocalNTK(model, samples=samples, **settings)(x)
        error = math.sqrt(2 / (samples * widths[-1]))
        if name in JUMPS:
            again = NonlocalNTK(model, samples=samples, seed=1, **settings)(x)
            error = relative_error(again, exact) / math.sqrt(2)
        for precision in ROUNDOFF:
            seen = relative_error(NonlocalNTK(model, samples=samples, precision=precision, **settings)(x), exact)
            predicted = predicted_rounding_error(layers, samples, precision)
            print(
                f"{name} {widths} {precision}: {seen / error:.4f} of the Monte-Carlo error, predicted {predicted:.4f}"
            )
            assert 0.05 * predicted < seen / error < predicted


def test_auto_takes_the_cheapest_precision_that_does_not_matter():
    """On tensor cores bf16, tf32 as samples grow or activations jump, and no rounding beyond; none on a CPU."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    relu, sign, saw = (recognise(mlp(64, 256, 256, 1, activation=name)).layers for name in ("relu", "sign", "sawtooth"))
    chosen = [choose_precision(relu, samples, torch.float32, cuda) for samples in (64, 1024, 4096, 10**6)]
    assert chosen == ["bf16", "bf16", "tf32", "fp32"]
    assert [choose_precision(layers, 64, torch.float32, cuda) for layers in (sign, saw)] == ["tf32", "fp32"]
    assert choose_precision(relu, 64, torch.float32, cpu) == choose_precision(relu, 64, torch.float64, cuda) == "fp32"


def test_low_precision_propagates_and_float64_has_none():
    """Auto propagation follows an explicit precision; the default on a CPU is float32 to the bit."""
    model, x = mlp(5, 16, 2), inputs(6, 5)
    for precision, form in (("bf16", "difference"), ("fp32", "direct"), ("auto", "direct")):
        auto = NonlocalNTK(model, samples=3, precision=precision).differences(x)
        assert torch.equal(auto, NonlocalNTK(model, samples=3, precision=precision, propagation=form).differences(x))
    for precision in ("fp32", "tf32", "bf16"):
        with pytest.raises(ValueError, match=f"precision must be 'auto' for float64 parameters.* got '{precision}'"):
            unit(mlp(5, 3, dtype=torch.float64), inputs(6, 5, torch.float64), precision=precision)


MEMORY = """
import re, sys, torch, nntk
from torch import nn
# Of this process alone: getrusage would count the memory of the parent that forked it.
memory = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
model = nn.Sequential(nn.Linear(100, 950), nn.ReLU(), nn.Linear(950, 950), nn.ReLU(), nn.Linear(950, 1))
kernel = nntk.NonlocalNTK(model, samples=int(sys.argv[2]), propagation=sys.argv[1])
assert kernel.num_params > 10**6
x = torch.randn(64, 100)
nntk.NonlocalNTK(nn.Sequential(nn.Linear(100, 2)), samples=2).differences(x)
resident = memory("VmRSS")
differences = kernel.differences(x)
print(memory("VmHWM") - resident - differences.nbytes)
"""


def test_memory_does_not_grow_with_samples_times_parameters(propagation):
    """For d = 10^6, M = 256 and N = 64 the peak stays under the outputs and 256 MB; M d floats would be 1 GB."""
    command = [sys.executable, "-c", MEMORY, propagation, "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    extra = int(done.stdout)
    print(f"extra peak: {extra / 2**20:.0f} MiB")
    assert extra < 256e6


def test_displacements_are_the_streams_units_times_the_scale(directions):
    """The same numbers as the stream's op, of standard deviation gamma / sqrt(2): of signs, of the length drawn."""
    kernel = NonlocalNTK(mlp(5, 16, 2), gamma=0.3, samples=3, directions=directions, seed=8)
    scale = torch.tensor(0.3 / math.sqrt(2))
    if directions != "gaussian":
        length = radii(torch.tensor([2]), 8, FixedKernel("gaussian"), kernel.num_params, 0.3)[0]
        scale = (length / math.sqrt(kernel.num_params)).float()
    expected = scale * unit_displacements(torch.tensor([2]), 2, (2, 16), 8, directions)[0]
    assert torch.equal(kernel.displacements(2)["2.weight"], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_weight_passes_in_pieces(bias, monkeypatch):
    """The float64 pass of few units at a time, the last piece smaller, is that of all."""
    layers = [Layer(torch.randn(7, 5), torch.randn(7) if bias else None)]
    x = torch.randn(3, 5)
    whole = unperturbed(layers, x)[1]
    monkeypatch.setattr("nntk.kernels.mlp.FLOAT64_COEFFICIENTS", 10)
    torch.testing.assert_close(unperturbed(layers, x)[1], whole, rtol=1e-14, atol=1e-14)
