"""Comparison of two kernels: alignment, spectra, effective rank and principal angles, with Monte-Carlo errors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from nntk.estimators.errors.estimate import Estimate
from nntk.kernels import checks
from nntk.linalg.alignment import alignment, centred, effective_rank, principal_angles
from nntk.linalg.matrices import symmetric
from nntk.linalg.vectors import check_real

_BOOTSTRAP = 48
"""Number of kernels that a bootstrap draws: its standard errors are known to about 1 / sqrt(2 * 48), a tenth."""


@dataclass(frozen=True)
class Statistic:
    """Number of a kernel, or several, with their Monte-Carlo error.

    Attributes:
        value: Value, a scalar or [k], float64.
        standard_error: Standard error of the value, in its shape; zero where the kernels are exact.
        bias: Estimate of what the noise adds to the value on average, in its shape; zero where the kernels are exact.
            The value minus the bias is nearer to that of the kernels without noise.
    """

    value: Tensor
    standard_error: Tensor
    bias: Tensor

    def __str__(self) -> str:
        pairs = zip(self.value.reshape(-1).tolist(), self.standard_error.reshape(-1).tolist(), strict=True)
        return ", ".join(f"{value:.4g}" + (f" ± {error:.2g}" if error else "") for value, error in pairs)


@dataclass(frozen=True)
class KernelComparison:
    r"""Comparison of two kernels K and L of the same N inputs.

    Attributes:
        alignment: :math:`\langle K, L \rangle / (|K|_F\,|L|_F)`, 1 for kernels that differ by a factor only.
        centred_alignment: Alignment of the kernels of centred features, :math:`HKH` and :math:`HLH` with
            :math:`H = I - 1 1^\top / N`; it ignores what is the same for all inputs.
        difference: Relative difference :math:`|K - L|_F / |L|_F`.
        eigenvalues: The k largest eigenvalues of K and of L, the largest first.
        effective_rank: :math:`(\sum \lambda)^2 / \sum \lambda^2` of K and of L.
        angles: Principal angles between the spaces of the k leading eigenvectors of K and of L, [k], in radians, the
            smallest first.
        errors: Method by which the errors of K and of L are found: ``"exact"``, ``"jackknife"`` or ``"bootstrap"``.
    """

    alignment: Statistic
    centred_alignment: Statistic
    difference: Statistic
    eigenvalues: tuple[Statistic, Statistic]
    effective_rank: tuple[Statistic, Statistic]
    angles: Statistic
    errors: tuple[str, str]

    def __str__(self) -> str:
        lines = []
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            for number, statistic in enumerate(value if isinstance(value, tuple) else (value,)):
                name = field.name.replace("_", " ") + (f" of {'KL'[number]}" if isinstance(value, tuple) else "")
                lines.append(f"{name:20} {statistic}")
        return "\n".join(lines)


def compare(
    first: Tensor | Estimate, second: Tensor | Estimate, *, top: int = 5, paired: bool = False
) -> KernelComparison:
    r"""Compare two kernels of the same inputs, with the Monte-Carlo errors of those that are estimates.

    The errors are those of the displacements alone, and come from kernels that might as well have been drawn:

    * **exact**: a tensor has no error.
    * **jackknife**: an estimate with ``keep_replicates=True`` has G kernels without one group of displacements each.
      Each number is computed from all of them, and its variance is :math:`\tfrac{G - 1}{G} \sum_g (t_g - \bar t)^2`.
      This holds for all estimators and weights.
    * **bootstrap**: an estimate without replicates has the errors of single entries only, and the entries err together.
      Kernels are drawn from Wishart's law around the estimate, which is that of a sum of M squares of differences that
      are jointly normal. Its M is the one with which the norm of the error is that of ``standard_error``. This suits
      the energy form of smooth models; keep the replicates for others.

    Errors of two estimates add up as those of independent ones. Where both use the same displacements, as two kernels
    of the same seed before and after training, they err together, and ``paired=True`` leaves the same group out of
    both.

    Noise also has a bias: it makes kernels less aligned, and spectra steeper. ``bias`` estimates it.

    Args:
        first: K, [N, N], symmetric: a tensor of any real dtype, or an estimate by :meth:`nntk.NonlocalNTK.estimate`.
        second: L, [N, N], likewise, on the same device.
        top: Number k of leading eigenvalues and eigenvectors to compare, at most N.
        paired: True if both estimates use the same displacements; both must have as many replicates.

    Returns:
        The comparison, computed in float64.

    Raises:
        ValueError: If a kernel is not square, not symmetric, not finite or zero, the shapes or devices differ, ``top``
            is out of range, or replicates are missing for ``paired``.
        TypeError: If a kernel is neither a tensor nor an estimate, or complex.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> result = compare(a @ a.T, 3 * a @ a.T, top=2)
        >>> round(float(result.alignment.value), 6), round(float(result.difference.value), 6), result.errors
        (1.0, 0.666667, ('exact', 'exact'))
    """
    pair = [_Kernel.of(_checked(name, given)) for name, given in (("first", first), ("second", second))]
    shapes = [tuple(kernel.matrix.shape) for kernel in pair]
    if shapes[0] != shapes[1]:
        raise ValueError(f"second must have shape {shapes[0]} like first, got {shapes[1]}.")
    devices = [kernel.matrix.device for kernel in pair]
    if devices[0] != devices[1]:
        raise ValueError(f"second must be on {devices[0]} like first, got {devices[1]}.")
    top = checks.integer("top", top, 1, len(pair[0].matrix), "It is a number of eigenvectors.")
    draws = [_draw(given, kernel) for given, kernel in zip((first, second), pair, strict=True)]
    methods, replicates = [method for method, _ in draws], [drawn for _, drawn in draws]
    if checks.boolean("paired", paired):
        _check_paired(methods, replicates)
        together = [_numbers(one, two, top) for one, two in zip(*replicates, strict=True)]
        sources = [("jackknife", together)]
    else:
        sources = [
            (methods[0], [_numbers(one, pair[1], top) for one in replicates[0]]),
            (methods[1], [_numbers(pair[0], one, top) for one in replicates[1]]),
        ]
    found = {name: _statistic(name, value, sources) for name, value in _numbers(pair[0], pair[1], top).items()}
    return KernelComparison(
        found["alignment"], found["centred_alignment"], found["difference"],
        (found["eigenvalues of K"], found["eigenvalues of L"]), (found["rank of K"], found["rank of L"]),
        found["angles"], (methods[0], methods[1]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Kernel:
    """Kernel with its eigenvalues, the largest first, and its eigenvectors, float64."""

    matrix: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "_Kernel":
        values, vectors = torch.linalg.eigh(matrix)
        return cls(matrix, values.flip(0), vectors.flip(1))


_Numbers = dict[str, Tensor]


def _numbers(first: _Kernel, second: _Kernel, top: int) -> _Numbers:
    """Return every number of the comparison of two kernels."""
    k1, k2 = first.matrix, second.matrix
    scalars = {
        "alignment": alignment(k1, k2),
        "centred_alignment": alignment(centred(k1), centred(k2)),
        "difference": float((k1 - k2).norm() / k2.norm()),
        "rank of K": effective_rank(k1),
        "rank of L": effective_rank(k2),
    }
    return {name: torch.tensor(value, dtype=torch.float64, device=k1.device) for name, value in scalars.items()} | {
        "eigenvalues of K": first.values[:top],
        "eigenvalues of L": second.values[:top],
        "angles": principal_angles(first.vectors[:, :top], second.vectors[:, :top]),
    }


def _statistic(name: str, value: Tensor, sources: Sequence[tuple[str, Sequence[_Numbers]]]) -> Statistic:
    """Return a number with its error, which adds up over independent sources of replicates."""
    variance, bias = torch.zeros_like(value), torch.zeros_like(value)
    for method, replicates in sources:
        if not replicates:
            continue
        # As steps from the value, so that what does not change has no error at all.
        steps = torch.stack([numbers[name] for numbers in replicates]) - value
        if method == "jackknife":
            variance += steps.var(0) * ((len(steps) - 1) ** 2 / len(steps))
            bias += (len(steps) - 1) * steps.mean(0)
        else:
            variance += steps.var(0)
            bias += steps.mean(0)
    return Statistic(value, variance.sqrt(), bias)


def _draw(given: Tensor | Estimate, kernel: _Kernel) -> tuple[str, list[_Kernel]]:
    """Return the method by which the errors of a kernel are found, and the kernels that might have been drawn."""
    if isinstance(given, Tensor):
        return "exact", []
    if given.replicates is not None:
        return "jackknife", [_Kernel.of(replicate.double()) for replicate in given.replicates]
    squared_error = float(given.standard_error.double().square().sum())
    if squared_error == 0:
        return "exact", []
    freedom = float(kernel.matrix.trace() ** 2 + kernel.matrix.square().sum()) / squared_error
    root, generator = kernel.vectors * kernel.values.clamp(min=0).sqrt(), np.random.default_rng(0)
    factors = (root @ _wishart_factor(len(root), freedom, generator).to(root.device) for _ in range(_BOOTSTRAP))
    return "bootstrap", [_Kernel.of(factor @ factor.T) for factor in factors]


def _wishart_factor(size: int, freedom: float, generator: np.random.Generator) -> Tensor:
    """Draw a matrix R of which R R^T has Wishart's law, of mean one: Bartlett's triangle, or few normal columns."""
    if freedom < size:
        normal = generator.normal(size=(size, max(1, round(freedom))))
        return torch.from_numpy(normal / normal.shape[1] ** 0.5)
    triangle = np.tril(generator.normal(size=(size, size)), -1)
    np.fill_diagonal(triangle, generator.chisquare(freedom - np.arange(size)) ** 0.5)
    return torch.from_numpy(triangle / freedom**0.5)


def _check_paired(methods: Sequence[str], replicates: Sequence[Sequence[_Kernel]]) -> None:
    """Check that both kernels have replicates without the same groups."""
    counts = [len(drawn) for drawn in replicates]
    if methods != ["jackknife", "jackknife"] or counts[0] != counts[1]:
        raise ValueError(
            "paired must be False unless both kernels are estimates of equal samples with keep_replicates=True, "
            f"got errors by {methods[0]} from {counts[0]} and by {methods[1]} from {counts[1]} kernels."
        )


def _checked(name: str, given: Tensor | Estimate) -> Tensor:
    """Check a kernel, and return its symmetric part in float64."""
    if not isinstance(given, Tensor | Estimate):
        raise TypeError(f"{name} must be a torch.Tensor or an Estimate, got {type(given).__name__}.")
    kernel = given.kernel if isinstance(given, Estimate) else given
    check_real(name, kernel)
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"{name} must have shape [N, N], got {tuple(kernel.shape)}; outputs='trace' gives such a kernel."
        )
    if not bool(kernel.any()):
        raise ValueError(f"{name} must have an entry other than zero, got {len(kernel)} rows of zeros.")
    return symmetric(name, kernel.detach().double())
