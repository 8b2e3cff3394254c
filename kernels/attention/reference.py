r"""Softmax attention over displacements in plain torch: the definition, the CPU backend and the tests' oracle.

The weight of displacement m at an input x is

.. math::
    \alpha_m(x) = \frac{\sum_\pm \exp e^\pm_m(x)}{\sum_m \sum_\pm \exp e^\pm_m(x)}, \qquad
    e_m(x) = \text{prior}_m + a_m t_m(x),

with a raw score t of the differences D (in units of their scale s) and a factor :math:`a_m` that holds scale and
temperature: ``"dot"`` takes :math:`t = \langle f(x), D_m(x) \rangle`, ``"distance"`` :math:`t = -|D_m(x)|^2 / 2`,
``"given"`` takes scores that the caller computed. The sum over signs is over the plus and minus members of an
antithetic pair. Exponentials are taken only of exponents relative to the largest one of their input.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.softmax import share
from nntk.kernels.philox.integers import PROJECTION
from nntk.kernels.philox.reference import generate, unit_slabs
from nntk.kernels.philox.slabs import TILE, Slab, slabs_of
from nntk.kernels.philox.source import PLAIN, Source


def attention_scores(d: Tensor, keys: Tensor | None, score: str) -> Tensor:
    """Compute raw scores t [..., M, N] of differences [..., M, N, C], with outputs ``keys`` [N, C] for ``"dot"``."""
    if score == "dot":
        assert keys is not None, "the op checks the keys"
        return torch.einsum("...mnc,nc->...mn", d, keys).contiguous()
    return d.square().sum(-1).mul_(-0.5) if score == "distance" else d.squeeze(-1)


def exponents(values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str) -> Tensor:
    """Compute exponents e [1 or 2, M, N] in float64, with a leading axis for the members of an antithetic pair."""
    raw = attention_scores(values, keys, score).double()
    members = raw if raw.dim() == 3 else raw[None]
    return priors.double()[:, None] + factors.double()[:, None] * members


def attention_statistics(values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str) -> Tensor:
    """Compute largest exponents, sums of the weights relative to them, and sums of their squares: [3, N], float64."""
    e = exponents(values, keys, priors, factors, score)
    if not e.numel():
        return e.new_tensor([-torch.inf, 0.0, 0.0])[:, None].repeat(1, e.shape[2])
    largest = e.amax((0, 1))
    weights = (e - finite(largest)).exp().sum(0)
    return torch.stack((largest, weights.sum(0), weights.square().sum(0)))


def attention_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, statistics: Tensor, score: str
) -> Tensor:
    """Compute weights alpha [M, N], in the dtype of ``values``, of a softmax whose statistics are known."""
    e = exponents(values, keys, priors, factors, score)
    weights = (e - finite(statistics[0])).exp().sum(0) * share(statistics[1])
    return weights.to(values.dtype)


def relative_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, shifts: Tensor, score: str
) -> Tensor:
    """Compute weights [M, N] relative to exp(shift), float64; a chunk contributes these before the sum is known."""
    return (exponents(values, keys, priors, factors, score) - finite(shifts.double())).exp().sum(0)


def odd(d: Tensor) -> Tensor:
    """Return differences [M, N, C] as they are, and the odd part of both members of pairs [2, M, N, C]."""
    return d if d.dim() == 3 else (d[0] - d[1]) / 2


def finite(largest: Tensor) -> Tensor:
    """Return exponents to subtract: zero in place of minus infinity, so that weights are 0 and not NaN."""
    return torch.where(largest == -torch.inf, 0.0, largest)


def project_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    dim: int,
    source: Source = PLAIN,
) -> Tensor:
    r"""Compute products :math:`\Pi E_m` of unit displacements with a projection of the stream: [M, dim], float64."""
    key, projections = (seed_low, seed_high), torch.arange(dim, device=sample_ids.device)
    total = torch.zeros(len(sample_ids), dim, dtype=torch.float64, device=sample_ids.device)
    for slab in _slabs(parameters, ordinals, len(sample_ids) + dim):
        (noise,) = unit_slabs(directions, sample_ids, [slab], key, torch.float64, source)
        total += noise.flatten(1) @ _projection(projections, slab, key, source).T
    return total / _normaliser(parameters)


def project_parameters(
    parameters: list[Tensor], ordinals: list[int], seed_low: int, seed_high: int, dim: int, source: Source = PLAIN
) -> Tensor:
    r"""Compute the product :math:`\Pi \theta` of the parameters themselves, [dim], float64."""
    projections = torch.arange(dim, device=parameters[0].device)
    total, by_ordinal = projections.double().zero_(), dict(zip(ordinals, parameters, strict=True))
    for slab in _slabs(parameters, ordinals, dim):
        values = by_ordinal[slab.ordinal].detach().reshape(slab.shape)[slab.start : slab.stop]
        total += _projection(projections, slab, (seed_low, seed_high), source) @ values.double().flatten()
    return total / _normaliser(parameters)


def multiply_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    matrix: Tensor,
    source: Source = PLAIN,
) -> Tensor:
    """Compute products W E_m of unit displacements with a matrix W [k, d]: [M, k], float64."""
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    key = (seed_low, seed_high)
    slabs = generate(directions, sample_ids, shapes, key, torch.float64, source=source)
    return add_slabs(slabs, sample_ids, matrix)


def add_slabs(slabs: Iterable[tuple[int, Tensor]], sample_ids: Tensor, matrix: Tensor) -> Tensor:
    """Sum the products of slabs of noise with ``matrix`` [k, d]; the slabs follow each other like its columns."""
    total = torch.zeros(len(sample_ids), len(matrix), dtype=torch.float64, device=sample_ids.device)
    start = 0
    for _, noise in slabs:
        flat = noise.flatten(1).double()
        total += flat @ matrix[:, start : start + flat.shape[1]].double().T
        start += flat.shape[1]
    return total


def _slabs(parameters: list[Tensor], ordinals: list[int], copies: int) -> Iterator[Slab]:
    """Yield slabs of all parameters, so small that the noise of ``copies`` of them can be held together."""
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        yield from slabs_of(ordinal, tuple(parameter.shape), max(1, 4 * TILE // max(1, copies)))


def _projection(projections: Tensor, slab: Slab, key: tuple[int, int], source: Source) -> Tensor:
    (noise,) = source.normals(projections, [replace(slab, purpose=PROJECTION)], key, torch.float64)
    return noise.flatten(1)


def _normaliser(parameters: list[Tensor]) -> float:
    return math.sqrt(sum(parameter.numel() for parameter in parameters))
