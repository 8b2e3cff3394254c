"""The same local NTK from other libraries: their blocks in docs/interoperability.md, where they are installed."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mlp
from torch.func import functional_call, jacrev, vmap

import nntk

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interoperability.md").read_text()
REFERENCE = np.load(ROOT / "tests" / "data" / "neural_tangents.npz")


def blocks(text, language):
    """Return the code of the blocks of a language."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["nngeometry", "neural_tangents"])
def test_the_blocks_of_a_library_agree_with_it(library):
    """They run after the common ones and compare by themselves."""
    try:
        importlib.import_module(library)
    except Exception as error:  # On newer versions of JAX the import fails in any way.
        pytest.skip(f"{library} cannot be imported: {error}")
    section = PAGE.partition(f"\n## {library.replace('_', '-')}\n")[2].partition("\n## ")[0]
    code = blocks(section, "py")
    assert "assert_close" in code
    exec(compile(f"{blocks(PAGE, 'python')}\n{code}", "interoperability.md", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_three_ways_to_the_same_numbers(activation):
    """Values of neural-tangents 0.6.5, torch.func's Jacobians, and ``local_ntk``, for two sets of inputs."""

    def value(name):
        return torch.from_numpy(REFERENCE[f"mlp_{activation}_{name}"])

    model = mlp(5, 16, 24, 2, activation=activation, dtype=torch.float64)
    for number, layer in enumerate(model[::2]):
        layer.weight.data, layer.bias.data = value(f"weight{number}"), value(f"bias{number}")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    jacobians = [
        vmap(jacrev(lambda p, x: functional_call(model, p, (x[None],))[0]), (None, 0))(parameters, value(name))
        for name in ("x1", "x2")
    ]
    pairs = zip(*(one.values() for one in jacobians), strict=True)
    theta = sum(torch.einsum("ncp,mdp->nmcd", a.flatten(2), b.flatten(2)) for a, b in pairs)
    torch.testing.assert_close(theta, value("ntk"), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(nntk.local_ntk(model, value("x1"), value("x2"), outputs="full"), theta)
