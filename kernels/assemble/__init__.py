"""Assembly of kernel matrices from differences: energy, plugin and unbiased forms, and the Gram of displacements."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.assemble import cost, gradients, gram, reference
from nntk.kernels.assemble.streaming import StreamingSum
from nntk.kernels.assemble.triton.config import inner_product_route
from nntk.kernels.attention import AttentionState
from nntk.kernels.dispatch import register
from nntk.kernels.philox import parse, split_seed

__all__ = [
    "ESTIMATORS",
    "NORMALIZATIONS",
    "OUTPUTS",
    "StreamingSum",
    "assemble",
    "assemble_by_gradients",
    "attended_energy",
    "displacement_gram",
    "energy_product",
    "inner_product_route",
    "nonlocal_gradients",
]

ESTIMATORS = ("energy", "plugin", "unbiased")
NORMALIZATIONS = ("gradient", "paper")
OUTPUTS = ("trace", "mean", "diagonal", "full")


def _shape(d1: Tensor, d2: Tensor | None, outputs: str) -> tuple[int, ...]:
    c = d1.shape[-1]
    axes = {"trace": (), "mean": (), "diagonal": (c,), "full": (c, c)}[outputs]
    return (d1.shape[-2], (d1 if d2 is None else d2).shape[-2], *axes)


_energy = register(
    "energy(Tensor d1, Tensor? d2, Tensor scales, str weighting, Tensor? values1, Tensor? values2, Tensor? keys1,"
    " Tensor? keys2, Tensor? priors, Tensor? factors, Tensor? shifts1, Tensor? shifts2, str outputs) -> Tensor",
    reference.energy,
    cost.energy,
    lambda d1, d2, *rest: d1.new_empty(_shape(d1, d2, rest[-1])),
    launcher="nntk.kernels.assemble.triton.launch",
)
_inner_product = register(
    "inner_product(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor squared_norms, Tensor gram,"
    " int num_params, bool unbiased, str outputs) -> Tensor",
    reference.inner_product,
    cost.inner_product,
    lambda d1, d2, weights1, weights2, squared_norms, gram, num_params, unbiased, outputs: d1.new_empty(
        _shape(d1, d2, outputs)
    ),
)
_STREAM = "Tensor[] parameters, int[] ordinals, Tensor rows, int seed_low, int seed_high, str directions"
_gram = register(
    f"displacement_gram({_STREAM}) -> Tensor",
    gram.displacement_gram,
    cost.displacement_gram,
    lambda parameters, ordinals, rows, *_: rows.new_empty((rows.shape[0], rows.shape[0]), dtype=torch.float64),
    launcher="nntk.kernels.assemble.triton.launch",
)
_by_gradients = register(
    "inner_product_of_gradients(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor squared_norms,"
    f" {_STREAM}, bool unbiased, str outputs) -> Tensor",
    gradients.inner_product_of_gradients,
    cost.inner_product_of_gradients,
    lambda d1, d2, *rest: d1.new_empty(_shape(d1, d2, rest[-1])),
    launcher="nntk.kernels.assemble.triton.launch",
)
_gradients = register(
    f"nonlocal_gradients(Tensor d, Tensor weights, Tensor squared_norms, {_STREAM}) -> Tensor",
    gradients.nonlocal_gradients,
    cost.nonlocal_gradients,
    lambda d, weights, norms, parameters, *_: d.new_empty(
        (*d.shape[1:], sum(parameter.numel() for parameter in parameters))
    ),
    launcher="nntk.kernels.assemble.triton.launch",
)
_product = register(
    "energy_product(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor scales, Tensor vectors) -> Tensor",
    reference.energy_product,
    cost.energy_product,
    lambda d1, d2, w1, w2, scales, vectors: vectors.new_empty((d1.shape[1], vectors.shape[1])),
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
        ValueError: If a name is unknown, the seed out of range, or there are no parameters.
        TypeError: If ``rows`` is no int64 vector, or the seed no integer.
    """
    checks.row_numbers(rows)
    parse(directions)
    checks.displaced(parameters)
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
        ValueError: If a name is unknown, shapes or dtypes disagree, Q is missing, ``num_params`` is below one, or
            ``"unbiased"`` has fewer than two rows.
        TypeError: If ``num_params`` is no integer.

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
        kernel = _weighted_energy(d1, d2, weights1, weights2, squared_norms, num_params, outputs)
    else:
        samples = len(d1)
        if gram is None or gram.shape != (samples, samples):
            given = "None" if gram is None else f"shape {tuple(gram.shape)}"
            raise ValueError(
                f"gram must be the [{samples}, {samples}] Gram of displacements for {estimator!r}, got {given}."
            )
        _check_samples(estimator, samples)
        unbiased = estimator == "unbiased"
        kernel = _inner_product(d1, d2, weights1, weights2, squared_norms, gram, num_params, unbiased, outputs)
    return kernel / num_params**2 if normalization == "paper" else kernel


