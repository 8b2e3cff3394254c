"""Assembly of kernel matrices from differences: energy, plugin and unbiased forms, and the Gram of displacements."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.assemble import reference
from nntk.kernels.dispatch import register
from nntk.kernels.philox import parse, split_seed

__all__ = ["ESTIMATORS", "NORMALIZATIONS", "OUTPUTS", "assemble", "displacement_gram"]

ESTIMATORS = ("energy", "plugin", "unbiased")
NORMALIZATIONS = ("gradient", "paper")
OUTPUTS = ("trace", "mean", "diagonal", "full")


def _shape(d1: Tensor, d2: Tensor | None, outputs: str) -> tuple[int, ...]:
    c = d1.shape[2]
    axes = {"trace": (), "mean": (), "diagonal": (c,), "full": (c, c)}[outputs]
    return (d1.shape[1], (d1 if d2 is None else d2).shape[1], *axes)


_energy = register(
    "energy(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor squared_norms, int num_params,"
    " str outputs) -> Tensor",
    reference.energy,
    lambda d1, d2, weights1, weights2, squared_norms, num_params, outputs: d1.new_empty(_shape(d1, d2, outputs)),
)
_inner_product = register(
    "inner_product(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor squared_norms, Tensor gram,"
    " int num_params, bool unbiased, str outputs) -> Tensor",
    reference.inner_product,
    lambda d1, d2, weights1, weights2, squared_norms, gram, num_params, unbiased, outputs: d1.new_empty(
        _shape(d1, d2, outputs)
    ),
)
_gram = register(
    "displacement_gram(Tensor[] parameters, int[] ordinals, Tensor rows, int seed_low, int seed_high, str directions)"
    " -> Tensor",
    reference.displacement_gram,
    lambda parameters, ordinals, rows, *_: rows.new_empty((rows.shape[0], rows.shape[0]), dtype=torch.float64),
    launcher="nntk.kernels.assemble.launch",
)


def displacement_gram(
    parameters: Mapping[int, Tensor], rows: Tensor, seed: int, directions: str = "gaussian"
) -> Tensor:
    r"""Gram matrix :math:`Q_{mm'} = \langle E_m, E_{m'} \rangle` of unit displacements.

    Args:
        parameters: The displaced parameters by ordinal; their shapes and dtype are read, not their values.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Name of the family of displacements, see :func:`nntk.kernels.philox.unit_displacements`.

    Returns:
        [M, M], float64, exactly symmetric; its diagonal is the squared norms.

    Raises:
        ValueError: If a name is unknown or the seed out of range.
        TypeError: If ``rows`` is no int64 vector.
    """
    checks.row_numbers(rows)
    parse(directions)
    return _gram(list(parameters.values()), list(parameters), rows, *split_seed(seed), directions)


def assemble(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    num_params: int,
    d2: Tensor | None = None,
    weights2: Tensor | None = None,
    estimator: str = "energy",
    gram: Tensor | None = None,
    normalization: str = "gradient",
    outputs: str = "trace",
) -> Tensor:
    r"""Assemble a nonlocal kernel from unit differences D, weights alpha and the unit displacements' norms.

    .. math::
        K_\text{energy} = d \sum_m \alpha_m \frac{D_m(x) D_m(x')}{|E_m|^2}, \qquad
        K_\text{plugin} = d^2 \sum_{m, m'} \alpha_m \alpha_{m'} \frac{D_m(x) D_{m'}(x') Q_{mm'}}{|E_m|^2 |E_{m'}|^2},

    and the unbiased form, which is the plugin form without m = m', divided by :math:`1 - \sum_m \alpha_m^2`. With
    weights that depend on the input, the energy form takes :math:`\sqrt{\alpha_m(x) \alpha_m(x')}`.

    Args:
        d1: Unit differences D / s at the rows' inputs, [M, N1, C].
        weights1: Weights of the displacements, [M] or [M, N1], >= 0, each column summing to one over all displacements
            (values are not checked: chunks of the energy form pass parts of them).
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        num_params: Number d of displaced parameters.
        d2: Unit differences at the columns' inputs, [M, N2, C]; None for the symmetric kernel of ``d1``.
        weights2: Weights at the columns' inputs, [M] or [M, N2]; None for ``weights1``, which must then be [M] if
            ``d2`` is given.
        estimator: ``"energy"`` (positive semi-definite; additive over chunks of displacements), ``"plugin"``
            (positive semi-definite, biased by (d - 1) / M) or ``"unbiased"`` (indefinite).
        gram: Gram matrix Q of the unit displacements, [M, M]; plugin and unbiased need it.
        normalization: ``"gradient"``, with the NTK as limit, or ``"paper"``, smaller by d squared.
        outputs: ``"trace"`` and ``"mean"`` over the outputs, [N1, N2]; ``"diagonal"``, [N1, N2, C]; ``"full"``,
            [N1, N2, C, C].

    Returns:
        The kernel in the dtype of ``d1``; exactly symmetric where ``d2`` is None.

    Raises:
        ValueError: If a name is unknown, shapes disagree, Q is missing, or ``"unbiased"`` has fewer than two rows.

    Example:
        >>> d = torch.ones(4, 3, 1)
        >>> assemble(d, torch.full((4,), 0.25), torch.full((4,), 2.0), num_params=2)[0]
        tensor([1., 1., 1.])
    """
    checks.choice("estimator", estimator, ESTIMATORS)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.integer("num_params", num_params, 1)
    _check_shapes(d1, weights1, squared_norms, d2, weights2)
    if estimator == "energy":
        kernel = _energy(d1, d2, weights1, weights2, squared_norms, num_params, outputs)
    else:
        samples = len(d1)
        if gram is None or gram.shape != (samples, samples):
            given = "None" if gram is None else f"shape {tuple(gram.shape)}"
            raise ValueError(
                f"gram must be the [{samples}, {samples}] Gram of displacements for {estimator!r}, got {given}."
            )
        if estimator == "unbiased" and samples < 2:
            raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {samples}.")
        unbiased = estimator == "unbiased"
        kernel = _inner_product(d1, d2, weights1, weights2, squared_norms, gram, num_params, unbiased, outputs)
    return kernel / num_params**2 if normalization == "paper" else kernel


def _check_shapes(
    d1: Tensor, weights1: Tensor, squared_norms: Tensor, d2: Tensor | None, weights2: Tensor | None
) -> None:
    if d1.dim() != 3 or not d1.is_floating_point():
        raise ValueError(f"d1 must be a floating tensor [M, N1, C], got {d1.dtype} of shape {tuple(d1.shape)}.")
    samples, n1, c = d1.shape
    if d2 is not None and (d2.dim() != 3 or (d2.shape[0], d2.shape[2]) != (samples, c)):
        raise ValueError(f"d2 must be [{samples}, N2, {c}] like d1, got {tuple(d2.shape)}.")
    if squared_norms.shape != (samples,):
        raise ValueError(f"squared_norms must be [{samples}], got {tuple(squared_norms.shape)}.")
    if weights1.shape not in ((samples,), (samples, n1)):
        raise ValueError(f"weights1 must be [{samples}] or [{samples}, {n1}], got {tuple(weights1.shape)}.")
    if weights2 is None:
        if d2 is not None and weights1.dim() == 2:
            raise ValueError("weights2 must be given with d2 where weights1 depends on the input, got None.")
    elif d2 is None:
        raise ValueError("weights2 must be None where d2 is None: the symmetric kernel has one set of weights.")
    elif weights2.shape not in ((samples,), (samples, d2.shape[1])):
        raise ValueError(f"weights2 must be [{samples}] or [{samples}, {d2.shape[1]}], got {tuple(weights2.shape)}.")
