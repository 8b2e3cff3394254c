"""The nonlocal NTK: its limit, its convergence, its estimators' expectations, and the laws of its matrices."""

import copy
import itertools
import logging
import math

import pytest
import torch
from conftest import inputs, mlp, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nntk import Attention, NonlocalNTK, activations, local_ntk, monte_carlo_error, preparation, warm_up


@pytest.mark.parametrize("outputs", [1, 10])
def test_error_falls_with_the_root_of_samples_as_predicted(outputs):
    """Slope -0.5 +- 0.1 of the error against M, and within 25 % of the formula: trace and full, eight seeds."""
    model, x = mlp(16, 64, 64, outputs), inputs(64, 16)
    ntk = {mode: local_ntk(model, x, outputs=mode).double() for mode in ("trace", "full")}
    counts = torch.tensor([64, 256, 1024, 4096])
    squared = {mode: torch.zeros(4, dtype=torch.float64) for mode in ntk}
    for seed in range(8):
        for i, samples in enumerate(counts.tolist()):
            full = NonlocalNTK(model, gamma=1e-4, samples=samples, outputs="full", seed=seed)(x).double()
            squared["full"][i] += (full - ntk["full"]).square().sum() / 8
            squared["trace"][i] += (full.diagonal(dim1=2, dim2=3).sum(2) - ntk["trace"]).square().sum() / 8
    num_params = NonlocalNTK(model).num_params
    for mode, errors in squared.items():
        errors = errors.sqrt()
        x_axis, y_axis = counts.double().log(), errors.log()
        centred = x_axis - x_axis.mean()
        slope = float((centred * y_axis).sum() / centred.square().sum())
        predicted = [monte_carlo_error(ntk["full"], m, num_params, mode) for m in counts.tolist()]
        ratios = (errors / torch.tensor(predicted)).tolist()
        print(f"C={outputs} {mode}: slope {slope:.3f}, measured / predicted {[round(r, 3) for r in ratios]}")
        assert abs(slope + 0.5) < 0.1
        assert all(0.75 < ratio < 1.25 for ratio in ratios)


def test_trace_of_full_is_trace():
    """The output modes are one kernel seen differently."""
    model, x = mlp(5, 16, 3, dtype=torch.float64), inputs(6, 5, torch.float64)
    for estimator in ("energy", "plugin", "unbiased"):
        modes = {
            mode: NonlocalNTK(model, samples=32, outputs=mode, estimator=estimator)(x)
            for mode in ("full", "diagonal", "trace", "mean")
        }
        diagonal = modes["full"].diagonal(dim1=2, dim2=3)
        torch.testing.assert_close(modes["diagonal"], diagonal)
        torch.testing.assert_close(modes["trace"], diagonal.sum(2))
        torch.testing.assert_close(modes["mean"], diagonal.mean(2))


@pytest.mark.parametrize("estimator", ["energy", "unbiased", "plugin"])
def test_expectation_for_a_linear_model(estimator, directions):
    """Mean over 200 seeds, within four standard errors: the NTK; for plugin (1 + (d - 1) / M) times the NTK."""
    model, x = nn.Linear(6, 2).double(), inputs(5, 6, torch.float64)
    samples, d = 12, 14
    kernels = torch.stack(
        [
            NonlocalNTK(model, samples=samples, estimator=estimator, directions=directions, seed=seed)(x)
            for seed in range(200)
        ]
    )
    expected = local_ntk(model, x) * (1 + (d - 1) / samples if estimator == "plugin" else 1)
    standard_error = kernels.std(0) / math.sqrt(200)
    deviation = ((kernels.mean(0) - expected) / standard_error).abs()
    print(f"{estimator}, {directions}: largest deviation {float(deviation.max()):.2f} standard errors")
    assert deviation.max() < 4


def test_limit_of_falling_gamma():
    """For a smooth model, antithetic, the kernel's distance from its own limit falls as gamma squared."""
    model, x = mlp(6, 40, 1, dtype=torch.float64), inputs(12, 6, torch.float64)
    limit = NonlocalNTK(model, gamma=1e-6, samples=64, propagation="difference")(x)
    errors = [relative_error(NonlocalNTK(model, gamma=g, samples=64)(x), limit) for g in (0.08, 0.04, 0.02)]
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5