def _weighted_energy(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    num_params: int,
    outputs: str,
) -> Tensor:
    scales, nothing = num_params / squared_norms.double(), (None,) * 6
    if weights2 is None and weights1.dim() == 1:
        return _energy(d1, d2, scales * weights1.double(), "rows", None, None, *nothing, outputs)
    values1 = _by_input(weights1, d1)
    values2 = None if d2 is None or weights2 is None else _by_input(weights2, d2)
    return _energy(d1, d2, scales, "weights", values1, values2, *nothing, outputs)


def _by_input(weights: Tensor, d: Tensor) -> Tensor:
    """Weights [M] or [M, N] as [M, N] in the dtype of the differences."""
    return (weights if weights.dim() == 2 else weights[:, None].expand(d.shape[:2])).to(d.dtype)


def attended_energy(
    first: AttentionState,
    second: AttentionState | None,
    squared_norms: Tensor,
    num_params: int,
    normalization: str = "gradient",
    outputs: str = "trace",
) -> Tensor:
    r"""Assemble the energy form of differences under attention, up to the softmax's sums.

    .. math::
        d \sum_m \frac{\sqrt{w_m(x) w_m(x')}}{|E_m|^2} D_m(x) D_m(x'), \qquad
        w_m(x) = \sum_\pm e^{e_m^\pm(x) - \max_m e_m^\pm(x)}

    The weights are made as the differences are loaded. Divided by the roots of both inputs' sums this is the kernel;
    until then it adds up over chunks of displacements: see :class:`nntk.kernels.assemble.StreamingSum`.

    Args:
        first: Differences and scores at the rows' inputs.
        second: Those at the columns' inputs, of the same displacements; None for the symmetric kernel of ``first``.
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        num_params: Number d of displaced parameters.
        normalization: ``"gradient"`` or ``"paper"``.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        As :func:`assemble`, to be normalised.

    Raises:
        ValueError: If a name is unknown, shapes or dtypes disagree, or ``num_params`` is below one.
        TypeError: If ``num_params`` is no integer.
    """
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.integer("num_params", num_params, 1)
    d1, d2 = first.d, None if second is None else second.d
    if squared_norms.shape != d1.shape[-3:-2]:
        raise ValueError(f"squared_norms must be [{d1.shape[-3]}], got {tuple(squared_norms.shape)}.")
    if second is not None and (given := _described(second)) != (need := _described(first)):
        raise ValueError(f"second must have {need} like first, got {given}.")
    kernel = _energy(
        d1,
        d2,
        num_params / squared_norms.double(),
        first.score,
        first.values,
        None if second is None else second.values,
        first.keys,
        None if second is None else second.keys,
        first.priors,
        first.factors,
        first.statistics[0],
        None if second is None else second.statistics[0],
        outputs,
    )
    return kernel / num_params**2 if normalization == "paper" else kernel


def _described(attended: AttentionState) -> str:
    """What both sets of inputs share."""
    d = attended.d
    shape = ", ".join(map(str, (*d.shape[:-2], "N", d.shape[-1])))
    return f"differences [{shape}] in {d.dtype} under {attended.score!r}"


def assemble_by_gradients(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    parameters: Mapping[int, Tensor],
    rows: Tensor,
    seed: int,
    directions: str = "gaussian",
    d2: Tensor | None = None,
    weights2: Tensor | None = None,
    estimator: str = "plugin",
    normalization: str = "gradient",
    outputs: str = "trace",
) -> Tensor:
    r"""Assemble the plugin or the unbiased form as inner products of nonlocal gradients, without a Gram matrix.

    .. math::
        K_\text{plugin} = \langle G(x), G(x') \rangle, \qquad
        K_\text{unbiased} = \frac{\langle G(x), G(x') \rangle
            - d^2 \sum_m \alpha_m(x) \alpha_m(x') D_m(x) D_m(x') / |E_m|^2}{1 - \sum_m \alpha_m(x) \alpha_m(x')}

    Cheaper than the Gram matrix for many displacements and few inputs (:func:`inner_product_route` compares them).

    Args:
        d1: Unit differences at the rows' inputs, [M, N1, C].
        weights1: Weights, [M] or [M, N1].
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        parameters: The displaced parameters by ordinal; their shapes are read, not their values.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the displacements.
        d2: Unit differences at the columns' inputs, [M, N2, C]; None for the symmetric kernel of ``d1``.
        weights2: Weights at the columns' inputs, as for :func:`assemble`.
        estimator: ``"plugin"`` or ``"unbiased"``.
        normalization: ``"gradient"`` or ``"paper"``.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        As :func:`assemble`.

    Raises:
        ValueError: If a name is unknown, shapes or dtypes disagree, the seed is out of range, there are no parameters,
            or ``"unbiased"`` has fewer than two rows.
        TypeError: If ``rows`` is no int64 vector, or the seed no integer.
    """
    checks.choice("estimator", estimator, ESTIMATORS[1:])
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.row_numbers(rows)
    parse(directions)
    checks.displaced(parameters)
    _check_shapes(d1, weights1, squared_norms, d2, weights2, rows)
    _check_samples(estimator, len(d1))
    kernel = _by_gradients(
        d1,
        d2,
        weights1,
        weights2,
        squared_norms,
        list(parameters.values()),
        list(parameters),
        rows,
        *split_seed(seed),
        directions,
        estimator == "unbiased",
        outputs,
    )
    num_params = sum(parameter.numel() for parameter in parameters.values())
    return kernel / num_params**2 if normalization == "paper" else kernel


