"""Every op as PyTorch sees it: schema, fake kernel, tracing and compiling without a break; none has a backward."""

import pytest
import torch
from conftest import inputs, mlp

from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.perturb.activations import encode
from nntk.models import recognise

M, N, C, K, D = 5, 4, 3, 6, 24
SEED = (1, 2**32 - 1)
ROWS = torch.arange(M)
PARAMETERS = ([torch.zeros(4, 5), torch.zeros(4)], [0, 1])


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def stream(directions="gaussian"):
    """What ops that make noise take."""
    return (*PARAMETERS, ROWS, *SEED, directions)


def network(dtype):
    """An MLP as schemas carry it: weights, biases, activations and their parameters, ordinals."""
    layers = recognise(mlp(K, 7, C, dtype=dtype)).layers
    tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return (*tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3])


d, pairs, keys = random(M, N, C), random(2, M, N, 1), random(N, 1)
alpha, norms, priors, factors = torch.softmax(random(M), 0), torch.rand(M).double(), random(M), random(M).abs()
statistics = torch.stack((random(N), 1 + random(N).square(), 1 + random(N).square()))
nothing = (None,) * 8

CALLS = [
    *(("unit_displacements", (ROWS, 0, [4, 5], *SEED, name, torch.float64)) for name in ("gaussian", "flipout(2)")),
    *((name, stream("lowrank(2)")) for name in ("squared_norms", "displacement_gram")),
    ("radii", (ROWS, *SEED, "cauchy", 10, 0.1, 0.0)),
    ("radial_weights", (norms, "cauchy", [0.1, 5.5], "power", [0.2, 6.0])),
    ("attention_scores", (d, random(N, C), "dot")),
    ("attention_statistics", (pairs, keys, priors, factors, "dot")),
    ("attention_weights", (pairs, keys, priors, factors, statistics, "dot")),
    ("project_displacements", (*stream(), 3)),
    ("multiply_displacements", (*stream("rademacher"), torch.ones(2, D))),
    *(
        ("mlp_differences", (inputs(N, K), *network(torch.float32), ROWS, torch.ones(M), *SEED, "gaussian", *form))
        for form in (
            ("none", "difference", "tf32", 2**20),
            ("odd", "direct", "fp32", 2**20),
            ("both", "difference", "fp32", 2**20),
        )
    ),
    *(("energy", (d, other, norms, "rows", *nothing, mode)) for other in (None, random(M, 2, C)) for mode in OUTPUTS),
    ("energy", (d, None, norms, "weights", random(M, N).abs(), *(None,) * 7, "trace")),
    (
        "energy",
        (pairs, pairs, norms, "dot", None, None, keys, keys, priors, factors, statistics[0], statistics[0], "trace"),
    ),
    *(
        ("inner_product", (d, other, alpha, None, norms, random(M, M), D, True, mode))
        for other in (None, random(M, 2, C))
        for mode in OUTPUTS
    ),
    *(
        ("inner_product_of_gradients", (d, other, alpha, None, norms, *stream(), True, mode))
        for other in (None, random(M, 2, C))
        for mode in OUTPUTS
    ),
    ("nonlocal_gradients", (d, alpha, norms, *stream())),
    ("energy_product", (d, None, alpha, alpha, norms, random(N, 2))),
    *(
        ("structured_ntk", (inputs(N, K, dtype), other, *network(dtype), mode))
        for dtype, other in ((torch.float32, None), (torch.float64, inputs(3, K, torch.float64)))
        for mode in OUTPUTS
    ),
]
named = pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])


@named
def test_opcheck(name, arguments):
    """PyTorch's own tests of an op: schema, fake kernel, autograd registration, tracing."""
    torch.library.opcheck(getattr(torch.ops.nntk, name).default, arguments)


def test_every_op_is_called():
    """None that is registered is missing above."""
    registered = {name.removeprefix("nntk::") for name in torch._C._dispatch_get_all_op_names() if "nntk::" in name}
    assert registered == {name for name, _ in CALLS}


@pytest.mark.parametrize("name", sorted({name for name, _ in CALLS}))
def test_compiles_without_a_break(name):
    """torch.compile sees through the op, and gives what eager gives."""
    arguments = dict(CALLS)[name]
    torch.compiler.reset()

    def function(*arguments):
        made = getattr(torch.ops.nntk, name)(*arguments)
        return [part * 2 for part in (made if isinstance(made, tuple) else (made,))]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for made, expected in zip(compiled(*arguments), function(*arguments), strict=True):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("name", ["mlp_differences", "energy", "attention_weights", "structured_ntk"])
def test_backward_says_that_there_is_none(name):
    """A gradient through finite differences is asked for by mistake."""
    first, *others = dict(CALLS)[name]
    made = getattr(torch.ops.nntk, name)(first.clone().requires_grad_(), *others)
    with pytest.raises(RuntimeError, match=f"nntk::{name} has no backward"):
        (made[0] if isinstance(made, tuple) else made).sum().backward()
