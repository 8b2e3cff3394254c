"""Every op as PyTorch sees it: schema, fake kernel, tracing and compiling without a break; none has a backward."""

import logging
from contextlib import contextmanager

import pytest
import torch
from conftest import inputs, mlp
from torch.utils._pytree import tree_leaves, tree_map

from nntk.bench.suites.op_arguments import small_calls
from nntk.kernels import dispatch, target
from nntk.kernels.activations import encode
from nntk.models.recognise import recognise

CALLS = small_calls()
NAMES = sorted({name for name, _ in CALLS})


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_opcheck(name, arguments):
    """PyTorch's own tests of an op: schema, fake kernel, autograd registration, tracing."""
    torch.library.opcheck(getattr(torch.ops.nntk, name).default, arguments)


def test_every_op_is_called():
    """None that is registered is missing."""
    registered = {name.removeprefix("nntk::") for name in torch._C._dispatch_get_all_op_names() if "nntk::" in name}
    assert registered == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_break(name):
    """torch.compile sees through the op, and gives what eager gives."""
    arguments = dict(CALLS)[name]
    torch.compiler.reset()

    def function(*arguments):
        result = getattr(torch.ops.nntk, name)(*arguments)
        return [part * 2 for part in (result if isinstance(result, tuple) else (result,))]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(*arguments), function(*arguments), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["mlp_differences", "energy", "attention_weights", "structured_ntk"])
def test_backward_says_that_there_is_none(name):
    """A gradient through finite differences is asked for by mistake."""
    first, *others = dict(CALLS)[name]
    result = getattr(torch.ops.nntk, name)(first.clone().requires_grad_(), *others)
    with pytest.raises(RuntimeError, match=f"nntk::{name} has no backward"):
        (result[0] if isinstance(result, tuple) else result).sum().backward()


@pytest.fixture
def slow_paths(caplog):
    """Log lines on slow paths, none of which was said before."""
    dispatch.report_slow_path.cache_clear()
    caplog.set_level(logging.WARNING, logger="nntk")
    yield caplog
    dispatch.report_slow_path.cache_clear()


@pytest.mark.parametrize(("arch", "reason"), [("sm_75", "sm_80"), ("gfx1100", "gfx942"), (None, "Triton is not inst")])
def test_a_gpu_without_kernels_is_told_once(monkeypatch, slow_paths, arch, reason):
    """Old and unknown cards, and a missing Triton: the reference serves, and one line says why."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(target, "target_of", lambda device: target.Target(arch))
    monkeypatch.setattr(target, "_TRITON", arch is not None)
    for name in ("mlp_differences", "energy"):
        reference = dispatch.REGISTERED[name].reference
        assert dispatch._implementation(name, reference, "a launcher", torch.device("cuda")) is reference
    (message,) = slow_paths.messages
    assert reason in message and "Plain torch" in message


def test_what_has_no_kernels_is_told_once(monkeypatch, slow_paths):
    """Float64, the direct form and ties in float64 take the reference, each with one line that names it."""
    launch = pytest.importorskip("nntk.kernels.perturb.triton.launch")
    tied = mlp(3, 4, 4, 1, activation="sign")
    tied[2].requires_grad_(False)
    cases = [
        (mlp(3, 4, 1).double(), "difference", "float64"), (mlp(3, 4, 1), "direct", "'direct'"),
        (tied, "difference", "jump"),
    ]  # fmt: skip
    for model, propagation, reason in cases:
        layers = recognise(model).layers
        names, parameters = encode([layer.activation for layer in layers])
        network = [layer.weight for layer in layers], [layer.bias for layer in layers], names, parameters
        ordinals = [[-1 if n is None else n for n in (getattr(layer, f"{kind}_ordinal") for layer in layers)]
                    for kind in ("weight", "bias")]  # fmt: skip
        x = inputs(2, 3).to(layers[0].weight.dtype)
        call = (x, *network, *ordinals, torch.arange(2), x.new_full((2,), 0.1), 1, 2, "gaussian", "odd", propagation)
        for _ in range(2):
            result = launch.mlp_differences(*call, "fp32", 2**27)[0]
        assert torch.equal(result, dispatch.REGISTERED["mlp_differences"].reference(*call, "fp32", 2**27)[0])
        assert len(slow_paths.messages) == 1 and reason in slow_paths.messages[0]
        slow_paths.clear()


def kernels_of(name):
    """The function that serves an op by Triton kernels; None if the reference does."""
    for part in ("assemble", "attention", "fixed_weights", "local_ntk", "perturb", "philox"):
        module = pytest.importorskip(f"nntk.kernels.{part}.triton.launch")
        function = vars(module).get(name)
        if getattr(function, "__module__", "") == module.__name__:
            return function
    return None


IMPLEMENTATIONS = {
    "kernels": kernels_of,
    "reference": lambda name: dispatch.REGISTERED[name].reference,
    "dispatcher": lambda name: getattr(torch.ops.nntk, name),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def default_dtype(dtype):
    """PyTorch makes tensors of a dtype where none is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_float32(argument):
    """The argument in the dtype that kernels serve."""
    is_float64 = isinstance(argument, torch.Tensor) and argument.dtype == torch.float64
    return argument.float() if is_float64 else argument


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_results_do_not_depend_on_the_default_dtype(implementation):
    """Every op, in each of its forms: dtypes and bits of the results are those with the usual default."""
    compared = 0
    for name, arguments in small_calls(DEVICE):
        function = IMPLEMENTATIONS[implementation](name)
        if function is None:
            continue
        if name != "radial_weights":  # Norms are in float64 by definition.
            arguments = tree_map(in_float32, arguments)
        expected = tree_leaves(function(*arguments))
        with default_dtype(torch.float64):
            results = tree_leaves(function(*arguments))
        for result, usual in zip(results, expected, strict=True):
            assert result.dtype == usual.dtype, (name, arguments)
            assert torch.equal(result, usual), (name, arguments)
        compared += 1
    assert compared > 20
