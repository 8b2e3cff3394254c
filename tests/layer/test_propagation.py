"""Difference propagation through any model: every rule against plain evaluation in float64."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, inputs, relative_error
from propagation_cases import (
    CASES,
    CONVOLUTIONS,
    FUNCTIONS,
    FURTHER_MODELS,
    IMAGES,
    LINES,
    MODELS,
    P,
    both,
    make_model,
    random,
    z,
)
from torch import nn
from triton_device import Allocated

from nntk import NonlocalNTK
from nntk.kernels.perturb import displacement_products
from nntk.kernels.philox import unit_displacements
from nntk.propagation import differences, plan
from nntk.propagation.registry import functions_named
from nntk.propagation.rules import layers, linear, queries

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("name", CASES)
def test_every_rule_against_float64(name):
    """Check a usual displacement, and one at which a subtraction of float32 outputs has no digit left."""
    function, x = CASES[name]
    for gamma in (1e-1, 1e-6):
        actual, expected = both(function, x, parameters=P, gamma=gamma)
        assert (actual - expected).norm() <= (3e-6 if gamma > 1e-3 else 3e-5) * expected.norm(), gamma


@pytest.mark.parametrize("name", ["embedding", "matrix products", "settings", "integers beside"])
def test_every_family_and_member(name, directions):
    """Check one-sided differences, antithetic ones, and those of both members of a pair."""
    function, x = CASES[name]
    for options in ({"antithetic": False}, {}):
        actual, expected = both(function, x, parameters=P, directions=directions, **options)
        assert relative_error(actual, expected) < 3e-6
    kernels = [
        NonlocalNTK(function, parameters=P, samples=4, directions=directions, propagation=propagation)
        for propagation in ("difference", "direct")
    ]
    assert relative_error(*(kernel.differences(x, halves=True) for kernel in kernels)) < 3e-6


def test_float64_models_keep_their_digits():
    """Differences have the dtype of the parameters."""
    parameters = {name: tensor.double() for name, tensor in P.items()}
    actual, expected = both(FUNCTIONS["attention"], LINES.double(), parameters=parameters, gamma=0.1)
    assert actual.dtype == torch.float64 and relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("frozen", [None, ["*weight"], ["*norm*"]])
@pytest.mark.parametrize("name", MODELS)
def test_modules_propagate(name, frozen):
    """Modules propagate whole and with frozen parameters; ``auto`` propagates where a subtraction loses digits."""
    model, x = make_model(name)
    actual, expected = both(model, x, parameters=frozen)
    assert relative_error(actual, expected) < 3e-6
    auto, actual = (
        NonlocalNTK(model, gamma=1e-12, samples=6, parameters=frozen, propagation=propagation).differences(x)
        for propagation in ("auto", "difference")
    )
    assert torch.equal(auto, actual)


@pytest.mark.parametrize("name", FURTHER_MODELS)
def test_modules_with_parametrised_weights_and_packed_sequences_propagate(name):
    """At a usual displacement, and at one at which a subtraction of float32 outputs has no digit left."""
    model, x = make_model(name)
    for gamma in (1e-1, 1e-6):
        assert relative_error(*both(model, x, samples=4, gamma=gamma)) < (3e-6 if gamma > 1e-3 else 3e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_convolutions(name, directions, monkeypatch):
    """The layer step of all patches, which a GPU uses, gives the differences of a convolution."""
    options = {"parameters": P, "samples": 6, "gamma": 1e-2, "directions": directions, "propagation": "difference"}
    expected = NonlocalNTK(CONVOLUTIONS[name], **options).differences(IMAGES)
    monkeypatch.setattr(layers, "multiplies_patches", lambda device: True)
    assert relative_error(NonlocalNTK(CONVOLUTIONS[name], **options).differences(IMAGES), expected) < 2e-6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)"])
def test_chunks_do_not_matter(name, directions, monkeypatch):
    """Differences are the same for held and regenerated noise, chunks of any size, and single inputs."""
    model, x = make_model(name)
    options = {"gamma": 1e-2, "samples": 7, "directions": directions, "propagation": "difference"}
    expected = NonlocalNTK(model, **options).differences(x)
    monkeypatch.setattr(plan, "TILE", 1)
    assert relative_error(NonlocalNTK(model, **options).differences(x), expected) < 1e-6
    monkeypatch.setattr(plan, "CACHE", 2**12)
    assert relative_error(NonlocalNTK(model, max_memory=2**20, **options).differences(x), expected) < 1e-6
    assert relative_error(NonlocalNTK(model, **options).differences(x[:1]), expected[:, :1]) < 1e-6


def test_a_gpu_takes_as_many_displacements_as_its_budget_holds(monkeypatch):
    """Without a CPU's caches, passes are few and large, their memory stays within the budget, and D is the same."""
    model, x = make_model("resnet")
    kernel = NonlocalNTK(model, samples=200, propagation="difference", max_memory=2**26)
    expected, passes, make_context = kernel.differences(x), [], plan.make_context
    monkeypatch.setattr(differences, "make_context", lambda *call: (passes.append(call), make_context(*call))[1])
    monkeypatch.setattr(plan, "CACHE", 2**9)
    kernel.differences(x)
    on_cpu = len(passes)
    passes.clear()
    monkeypatch.setattr(plan, "_efficient_sizes", lambda batch: (batch.max_bytes, batch.max_bytes))
    monkeypatch.setattr(layers, "multiplies_patches", lambda device: True)
    with torch.no_grad(), Allocated() as allocated:
        assert relative_error(kernel.differences(x), expected) < 2e-6
    assert len(passes) < on_cpu / 2
    assert allocated.peak < 1.5 * 2**26