def nonlocal_gradients(
    d: Tensor,
    weights: Tensor,
    squared_norms: Tensor,
    parameters: Mapping[int, Tensor],
    rows: Tensor,
    seed: int,
    directions: str = "gaussian",
) -> Tensor:
    r"""Nonlocal gradients :math:`G(x) = d \sum_m \alpha_m(x) D_m(x) E_m / |E_m|^2`.

    Args:
        d: Unit differences, [M, N, C].
        weights: Weights, [M] or [M, N].
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        parameters: The displaced parameters by ordinal; their shapes are read, not their values.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the displacements.

    Returns:
        [N, C, d] in the dtype of ``d``, parameters flattened in the order given.

    Raises:
        ValueError: If a name is unknown, shapes disagree, the seed is out of range, or there are no parameters.
        TypeError: If ``rows`` is no int64 vector, or the seed no integer.
    """
    checks.row_numbers(rows)
    parse(directions)
    checks.displaced(parameters)
    _check_shapes(d, weights, squared_norms, None, None, rows, names=("d", "weights"))
    held = list(parameters.values())
    return _gradients(d, weights, squared_norms, held, list(parameters), rows, *split_seed(seed), directions)


def energy_product(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    num_params: int,
    vectors: Tensor,
    d2: Tensor | None = None,
    weights2: Tensor | None = None,
) -> Tensor:
    """The traced energy kernel times vectors, K @ v, in O(M N C R): the kernel is never formed.

    Args:
        d1: Unit differences at the rows' inputs, [M, N1, C].
        weights1: Weights, [M] or [M, N1].
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        num_params: Number d of displaced parameters.
        vectors: Right-hand sides, [N2, R], in the dtype of ``d1``.
        d2: Unit differences at the columns' inputs, [M, N2, C]; None for ``d1``.
        weights2: Weights at the columns' inputs, as for :func:`assemble`.

    Returns:
        [N1, R]; products over chunks of displacements add up.

    Raises:
        ValueError: If shapes or dtypes disagree, or ``num_params`` is below one.
        TypeError: If ``num_params`` is no integer.

    Example:
        >>> d = torch.ones(4, 3, 1)
        >>> energy_product(d, torch.full((4,), 0.25), torch.full((4,), 2.0), 2, torch.ones(3, 1)).flatten()
        tensor([3., 3., 3.])
    """
    checks.integer("num_params", num_params, 1)
    _check_shapes(d1, weights1, squared_norms, d2, weights2)
    lines = (d1 if d2 is None else d2).shape[1]
    if vectors.dim() != 2 or len(vectors) != lines or vectors.dtype != d1.dtype:
        raise ValueError(
            f"vectors must be [{lines}, R] in {d1.dtype}, got {vectors.dtype} of shape {tuple(vectors.shape)}."
        )
    second = weights1 if weights2 is None else weights2
    return _product(d1, d2, weights1, second, num_params / squared_norms.double(), vectors)


def _check_samples(estimator: str, samples: int) -> None:
    if estimator == "unbiased" and samples < 2:
        raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {samples}.")


def _check_shapes(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    d2: Tensor | None,
    weights2: Tensor | None,
    rows: Tensor | None = None,
    names: tuple[str, str] = ("d1", "weights1"),
) -> None:
    if d1.dim() != 3 or not d1.is_floating_point():
        raise ValueError(f"{names[0]} must be a floating tensor [M, N1, C], got {d1.dtype} of shape {tuple(d1.shape)}.")
    samples, n1, c = d1.shape
    if d2 is not None and (d2.dim() != 3 or (d2.shape[0], d2.shape[2], d2.dtype) != (samples, c, d1.dtype)):
        raise ValueError(
            f"d2 must be [{samples}, N2, {c}] in {d1.dtype} like d1, got {d2.dtype} of shape {tuple(d2.shape)}."
        )
    if squared_norms.shape != (samples,):
        raise ValueError(f"squared_norms must be [{samples}], got {tuple(squared_norms.shape)}.")
    if rows is not None and len(rows) != samples:
        raise ValueError(f"rows must be [{samples}], got {tuple(rows.shape)}.")
    if weights1.shape not in ((samples,), (samples, n1)):
        raise ValueError(f"{names[1]} must be [{samples}] or [{samples}, {n1}], got {tuple(weights1.shape)}.")
    if weights2 is None:
        if d2 is not None and weights1.dim() == 2:
            raise ValueError("weights2 must be given with d2 where weights1 depends on the input, got None.")
    elif d2 is None:
        raise ValueError(
            f"weights2 must be None where d2 is None, got shape {tuple(weights2.shape)}: the symmetric kernel has one "
            "set of weights."
        )
    elif weights2.shape not in ((samples,), (samples, d2.shape[1])):
        raise ValueError(f"weights2 must be [{samples}] or [{samples}, {d2.shape[1]}], got {tuple(weights2.shape)}.")
