"""Reference values: differences in float64 by plain evaluation of the model at the very same displacements."""

import copy

import torch
from torch import Tensor

from nntk import NonlocalNTK
from nntk.functional import call


@torch.no_grad()
def float64_differences(kernel: NonlocalNTK, x: Tensor) -> Tensor:
    """Antithetic differences of ``kernel.model`` in float64, one displacement at a time, [M, N, C]."""
    model, x = copy.deepcopy(kernel.model).double(), x.double()
    parameters = dict(model.named_parameters())

    def evaluate(displacement: dict[str, Tensor], sign: int) -> Tensor:
        moved = {name: parameters[name] + sign * delta.double() for name, delta in displacement.items()}
        return call(model, moved, x)

    rows = []
    for m in range(kernel.samples):
        displacement = kernel.displacements(m)
        rows.append((evaluate(displacement, 1) - evaluate(displacement, -1)) / 2)
    return torch.stack(rows)


def relative_error(differences: Tensor, kernel: NonlocalNTK, x: Tensor) -> float:
    """Frobenius error of differences relative to the float64 ones on the same displacements."""
    expected = float64_differences(kernel, x)
    return float((differences.double() - expected).norm() / expected.norm())