def test_antithetic_energy_estimates_the_inner_product_of_nonlocal_gradients():
    """At a finite gamma the odd part brings the energy form near <Gf, Gf'>; the one-sided form is farther off."""
    model, x = mlp(4, 12, 1, activation="relu", dtype=torch.float64), inputs(6, 4, torch.float64)
    settings = {"gamma": 0.3, "samples": 6000}
    inner = NonlocalNTK(model, estimator="unbiased", seed=1, **settings)(x)
    odd = relative_error(NonlocalNTK(model, **settings)(x), inner)
    one_sided = relative_error(NonlocalNTK(model, antithetic=False, **settings)(x), inner)
    assert odd < 0.06 and one_sided > 1.3 * odd


@pytest.mark.parametrize("estimator", ["energy", "plugin", "unbiased"])
@pytest.mark.parametrize("outputs", ["trace", "mean", "diagonal", "full"])
def test_symmetric_and_cross_kernels_agree(estimator, outputs):
    """K(x) is exactly symmetric, its blocks are K(x1, x2), and the same seed gives the same kernel."""
    model, x = mlp(5, 33, 3), inputs(9, 5)
    kernel = NonlocalNTK(model, samples=130, estimator=estimator, outputs=outputs)
    k = kernel(x)
    assert torch.equal(k, k.permute(1, 0, 3, 2) if outputs == "full" else k.transpose(0, 1))
    assert torch.equal(k, kernel(x))
    torch.testing.assert_close(kernel(x[:4], x[3:]), k[:4, 3:], rtol=1e-4, atol=1e-4 * float(k.abs().max()))


def test_kernels_are_semidefinite():
    """Energy and plugin: smallest eigenvalue at least -1e-6 of the largest, on a sign network too."""
    for activation in ("tanh", "sign"):
        model, x = mlp(5, 64, 1, activation=activation), inputs(100, 5)
        for estimator in ("energy", "plugin"):
            eigenvalues = torch.linalg.eigvalsh(NonlocalNTK(model, samples=60, estimator=estimator)(x).double())
            assert eigenvalues[0] >= -1e-6 * eigenvalues[-1]


def test_paper_normalization_divides_by_the_squared_number_of_parameters():
    """The paper's gradient has no factor d."""
    model, x = mlp(5, 16, 1, dtype=torch.float64), inputs(6, 5, torch.float64)
    for estimator in ("energy", "plugin", "unbiased"):
        gradient = NonlocalNTK(model, samples=20, estimator=estimator)
        paper = NonlocalNTK(model, samples=20, estimator=estimator, normalization="paper")
        torch.testing.assert_close(paper(x), gradient(x) / gradient.num_params**2)


def test_memory_budget_does_not_matter():
    """Assembled in many chunks or one: the same kernel to rounding."""
    model, x = mlp(5, 64, 2), inputs(500, 5)
    small = NonlocalNTK(model, samples=700, max_memory=2**20)
    assert small.plan(x).displacements < 700 / 5
    assert relative_error(small(x), NonlocalNTK(model, samples=700)(x)) < 1e-5


def test_float32_and_float64_share_displacements():
    """The dtype changes the rounding, not the kernel."""
    model, x = mlp(5, 64, 2), inputs(20, 5)
    single = NonlocalNTK(model, gamma=1e-3, samples=50)(x)
    double = NonlocalNTK(copy.deepcopy(model).double(), gamma=1e-3, samples=50)(x.double())
    assert relative_error(single, double) < 2e-4


def test_the_sign_network_has_a_kernel_where_autograd_sees_nothing():
    """Hidden layers contribute: the nonlocal kernel is not that of the last layer, and is well conditioned."""
    model, x = mlp(8, 64, 64, 1, activation="sign"), inputs(40, 8)
    k = NonlocalNTK(model, gamma=0.1, samples=2000)(x)
    assert float(k.trace()) > 2 * float(local_ntk(model, x).trace())


def test_inputs_may_have_more_axes_where_the_model_flattens():
    """Images go in as they are."""
    images = inputs(6, 12).view(6, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), *mlp(12, 9, 1))
    flat = NonlocalNTK(nn.Sequential(*model[1:]), samples=10)(images.flatten(1))
    torch.testing.assert_close(NonlocalNTK(model, samples=10)(images), flat)


