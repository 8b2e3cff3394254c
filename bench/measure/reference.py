"""Reference values: differences in float64 by plain evaluation of the model at the same displacements."""

import copy

import torch
from torch import Tensor, nn

from nntk import NonlocalNTK
from nntk.kernels.assemble import assemble
from nntk.models.functional import call


@torch.no_grad()
def float64_differences(kernel: NonlocalNTK, x: Tensor) -> Tensor:
    """Return antithetic differences of ``kernel.model`` in float64, one displacement at a time, [M, N, C]."""
    assert isinstance(kernel.model, nn.Module), "the suites measure modules"
    model, x = copy.deepcopy(kernel.model).double(), x.double() if x.is_floating_point() else x
    parameters = dict(model.named_parameters())

    def evaluate(displacement: dict[str, Tensor], sign: int) -> Tensor:
        displaced = {name: parameters[name] + sign * delta.double() for name, delta in displacement.items()}
        outputs: Tensor = call(model, displaced, x)
        return outputs

    rows = []
    for m in range(kernel.samples):
        displacement = kernel.displacements(m)
        rows.append((evaluate(displacement, 1) - evaluate(displacement, -1)) / 2)
    return torch.stack(rows)


def float64_kernel(kernel: NonlocalNTK, x: Tensor) -> Tensor:
    """Return the energy kernel in float64 from :func:`float64_differences`, [N, N]."""
    weights = torch.full((kernel.samples,), 1 / kernel.samples, dtype=torch.float64, device=x.device)
    return assemble(float64_differences(kernel, x), weights, kernel.squared_norms(), kernel.num_params)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the error over that of the expected values."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def flipped(actual: Tensor, expected: Tensor) -> Tensor:
    """Mark (displacement, input) pairs with an error above rounding: an activation fell on the other side of a jump."""
    return ((actual.double() - expected).abs() > 1e-3 * expected.abs().mean()).any(-1)
