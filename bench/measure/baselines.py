"""Baselines without nntk: torch.func over stacked copies of the parameters, and plain inference."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nntk.kernels.assemble import assemble


@torch.no_grad()
def stacked_differences(
    model: nn.Module, x: Tensor, gamma: float, samples: int, seed: int, stacked: int = 8
) -> tuple[Tensor, Tensor]:
    """Compute antithetic differences by ``torch.func.vmap`` over stacked displaced parameters, noise included.

    Args:
        model: The module; its parameters are displaced.
        x: Inputs, [N, ...].
        gamma: Length scale; a coordinate's standard deviation is gamma / sqrt(2).
        samples: Number M of antithetic pairs.
        seed: Seed of torch's generator, which draws the noise.
        stacked: Pairs whose parameters are held at once; a larger stack leaves a CPU's caches.

    Returns:
        Odd differences [M, N, C], and squared norms of the displacements [M].
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def evaluate(displaced: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(model, displaced, (x,))
        return out

    differences, norms = [], []
    for first in range(0, samples, stacked):
        count = min(stacked, samples - first)
        noise = {
            name: torch.randn(count, *p.shape, dtype=p.dtype, device=p.device, generator=generator).mul_(
                gamma / math.sqrt(2)
            )
            for name, p in parameters.items()
        }
        both = {name: torch.cat((p + noise[name], p - noise[name])) for name, p in parameters.items()}
        f = torch.vmap(evaluate)(both)
        differences.append((f[:count] - f[count:]) / 2)
        norms.append(torch.stack([part.flatten(1).square().sum(1) for part in noise.values()]).sum(0))
    return torch.cat(differences), torch.cat(norms)


def stacked_kernel(model: nn.Module, x: Tensor, gamma: float, samples: int, seed: int) -> Tensor:
    """Return the energy kernel from :func:`stacked_differences`, [N, N]."""
    differences, norms = stacked_differences(model, x, gamma, samples, seed)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    weights = torch.full((samples,), 1 / samples, dtype=torch.float64, device=x.device)
    return assemble(differences, weights, norms, num_params)


@torch.no_grad()
def plain_forwards(model: nn.Module, x: Tensor, count: int) -> None:
    """Run ``count`` unperturbed forward passes, the least cost of ``count`` evaluations of the model."""
    for _ in range(count):
        model(x)