def test_seeds_and_settings_give_other_kernels():
    """Every setting that should matter does."""
    model, x = mlp(5, 16, 2), inputs(6, 5)
    changes = [{"seed": 1}, {"gamma": 1.0}, {"antithetic": False}, {"samples": 21}]
    changes += [{"directions": name} for name in ("rademacher", "flipout(2)", "flipout(3)", "lowrank(2)", "lowrank(3)")]
    kernels = [NonlocalNTK(model, **{"samples": 20, **change})(x) for change in ({}, *changes)]
    for one, other in itertools.combinations(kernels, 2):
        assert relative_error(one, other) > 1e-3
    assert 1e-4 < relative_error(NonlocalNTK(model, samples=20, precision="bf16")(x), kernels[0]) < 1e-2


def test_training_between_calls_is_seen():
    """The kernel is that of the model as it is now."""
    model, x = mlp(5, 16, 1), inputs(6, 5)
    kernel = NonlocalNTK(model, samples=20)
    before = kernel(x)
    with torch.no_grad():
        model[2].weight.mul_(2)
    assert relative_error(kernel(x), before) > 0.1
    assert torch.equal(kernel(x), NonlocalNTK(model, samples=20)(x))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_never_modified(fails):
    """Parameters keep their identity, values, gradients and flags, also when a call raises."""
    shared = nn.Linear(5, 5)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 2))
    before = [(id(p), p.detach().clone(), p.requires_grad) for p in model.parameters()]
    x = inputs(4, 5)
    if fails:
        x[0, 0] = torch.inf
    for attempt in (
        lambda: NonlocalNTK(model, samples=3)(x),
        lambda: NonlocalNTK(model, samples=3, estimator="plugin").differences(x),
        lambda: local_ntk(model, x, method="jacobian"),
        lambda: local_ntk(model, x, method="vector-products"),
    ):
        if fails:
            with pytest.raises(ValueError, match="must be finite"):
                attempt()
        else:
            attempt()
    after = [(id(p), p.detach(), p.requires_grad) for p in model.parameters()]
    for (was, value, flag), (now, current, current_flag) in zip(before, after, strict=True):
        assert was == now and torch.equal(value, current) and flag == current_flag
    assert all(p.grad is None and type(p) is nn.Parameter for p in model.parameters())


def test_empty_inputs_give_an_empty_kernel():
    """No rows, no columns, or neither; every estimator."""
    model, x, none = mlp(4, 8, 3), inputs(5, 4), inputs(0, 4)
    for estimator in ("energy", "plugin", "unbiased"):
        kernel = NonlocalNTK(model, samples=4, estimator=estimator, outputs="full")
        assert kernel(none).shape == (0, 0, 3, 3)
        assert kernel(x, none).shape == (5, 0, 3, 3)
        assert kernel(none, x).shape == (0, 5, 3, 3)
        assert kernel.differences(none).shape == (4, 0, 3)


def test_repr_names_the_settings():
    """A notebook prints every setting."""
    text = repr(NonlocalNTK(mlp(4, 3), gamma=0.25, samples=7))
    assert text.startswith("NonlocalNTK(gamma=0.25, samples=7, directions='gaussian'") and "model" not in text
    assert "precision='auto'" in text


