"""Every op as PyTorch sees it: schema, fake kernel, tracing and compiling without a break; none has a backward."""

import pytest
import torch

from nntk.bench.suites.op_arguments import small_calls

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
