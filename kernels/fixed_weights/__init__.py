"""Fixed kernels: lengths of displacements drawn from them, and weights for displacements that are not."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.dispatch import register
from nntk.kernels.fixed_weights import cost, reference
from nntk.kernels.fixed_weights.distributions import DISTRIBUTIONS
from nntk.kernels.fixed_weights.fixed_kernel import FixedKernel
from nntk.kernels.fixed_weights.softmax import (
    EffectiveSampleWarning,
    effective_samples,
    merge,
    summarise,
    warn_if_few,
    weigh,
)
from nntk.kernels.philox import parse, split_seed

__all__ = [
    "DISTRIBUTIONS",
    "EffectiveSampleWarning",
    "FixedKernel",
    "check_statistics",
    "effective_samples",
    "log_weights",
    "merge",
    "normalise",
    "radial_weights",
    "radii",
    "squared_norms",
    "summarise",
    "warn_if_few",
    "weigh",
]

_squared_norms = register(
    "squared_norms(Tensor[] parameters, int[] ordinals, Tensor sample_ids, int seed_low, int seed_high, str directions)"
    " -> Tensor",
    reference.squared_norms,
    cost.squared_norms,
    lambda parameters, ordinals, sample_ids, *_: sample_ids.new_empty(sample_ids.shape, dtype=reference.NORM_DTYPE),
    launcher="nntk.kernels.philox.triton.launch",
    compiled="nntk.kernels.philox.cpu.launch",
)
_radii = register(
    "radii(Tensor sample_ids, int seed_low, int seed_high, str distribution, int num_params, float scale, float order)"
    " -> Tensor",
    reference.radii,
    cost.radii,
    lambda sample_ids, *_: sample_ids.new_empty(sample_ids.shape, dtype=reference.NORM_DTYPE),
)
_radial_weights = register(
    "radial_weights(Tensor squared_lengths, str distribution, float[] parameters, str proposal_distribution,"
    " float[] proposal_parameters) -> (Tensor, Tensor)",
    reference.radial_weights,
    cost.radial_weights,
    lambda squared_lengths, *_: (torch.empty_like(squared_lengths), squared_lengths.new_empty(3)),
    launcher="nntk.kernels.fixed_weights.triton.launch",
)


def squared_norms(
    parameters: Mapping[int, Tensor], sample_ids: Tensor, seed: int, directions: str = "gaussian"
) -> Tensor:
    r"""Compute squared norms :math:`|E_m|^2` of unit displacements, summed over all displaced parameters.

    Args:
        parameters: Displaced parameters by ordinal; only their shapes are read.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: ``"gaussian"``, whose norm is a chi-squared variable near d, or another family, whose norm is d.

    Returns:
        [M], float64, in squared units of the scale s: :math:`|\delta_m|^2 = s_m^2 |E_m|^2`.

    Raises:
        ValueError: If a name is unknown or the seed is out of range.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed is not an integer.

    Example:
        >>> import torch
        >>> squared_norms({0: torch.zeros(3, 4)}, torch.arange(2), seed=1, directions="rademacher")
        tensor([12., 12.], dtype=torch.float64)
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    return _squared_norms(list(parameters.values()), list(parameters), sample_ids, *split_seed(seed), directions)


def radii(sample_ids: Tensor, seed: int, kernel: FixedKernel, num_params: int, gamma: float | None = None) -> Tensor:
    r"""Draw lengths :math:`R_m = |\delta_m|` of displacements from a fixed kernel, or from its proposal.

    With directions :math:`E_m / |E_m|`, displacements are :math:`\delta_m = R_m E_m / |E_m|`: the unit displacement
    times its scale :math:`s_m = R_m / |E_m|`.

    Args:
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        kernel: Fixed kernel; if it has a proposal, lengths are drawn from the proposal.
        num_params: Number d of displaced parameters.
        gamma: Length scale, used if the kernel has no gamma.

    Returns:
        [M], float64, in parameter units. A length is a function of the seed and the sample alone, the same on all
        devices up to rounding.

    Raises:
        ValueError: If gamma is given neither here nor to the kernel, or a number is out of range.
        TypeError: If ``sample_ids`` is not an int64 vector, ``seed`` or ``num_params`` is not an integer, or gamma is
            not a number.

    Example:
        >>> import torch
        >>> bool((radii(torch.arange(100), 0, FixedKernel("ball", horizon=2.0), num_params=10) <= 2).all())
        True
    """
    checks.sample_ids(sample_ids)
    source = kernel.drawn_from
    low, high = split_seed(seed)
    return _radii(sample_ids, low, high, source.name, num_params, source.scale(num_params, gamma), source.order or 0.0)


def log_weights(kernel: FixedKernel, squared_lengths: Tensor, num_params: int, gamma: float | None = None) -> Tensor:
    r"""Compute log weights :math:`\ln \rho(\delta_m) - \ln q(\delta_m)` of displacements drawn from the proposal q.

    Args:
        kernel: Fixed kernel rho with its proposal q.
        squared_lengths: Squared lengths :math:`|\delta_m|^2`, [M], float64, in squared parameter units.
        num_params: Number d of displaced parameters.
        gamma: Length scale, used for each of the two kernels that has no gamma.

    Returns:
        [M], float64, up to a constant: zeros without a proposal, minus infinity where rho is zero (beyond its horizon,
        below its cutoff), plus infinity where only q is.

    Raises:
        ValueError: If a gamma is missing, a number is out of range, or the lengths are not a vector.
        TypeError: If the lengths are not float64, ``num_params`` is not an integer, or gamma is not a number.

    Example:
        >>> import torch
        >>> kernel = FixedKernel("ball", horizon=2.0, proposal=FixedKernel("gaussian", gamma=1.0))
        >>> log_weights(kernel, torch.tensor([1.0, 9.0], dtype=torch.float64), num_params=3)
        tensor([1., -inf], dtype=torch.float64)
    """
    _check_lengths(squared_lengths)
    if kernel.proposal is None:
        return torch.zeros_like(squared_lengths)
    return reference.log_ratio(squared_lengths, *_distribution_arguments(kernel, kernel.proposal, num_params, gamma))


