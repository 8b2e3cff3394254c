"""``kernel.plan(x)`` names the path of each layer that the launch then takes."""

from contextlib import suppress
from functools import partial
from itertools import product

import pytest
import torch
from conftest import FAMILIES, covering, inputs, mlp
from triton_device import DEVICE, without_kernels

from nntk import Attention, NonlocalNTK, Stream
from nntk.estimators import plan as plans
from nntk.kernels import perturb
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import paths
from nntk.kernels.perturb.triton import config, launch
from nntk.kernels.target import Target

H200 = Target("sm_90")
# Widths, inputs, budget: networks that are fused, stationary and staged, and one whose noise does not fit the budget.
SHAPES = {
    "small": ((20, 24, 24, 3), 9, 2**27),
    "narrow": ((300, 200, 10), 100, 2**27),
    "large": ((300, 320, 320, 10), 600, 2**27),
    "large, small budget": ((300, 520, 520, 10), 600, 2**20),
}
GAUSSIAN = {
    "small": ["fused"] * 3,
    "narrow": ["step", "stationary"],
    "large": ["staged"] * 3,
    "large, small budget": ["step", "step", "staged"],
}
"""What normals in bfloat16 take on an H200."""
EVERY = list(product(FAMILIES, SHAPES, ("tf32", "fp32", "bf16")))
CASES = {("gaussian", shape, "bf16") for shape in SHAPES} | {*covering(EVERY, (0, 1), (0, 2), (1, 2))}