GOOD = {"model": mlp(4, 6, 2)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": 0}, ValueError, "gamma must be between 1e-30 and 1e[+]30, got 0"),
        ({"gamma": -1.0}, ValueError, "gamma must be between .* got -1"),
        ({"gamma": float("nan")}, ValueError, "gamma must be between .* got nan"),
        ({"gamma": float("inf")}, ValueError, "gamma must be between .* got inf"),
        ({"gamma": 10**400}, ValueError, "gamma must be between .* got inf"),
        ({"gamma": torch.ones(2)}, TypeError, "gamma must be a number, got tensor"),
        ({"gamma": "small"}, TypeError, "gamma must be a number, got 'small'"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0. Each sample is one displacement"),
        ({"samples": 2.5}, TypeError, "samples must be an integer, got 2.5"),
        ({"samples": True}, TypeError, "samples must be an integer, got True"),
        ({"samples": 1, "estimator": "unbiased"}, ValueError, "samples must be at least 2 for the unbiased"),
        ({"directions": "orthogonal"}, ValueError, "directions must be one of 'gaussian', 'rademacher', 'flipout"),
        ({"directions": "lowrank"}, ValueError, r"got 'lowrank'. Write 'lowrank\(8\)', for example"),
        ({"antithetic": 1}, TypeError, "antithetic must be True or False, got 1"),
        ({"estimator": "exact"}, ValueError, "estimator must be one of"),
        ({"normalization": "d"}, ValueError, "normalization must be one of 'gradient', 'paper'"),
        ({"outputs": "all"}, ValueError, "outputs must be one of 'trace', 'mean', 'diagonal', 'full'; got 'all'"),
        ({"propagation": "exact"}, ValueError, "propagation must be one of"),
        ({"precision": "half"}, ValueError, "precision must be one of 'auto', 'fp32', 'tf32', 'bf16'; got 'half'"),
        ({"precision": "tf32", "propagation": "direct"}, ValueError, "precision must be 'auto' or 'fp32' with"),
        ({"precision": "fp32", "model": mlp(4, 2).double()}, ValueError, "precision must be 'auto' for float64"),
        ({"seed": -3}, ValueError, "seed must be at least 0, got -3"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"max_memory": 1}, ValueError, "max_memory must be at least 1048576, got 1"),
        ({"max_memory": 2.0**21}, TypeError, "max_memory must be an integer, got 2097152.0"),
    ],
)
def test_bad_settings_are_named(arguments, error, message):
    """Each error names the argument, the value and what is allowed, and comes on construction."""
    with pytest.raises(error, match=message):
        NonlocalNTK(**{**GOOD, **arguments})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0] * 4], TypeError, "x1 must be a torch.Tensor, got list"),
        (torch.ones(3, 5), ValueError, r"x1 must have shape \[N, 4\], as the model's first layer; got \(3, 5\)"),
        (torch.ones(4), ValueError, "x1 must have a batch axis"),
        (torch.ones(3, 2, 2), ValueError, r"x1 must have shape \[N, 4\]"),
        (torch.ones(3, 4).double(), TypeError, r"x1 must be torch.float32 like the model's parameters, got .*float64"),
        (torch.ones(3, 4).int(), TypeError, "x1 must be torch.float32"),
        (torch.ones(3, 4, device="meta"), ValueError, "x1 must be on cpu like the model's parameters, got meta"),
        (torch.tensor([[0.0, 1, 2, float("nan")]]), ValueError, r"1 NaN or infinite of 4 entries, .* index \(0, 3\)"),
    ],
)
def test_bad_inputs_are_named(x, error, message):
    """Before any work."""
    with pytest.raises(error, match=message):
        NonlocalNTK(**GOOD)(x)


BY_INPUTS = {
    "second inputs": ({}, lambda kernel, x: kernel(inputs(2, 4), x)),
    "differences": ({}, NonlocalNTK.differences),
    "jacobian": ({}, NonlocalNTK.jacobian),
    "features": ({}, NonlocalNTK.features),
    "plugin features": ({"estimator": "plugin", "outputs": "mean"}, NonlocalNTK.features),
    "diagonal": ({}, NonlocalNTK.diagonal),
    "unbiased diagonal": ({"estimator": "unbiased"}, NonlocalNTK.diagonal),
    "operator": ({}, NonlocalNTK.operator),
    "weights": ({"weights": Attention()}, NonlocalNTK.displacement_weights),
    "check": ({}, lambda kernel, x: kernel.check_inputs("x", x)),
}


@pytest.mark.parametrize("name", BY_INPUTS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0] * 4], TypeError, "x2? must be a torch.Tensor, got list"),
        (torch.ones(3, 5), ValueError, r"x2? must have shape \[N, 4\], as the model's first layer; got \(3, 5\)"),
        (torch.ones(3, 4).double(), TypeError, r"x2? must be torch.float32 like the model's parameters, got .*float64"),
        (torch.full((3, 4), torch.nan), ValueError, r"x2? must be finite, got 12 NaN or infinite of 12 entries"),
    ],
)
def test_bad_inputs_are_named_by_every_method(name, x, error, message):
    """As by a call."""
    settings, method = BY_INPUTS[name]
    with pytest.raises(error, match=message):
        method(NonlocalNTK(**GOOD, samples=8, **settings), x)