def test_large_weights_are_not_held():
    """Temporaries fit a budget that the displacements would exceed; the float64 copy of the model is not counted."""
    model, x = nn.Sequential(nn.Linear(8, 768), nn.GELU(), nn.RMSNorm(768), nn.Linear(768, 768)), inputs(4, 8)
    options = {"samples": 24, "directions": "rademacher", "propagation": "difference", "max_memory": 2**24}
    kernel = NonlocalNTK(model, **options)
    with torch.no_grad(), Allocated() as allocated:
        differences = kernel.differences(x)
    assert allocated.peak < 2**24 + 8 * kernel.num_params + 3 * differences.nbytes < 24 * 4 * kernel.num_params


class Mixed(nn.Module):
    """A layer followed by a fixed one of another dtype."""

    def __init__(self, dtype):
        """Create the model, of width six."""
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("fixed", random(6, 6).to(dtype))

    def forward(self, x):
        """Return outputs in the dtype of the evaluation."""
        return F.linear(self.layer(x), self.fixed) * self.fixed[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_buffers_of_another_dtype(dtype):
    """Such buffers are rounded to the dtype of the differences."""
    assert relative_error(*both(Mixed(dtype).eval(), LINES)) < 3e-6


def test_compiled_modules_propagate():
    """A compiled module propagates as the module that it was compiled from."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6)).eval()
    compiled = NonlocalNTK(torch.compile(model, backend="eager"), samples=4, propagation="difference")
    expected = NonlocalNTK(model, samples=4, propagation="difference")
    assert torch.equal(compiled.differences(LINES), expected.differences(LINES))


def test_weights_of_products_do_not_cut_the_inputs(monkeypatch):
    """Displacements of a weight do not count as memory per input."""
    monkeypatch.setattr(plan, "CACHE", 2**7)
    plans, from_trials = [], plan.ChunkPlan.from_trials

    def recorded(*arguments):
        """Record the plan and return it."""
        plans.append(from_trials(*arguments))
        return plans[-1]

    monkeypatch.setattr(plan.ChunkPlan, "from_trials", recorded)
    weights = {"a": random(6, 256), "b": random(256, 1)}
    NonlocalNTK(lambda p, x: (x @ p["a"]).tanh() @ p["b"], parameters=weights, samples=4, propagation="difference")(
        LINES[0]
    )
    assert plans[0].block_inputs == 4


def test_constant_values_may_branch():
    """Branches and masks on values that are not displaced are computed once, in their own dtype."""

    def masked(p, x):
        """Halve the rows whose first number is negative."""
        assert x.shape[1:] == (7, 6) and len(x) <= 5
        return z(p, x) * torch.where(x[..., :1] < 0, 0.5, 1.0) if x.isfinite().all() else x

    actual, expected = both(masked, LINES, parameters=P)
    assert relative_error(actual, expected) < 3e-6


def test_parameters_and_inputs_are_unchanged():
    """The model and its inputs keep their values and types."""
    before = {name: tensor.clone() for name, tensor in P.items()}
    x = LINES.clone()
    both(FUNCTIONS["in place"], x, parameters=P)
    assert torch.equal(x, LINES) and all(torch.equal(P[name], tensor) for name, tensor in before.items())
    assert all(type(tensor) is torch.Tensor for tensor in P.values())


def test_every_rule_names_a_function():
    """Every name in the tables is one of a function of the installed PyTorch."""
    for names in (queries.QUERY_FUNCTIONS, linear.LINEAR_FUNCTIONS):
        assert all(list(functions_named(name)) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 7, 37), (9, 37), (5, 0, 37)])
def test_displacement_products_are_products(shape, family):
    """With the displacements as they stand, in chunks of any size."""
    q, rows = random(*shape).double(), torch.arange(5) + 3
    e = unit_displacements(rows, 2, (21, 37), 9, family, torch.float64)
    expected = torch.einsum("...nk,mhk->mnh", q, e) if q.dim() == 2 else torch.einsum("mnk,mhk->mnh", q, e)
    for budget in (2**20, None):
        result = displacement_products(q, 21, 2, rows, 9, family, budget)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.ones(3, 2, 4)}, ValueError, r"q must have shape \[n, K\] or \[2, n, K\], got \(3, 2, 4\)"),
        ({"q": torch.ones(2, 4).half()}, TypeError, "q must be float32 or float64, got torch.float16"),
        ({"height": 0}, ValueError, "height must be at least 1"),
        ({"ordinal": -1}, ValueError, "ordinal must be"),
        ({"sample_ids": torch.ones(2)}, TypeError, "sample_ids must be an int64 vector"),
        ({"sample_ids": torch.arange(2, device="meta")}, ValueError, "sample_ids must be on cpu"),
        ({"directions": "cubic"}, ValueError, "directions must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"height": 1.5}, TypeError, "height must be an integer, got 1.5"),
        ({"max_bytes": 1}, ValueError, "max_bytes must be at least"),
    ],
)
def test_displacement_products_check_their_arguments(change, error, message):
    """Before any work."""
    arguments = {
        "q": torch.ones(2, 3, 4),
        "height": 2,
        "ordinal": 0,
        "sample_ids": torch.arange(2),
        "seed": 0,
        **change,
    }
    with pytest.raises(error, match=message):
        displacement_products(**arguments)
