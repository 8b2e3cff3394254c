"""The tuned reference against the definition in a few lines, in float64 and on the same displacements."""

import pytest
import torch
from conftest import inputs, mlp

from nntk.kernels.perturb import definition, mlp_differences
from nntk.models.recognise import recognise


@pytest.mark.parametrize("pairs", ["none", "odd", "both"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sign"])
def test_the_reference_is_the_definition(activation, pairs, directions, propagation):
    """Differences and norms agree to rounding, for every family, both propagations and every value of pairs."""
    model, x = mlp(5, 20, 9, 2, activation=activation, dtype=torch.float64), inputs(7, 5, torch.float64)
    model[2].weight.requires_grad_(False)
    layers, sample_ids = recognise(model).layers, torch.tensor([3, 0, 2**32 - 1])
    scales = torch.tensor([0.3, 0.05, 0.01], dtype=torch.float64)
    expected, expected_norms = definition.mlp_differences(x, layers, sample_ids, scales, 8, directions, pairs)
    result, norms = mlp_differences(x, layers, sample_ids, scales, 8, directions, pairs, propagation)
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-12, atol=0)