def normalise(log_weights: Tensor, kernel: FixedKernel | None = None) -> tuple[Tensor, float]:
    r"""Compute weights :math:`\alpha_m = e^{l_m} / \sum_{m'} e^{l_{m'}}` and their effective number of samples.

    The largest log weight is subtracted first, so that nothing overflows and no normaliser is formed.

    Args:
        log_weights: Log weights l, [M], float64; minus infinity for a displacement without weight.
        kernel: Fixed kernel that the weights come from, named in errors.

    Returns:
        Weights [M], float64, summing to one, and :math:`1 / \sum_m \alpha_m^2`, between 1 and M.

    Raises:
        ValueError: If the log weights are not a vector, none of them is finite, or one is NaN or plus infinity.

    Example:
        >>> import torch
        >>> normalise(torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64))
        (tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64), 2.0)
    """
    if log_weights.dim() != 1:
        raise ValueError(f"log_weights must be a vector [M], got shape {tuple(log_weights.shape)}.")
    statistics = summarise(log_weights)
    check_statistics(statistics, len(log_weights), kernel)
    return weigh(log_weights, statistics), float(effective_samples(statistics))


def radial_weights(
    kernel: FixedKernel, squared_lengths: Tensor, num_params: int, gamma: float | None = None
) -> tuple[Tensor, Tensor]:
    r"""Compute weights of displacements drawn from the proposal q: the softmax of :math:`\ln \rho - \ln q`.

    The result equals :func:`normalise` of :func:`log_weights`; on a GPU it takes two passes over the lengths.

    Args:
        kernel: Fixed kernel rho with its proposal q; without one, all weights are 1 / M.
        squared_lengths: Squared lengths :math:`|\delta_m|^2`, [M], float64, in squared parameter units.
        num_params: Number d of displaced parameters.
        gamma: Length scale, used for each of the two kernels that has no gamma.

    Returns:
        Weights [M], float64, summing to one, and their statistics, [3], float64: see :func:`summarise` and
        :func:`effective_samples`.

    Raises:
        ValueError: If a gamma is missing, a number is out of range, the lengths are not a finite vector, no
            displacement has a weight, or one lies where q is zero.
        TypeError: If the lengths are not float64, ``num_params`` is not an integer, or gamma is not a number.

    Example:
        >>> import torch
        >>> kernel = FixedKernel("ball", horizon=2.0, proposal=FixedKernel("gaussian", gamma=1.0))
        >>> radial_weights(kernel, torch.tensor([1.0, 9.0], dtype=torch.float64), num_params=3)[0]
        tensor([1., 0.], dtype=torch.float64)
    """
    _check_lengths(squared_lengths)
    count = len(squared_lengths)
    if kernel.proposal is None:
        return torch.full_like(squared_lengths, 1 / max(1, count)), squared_lengths.new_tensor([0.0, count, count])
    weights, statistics = _radial_weights(
        squared_lengths, *_distribution_arguments(kernel, kernel.proposal, num_params, gamma)
    )
    check_statistics(statistics, count, kernel)
    return weights, statistics


def _distribution_arguments(
    kernel: FixedKernel, proposal: FixedKernel, num_params: int, gamma: float | None
) -> tuple[str, list[float], str, list[float]]:
    """Return names, scales and steepnesses of a kernel and its proposal as the op requires them."""
    first, second = ([rho.scale(num_params, gamma), rho.steepness(num_params)] for rho in (kernel, proposal))
    return kernel.name, first, proposal.name, second


def _check_lengths(squared_lengths: Tensor) -> None:
    if squared_lengths.dim() != 1:
        raise ValueError(f"squared_lengths must be a vector [M], got shape {tuple(squared_lengths.shape)}.")
    if squared_lengths.dtype != torch.float64:
        raise TypeError(
            f"squared_lengths must be float64, got {squared_lengths.dtype}: log densities are d times as large as "
            "the logarithm of a length, and so are their rounding errors."
        )


def check_statistics(statistics: Tensor, samples: int, kernel: FixedKernel | None = None) -> None:
    """Check that at least one displacement of a softmax has a weight.

    Args:
        statistics: Statistics of all displacements, [3]: see :func:`summarise`.
        samples: Number M of displacements, given in errors.
        kernel: Fixed kernel that the weights come from, named in errors.

    Raises:
        ValueError: If no displacement has a weight, or a log weight is NaN or plus infinity.
    """
    top, total, _ = statistics.tolist()
    if top == math.inf:
        raise ValueError(
            "log weights must be finite or minus infinity, got plus infinity: a displacement lies where the proposal "
            "is zero, so it was not drawn from the proposal."
        )
    if math.isnan(total) or math.isnan(top):
        raise ValueError("log weights must not be NaN: a length or a score is NaN or infinite.")
    if total == 0:
        inside = {"ball": "within the horizon", "power": "beyond the cutoff"}
        where = inside.get(kernel.name if kernel else "", " or ".join(inside.values()))
        raise ValueError(f"0 of {samples} displacements remain {where} of the fixed kernel{_named(kernel)}.")


def _named(kernel: FixedKernel | None) -> str:
    return f" {kernel!r}; its proposal must reach there" if kernel else ""