@pytest.mark.parametrize("name", [name for name in BY_INPUTS if name != "check"])
def test_models_without_outputs_are_named_by_every_method(name):
    """Infinite ones, none for each input, and weights that have become no numbers."""
    (settings, method), model, x = BY_INPUTS[name], mlp(4, 6, 2), inputs(3, 4)
    kernel = NonlocalNTK(model, samples=8, **settings)
    with torch.no_grad():
        model[2].weight.fill_(3e38)
    with pytest.raises(ValueError, match="must (be finite|not be NaN)"):
        method(kernel, x)
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="parameter '2.weight' must be finite, got 1 NaN"):
        method(kernel, x)
    with pytest.raises(TypeError, match="model must return a tensor with a row for each of .* got shape"):
        method(NonlocalNTK(lambda p, x: p["a"], parameters={"a": torch.ones(4)}, samples=8, **settings), x)


@pytest.mark.parametrize("method", [NonlocalNTK.features, NonlocalNTK.operator, lambda k, x: k.check_features()])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "unbiased"}, "estimator must be 'energy' or 'plugin' to have features, got 'unbiased'"),
        ({"outputs": "diagonal"}, "outputs must be 'trace' or 'mean' to have features, got 'diagonal'"),
    ],
)
def test_kernels_without_features_are_named(method, settings, message):
    """Before any work."""
    with pytest.raises(ValueError, match=message):
        method(NonlocalNTK(**GOOD, samples=8, **settings), inputs(3, 4))


def test_autocast_and_default_devices_do_not_matter(directions, propagation):
    """The kernel is computed in the model's dtype, on the model's device."""
    model, x = mlp(5, 16, 2), inputs(6, 5)
    kernel = NonlocalNTK(model, samples=20, directions=directions, propagation=propagation, estimator="plugin")
    expected = kernel(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel(x), expected)
    with torch.device("meta"):
        assert torch.equal(kernel(x), expected)


def test_extreme_gammas():
    """Displacements too small to see in the parameters, and as large as they come; overflow is an error."""
    model, x = mlp(5, 16, 1, activation="relu"), inputs(6, 5)
    tiny = NonlocalNTK(model, gamma=1e-30, samples=64)(1e9 * x)
    assert relative_error(tiny, NonlocalNTK(model, gamma=1e-6, samples=64)(1e9 * x)) < 1e-2
    with pytest.raises(ValueError, match="differences of the model's outputs must be finite"):
        NonlocalNTK(nn.Linear(1, 1), gamma=1e30, samples=2).differences(torch.full((1, 1), 1e12))


def test_halves_need_a_pair_and_displacements_a_row():
    """Requests that the settings rule out."""
    with pytest.raises(ValueError, match="halves must be False for a kernel with antithetic=False"):
        NonlocalNTK(**GOOD, antithetic=False).differences(torch.ones(1, 4), halves=True)
    with pytest.raises(ValueError, match="m must be at most 4, got 5"):
        NonlocalNTK(**GOOD, samples=5).displacements(5)
    with pytest.raises(TypeError, match="halves must be True or False, got 1"):
        NonlocalNTK(**GOOD).differences(torch.ones(1, 4), halves=1)
    with pytest.raises(TypeError, match="m must be an integer, got 1.5"):
        NonlocalNTK(**GOOD).displacements(1.5)


def test_overflow_of_the_model_is_an_error():
    """An infinite output never becomes a kernel."""
    model = mlp(4, 6, 2)
    with torch.no_grad():
        model[2].weight.fill_(3e38)
    with pytest.raises(ValueError, match="the model's outputs at displaced parameters, must be finite"):
        NonlocalNTK(model, samples=3)(torch.ones(2, 4))