class OnCard(torch.Tensor):
    """Tensor of the CPU that says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


@pytest.fixture
def launched(monkeypatch):
    """The paths of every evaluation by the op for CUDA tensors, on a card that launches nothing."""
    without_kernels(monkeypatch)
    seen, prepare, fused = [], launch.LayerSteps.__init__, launch.evaluate_fused

    def steps(self, context, base_pass, chunk_samples, paths):
        seen.append((tuple(paths), ""))
        prepare(self, context, base_pass, chunk_samples, paths)

    def whole(context, *arguments):
        seen.append((("fused",) * len(context.layers), ""))
        fused(context, *arguments)

    monkeypatch.setattr(launch.LayerSteps, "__init__", steps)
    monkeypatch.setattr(launch, "evaluate_fused", whole)
    monkeypatch.setattr(launch, "report_slow_path", lambda reason: seen.append(("reference", reason)))
    monkeypatch.setattr(perturb, "_op", launch.mlp_differences.plain)
    monkeypatch.setattr(plans, "layer_paths", partial(paths.layer_paths, target=H200))
    return seen


def kernel_of(model, **settings):
    """A kernel of three displacements in the form that a GPU evaluates."""
    defaults = {"samples": 3, "propagation": "difference", "precision": "bf16", "max_memory": 2**27}
    return NonlocalNTK(model.to(DEVICE), **{**defaults, **settings})


def taken(kernel, launched, *x):
    """Return the planned paths, after a call that must have taken them, and nothing else."""
    plan = kernel.plan(*x)
    assert launched == [], "a plan launches nothing"
    # What is left of a call whose kernels do not run are arbitrary numbers, which may be refused at its end.
    with suppress(ValueError):
        kernel(*x)
    assert launched and set(launched) == {(plan.paths, "")}
    return plan.paths


@pytest.mark.parametrize(("directions", "shape", "precision"), sorted(CASES))
def test_a_plan_names_the_paths_that_are_taken(directions, shape, precision, launched):
    """For every family, network and precision, each with each of the others at least once."""
    widths, number, budget = SHAPES[shape]
    kernel = kernel_of(mlp(*widths), directions=directions, precision=precision, max_memory=budget)
    found = taken(kernel, launched, inputs(number, widths[0]).to(DEVICE))
    if (directions, precision) == ("gaussian", "bf16"):
        assert list(found) == GAUSSIAN[shape]


@pytest.mark.parametrize(
    "settings",
    [{"antithetic": False}, {"weights": Attention()}, {"estimator": "plugin"}],
    ids=["one-sided", "attention", "plugin"],
)
def test_columns_are_counted_as_the_launch_counts_them(settings, launched):
    """The inputs of rows and columns together, once for each member of a pair: at 400 of them noise is staged."""
    kernel, x = kernel_of(mlp(300, 320, 10), **settings), inputs(400, 300).to(DEVICE)
    assert taken(kernel, launched, x[:200], x[200:])[0] == "step"
    launched.clear()
    more = inputs(600, 300).to(DEVICE)
    assert taken(kernel, launched, more[:300], more[300:])[0] == "staged"


def test_frozen_and_stacked_layers_have_their_paths(launched):
    """A layer without noise is a step; what was measured to be faster in one loop is stacked."""
    model, x = mlp(300, 320, 330, 10), inputs(600, 300).to(DEVICE)
    key = ("gaussian", "bf16", 320, 330, 1200, False)
    with config.LAYER_PATH.forced(key, config.Path("stacked")):
        assert taken(kernel_of(model), launched, x) == ("staged", "stacked", "staged")
    launched.clear()
    model[2].weight.requires_grad_(False)
    assert taken(kernel_of(model), launched, x) == ("staged", "step", "staged")


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (lambda: mlp(20, 24, 3).double(), {"precision": "auto"}, "float64"),
        (lambda: mlp(20, 24, 3), {"propagation": "direct", "precision": "fp32"}, "'direct' has no kernels"),
        (lambda: mlp(20, 24, 24, 3, activation="sign", bias=False), {"directions": "rademacher"}, "exactly on a jump"),
    ],
    ids=["float64", "direct", "ties"],
)
def test_the_reason_for_the_reference_is_stated(model, settings, words, launched):
    """The plan says why plain torch serves the GPU, in the words of the launch."""
    model = model()
    if model[0].weight.dtype == torch.float32 and "directions" in settings:
        with torch.no_grad():  # Weights of one magnitude, which signs of noise cancel.
            model[2].weight.copy_(model[2].weight.sign())
    kernel, x = kernel_of(model, **settings), inputs(9, 20, model[0].weight.dtype).to(DEVICE)
    plan = kernel.plan(x)
    kernel(x)
    ((name, reason),) = set(launched)
    assert words in reason and plan.paths == (name,) * len(plan.paths) and "reference" in str(plan)
    assert plan.reason == f"The model is an MLP of known layers. Plain torch serves the GPU, because {reason}."


def test_a_plan_is_for_reading(launched):
    """The names stand behind the route."""
    text = str(kernel_of(mlp(300, 200, 10)).plan(inputs(100, 300).to(DEVICE)))
    assert text.endswith("; by layers (step, stationary), difference, bf16: The model is an MLP of known layers.")


@pytest.mark.parametrize(("number", "expected"), [(9, "step"), (600, "staged")])
def test_a_stream_is_planned_by_what_is_evaluated_together(number, expected, launched):
    """Batches are joined to as many inputs as the budget holds."""
    x = inputs(number, 300).to(DEVICE)
    assert taken(kernel_of(mlp(300, 320, 10)), launched, Stream([x[:5], x[5:]]))[0] == expected


def test_the_device_of_the_weights_decides(monkeypatch):
    """A CPU has no paths; a GPU has those of its architecture, or the reference where the kernels do not serve it."""
    weight = torch.zeros(320, 300)
    arguments = 600, "gaussian", "odd", "difference", "bf16", 2**27
    assert paths.layer_paths([Layer(weight, weight_ordinal=0)], *arguments) == paths.LayerPaths()
    layers = [Layer(weight.as_subclass(OnCard), weight_ordinal=0)]
    monkeypatch.setattr(paths, "obstacle_of", lambda device: "")
    monkeypatch.setattr(paths, "target_of", lambda device: H200)
    assert paths.layer_paths(layers, *arguments) == paths.LayerPaths(("staged",))
    monkeypatch.setattr(paths, "obstacle_of", lambda device: "Triton is not installed")
    assert paths.layer_paths(layers, *arguments) == paths.LayerPaths(("reference",), "Triton is not installed")


def test_other_routes_have_no_paths():
    """Nor has an MLP on a CPU."""
    model = torch.nn.Sequential(mlp(3, 4, 2), torch.nn.Softmax(-1))
    for kernel in (NonlocalNTK(model, samples=3), NonlocalNTK(mlp(3, 4, 2), samples=3)):
        assert kernel.plan(inputs(4, 3)).paths == ()