def test_monte_carlo_error_of_every_output_mode():
    """The formulas against sampled isotropic gradients: within 15 % for 4000 kernels of M = 8."""
    n, c, d, m = 3, 2, 12, 8
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(n, c, d, generator=generator, dtype=torch.float64)
    theta = torch.einsum("icd,jkd->ijck", jacobian, jacobian)
    e = torch.randn(4000, m, d, generator=generator, dtype=torch.float64)
    e /= e.norm(dim=2, keepdim=True)
    projected = torch.einsum("icd,smd->smic", jacobian, e)
    kernels = d / m * torch.einsum("smic,smjk->sijck", projected, projected)
    views = {
        "full": lambda k: k,
        "diagonal": lambda k: k.diagonal(dim1=-2, dim2=-1),
        "trace": lambda k: k.diagonal(dim1=-2, dim2=-1).sum(-1),
        "mean": lambda k: k.diagonal(dim1=-2, dim2=-1).mean(-1),
    }
    for outputs, view in views.items():
        measured = math.sqrt(float((view(kernels) - view(theta)).square().flatten(1).sum(1).mean()))
        assert abs(measured / monte_carlo_error(theta, m, d, outputs) - 1) < 0.15


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ntk": torch.full((2, 2), torch.nan)}, ValueError, "ntk must be finite, got 4 NaN"),
        ({"ntk": torch.ones(3, 4)}, ValueError, r"ntk must have shape \[N, N, C, C\] or \[N, N\], got \(3, 4\)"),
        ({"ntk": [[1.0]]}, TypeError, "ntk must be a torch.Tensor, got list"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"num_params": 0}, ValueError, "num_params must be at least 1, got 0"),
        ({"num_params": 2.5}, TypeError, "num_params must be an integer, got 2.5"),
        ({"outputs": "sum"}, ValueError, "outputs must be one of .* got 'sum'"),
    ],
)
def test_what_has_no_monte_carlo_error_is_named(arguments, error, message):
    """Each error names the argument, the value and what is allowed."""
    with pytest.raises(error, match=message):
        monte_carlo_error(**{"ntk": torch.eye(2), "samples": 4, "num_params": 10, **arguments})


def test_activations_print_their_settings():
    """A notebook prints the parameters of the modules."""
    assert repr(activations.Quantise(4, 0.5)) == "Quantise(levels=4, clamp=0.5)"


@pytest.mark.parametrize("settings", [{}, {"weights": Attention()}, {"estimator": "unbiased"}, {"samples": 1}])
def test_a_warm_up_changes_nothing(settings):
    """On a CPU it evaluates two displacements, compiles no kernel of a GPU, and leaves kernel and generators alone."""
    kernel, x, state = NonlocalNTK(mlp(3, 8, 2), **{"samples": 9} | settings), inputs(5, 3), torch.get_rng_state()
    expected = kernel(x)
    assert warm_up(kernel, x) == warm_up(kernel, x[:0], x) == 0
    assert torch.equal(kernel(x), expected) and torch.equal(torch.get_rng_state(), state)


def test_a_warm_up_records_the_call_itself(monkeypatch, caplog):
    """On a GPU kernels are compiled for the shapes of the call; that its numbers are arbitrary is no error."""
    shapes = []

    def without_kernels(displacements, x1, x2):
        """Return what a kernel that does not run may leave."""
        shapes.append((len(x1), len(x2), displacements.settings.samples))
        return torch.full((len(x1), len(x2)), math.nan)

    monkeypatch.setattr("nntk.estimators.assembly.energy", without_kernels)
    monkeypatch.setattr(preparation, "serves", lambda device: True)
    monkeypatch.setattr(preparation, "compile_ahead", lambda call, *options: call() or 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    with caplog.at_level(logging.INFO, logger="nntk"):
        assert warm_up(NonlocalNTK(mlp(3, 8, 2), samples=9), inputs(5, 3), inputs(4, 3)) == 3
    assert shapes == [(5, 4, 9)] and "Compiled 3 kernels for a card" in caplog.text


class Reads(TorchDispatchMode):
    """Numbers that the host reads from tensors, for each of which it waits for a device; ops of nntk are one each."""

    def __init__(self):
        """None yet."""
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Run an operator, and count reads."""
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def test_the_host_reads_three_numbers_in_a_call():
    """One says that the parameters are finite, one that the inputs are, and the last that the kernel is."""
    kernel, x = NonlocalNTK(mlp(20, 30, 30, 3, activation="relu"), samples=16, propagation="difference"), inputs(9, 20)
    kernel(x)
    with Reads() as reads:
        kernel(x)
    assert reads.number == 3
