"""Assembly of kernel matrices from differences: energy, plugin and unbiased estimators, and Gram matrices."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.assemble import cost, gradients, gram, reference
from nntk.kernels.assemble.streaming import StreamingSum
from nntk.kernels.assemble.triton.config import inner_product_route
from nntk.kernels.assemble.validation import check_gram, check_samples, check_shapes, check_states
from nntk.kernels.attention import AttentionState
from nntk.kernels.dispatch import register
from nntk.kernels.philox import parse, split_seed
from nntk.kernels.philox.source import with_fastest_noise

__all__ = [
    "ESTIMATORS",
    "NORMALIZATIONS",
    "OUTPUTS",
    "StreamingSum",
    "assemble",
    "assemble_by_gradients",
    "attended_energy",
    "displacement_gram",
    "inner_product_route",
    "nonlocal_gradients",
]

ESTIMATORS = ("energy", "plugin", "unbiased")
"""Names of the estimators."""
NORMALIZATIONS = ("gradient", "paper")
"""Names of the normalizations."""
OUTPUTS = ("trace", "mean", "diagonal", "full")
"""Names of the treatments of outputs."""


def _shape(d1: Tensor, d2: Tensor | None, outputs: str) -> tuple[int, ...]:
    c = d1.shape[-1]
    axes = {"trace": (), "mean": (), "diagonal": (c,), "full": (c, c)}[outputs]
    return (d1.shape[-2], (d1 if d2 is None else d2).shape[-2], *axes)


_energy = register(
    "energy(Tensor d1, Tensor? d2, Tensor scales, str weighting, Tensor? values1, Tensor? values2, Tensor? keys1,"
    " Tensor? keys2, Tensor? priors, Tensor? factors, Tensor? shifts1, Tensor? shifts2, str outputs) -> Tensor",
    reference.energy,
    cost.energy,
    lambda d1, d2, *others: d1.new_empty(_shape(d1, d2, others[-1])),
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
_STREAM = "Tensor[] parameters, int[] ordinals, Tensor sample_ids, int seed_low, int seed_high, str directions"
_gram = register(
    f"displacement_gram({_STREAM}) -> Tensor",
    gram.displacement_gram,
    cost.displacement_gram,
    lambda parameters, ordinals, sample_ids, *_: sample_ids.new_empty(
        (sample_ids.shape[0], sample_ids.shape[0]), dtype=torch.float64
    ),
    launcher="nntk.kernels.assemble.triton.launch",
    compiled=with_fastest_noise(gram.displacement_gram),
)
_by_gradients = register(
    "inner_product_of_gradients(Tensor d1, Tensor? d2, Tensor weights1, Tensor? weights2, Tensor squared_norms,"
    f" {_STREAM}, bool unbiased, str outputs) -> Tensor",
    gradients.inner_product_of_gradients,
    cost.inner_product_of_gradients,
    lambda d1, d2, *others: d1.new_empty(_shape(d1, d2, others[-1])),
    launcher="nntk.kernels.assemble.triton.launch",
    compiled=with_fastest_noise(gradients.inner_product_of_gradients),
)
_gradients = register(
    f"nonlocal_gradients(Tensor d, Tensor weights, Tensor squared_norms, {_STREAM}) -> Tensor",
    gradients.nonlocal_gradients,
    cost.nonlocal_gradients,
    lambda d, weights, norms, parameters, *_: d.new_empty(
        (*d.shape[1:], sum(parameter.numel() for parameter in parameters))
    ),
    launcher="nntk.kernels.assemble.triton.launch",
    compiled=with_fastest_noise(gradients.nonlocal_gradients),
)


def displacement_gram(
    parameters: Mapping[int, Tensor], sample_ids: Tensor, seed: int, directions: str = "gaussian"
) -> Tensor:
    r"""Compute the Gram matrix :math:`Q_{mm'} = \langle E_m, E_{m'} \rangle` of unit displacements.

    Args:
        parameters: Displaced parameters by ordinal; their shapes and dtype are read, not their values.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Name of the family of displacements, see :func:`nntk.kernels.philox.unit_displacements`.

    Returns:
        [M, M], float64, exactly symmetric; its diagonal holds the squared norms.

    Raises:
        ValueError: If a name is unknown, the seed is out of range, or there are no parameters.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed is not an integer.

    Example:
        >>> displacement_gram({0: torch.zeros(3, 4)}, torch.arange(2), seed=1, directions="rademacher").diagonal()
        tensor([12., 12.], dtype=torch.float64)
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    checks.displaced_parameters(parameters)
    return _gram(list(parameters.values()), list(parameters), sample_ids, *split_seed(seed), directions)


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
    r"""Assemble a nonlocal kernel from unit differences D, weights alpha and norms of the unit displacements.

    .. math::
        K_\text{energy} = d \sum_m \alpha_m \frac{D_m(x) D_m(x')}{|E_m|^2}, \qquad
        K_\text{plugin} = d^2 \sum_{m, m'} \alpha_m \alpha_{m'} \frac{D_m(x) D_{m'}(x') Q_{mm'}}{|E_m|^2 |E_{m'}|^2},

    and the unbiased form, which is the plugin form without m = m', divided by :math:`1 - \sum_m \alpha_m^2`. With
    weights that depend on the input, the weight in the energy form is :math:`\sqrt{\alpha_m(x) \alpha_m(x')}`.

    Args:
        d1: Unit differences D / s at the inputs of the rows, [M, N1, C], float32 or float64.
        weights1: Weights of the displacements, [M] or [M, N1], >= 0, each column summing to one over all displacements
            (values are not checked, since chunks of the energy form pass parts of them).
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        num_params: Number d of displaced parameters.
        d2: Unit differences at the inputs of the columns, [M, N2, C]; None for the symmetric kernel of ``d1``.
        weights2: Weights at the inputs of the columns, [M] or [M, N2]; None for ``weights1``, which must then be [M] if
            ``d2`` is given.
        estimator: Name of the estimator: ``"energy"`` (positive semi-definite; additive over chunks of displacements),
            ``"plugin"`` (positive semi-definite, biased by (d - 1) / M) or ``"unbiased"`` (indefinite).
        gram: Gram matrix Q of the unit displacements, [M, M]; required for plugin and unbiased.
        normalization: Normalization: ``"gradient"`` with the NTK as limit, or ``"paper"``, which divides by d squared.
        outputs: Treatment of outputs: ``"trace"`` or ``"mean"`` over them, [N1, N2]; ``"diagonal"``, [N1, N2, C];
            ``"full"``, [N1, N2, C, C].

    Returns:
        Kernel matrix in the dtype of ``d1``; exactly symmetric if ``d2`` is None.

    Raises:
        ValueError: If a name is unknown, shapes or dtypes disagree, Q is missing, ``num_params`` is below one, or
            ``"unbiased"`` has fewer than two displacements.
        TypeError: If ``num_params`` is not an integer.

    Example:
        >>> d = torch.ones(4, 3, 1)
        >>> assemble(d, torch.full((4,), 0.25), torch.full((4,), 2.0), num_params=2)[0]
        tensor([1., 1., 1.])
    """
    checks.choice("estimator", estimator, ESTIMATORS)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.integer("num_params", num_params, 1)
    check_shapes(d1, weights1, squared_norms, d2, weights2)
    if estimator == "energy":
        kernel = _weighted_energy(d1, d2, weights1, weights2, squared_norms, num_params, outputs)
    else:
        gram = check_gram(estimator, gram, len(d1))
        check_samples(estimator, len(d1))
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
    scales, no_attention = num_params / squared_norms.double(), (None,) * 6
    if weights2 is None and weights1.dim() == 1:
        return _energy(d1, d2, scales * weights1.double(), "rows", None, None, *no_attention, outputs)
    values1 = _per_input(weights1, d1)
    values2 = None if d2 is None or weights2 is None else _per_input(weights2, d2)
    return _energy(d1, d2, scales, "weights", values1, values2, *no_attention, outputs)


def _per_input(weights: Tensor, d: Tensor) -> Tensor:
    """Return weights [M] or [M, N] as [M, N] in the dtype of the differences."""
    return (weights if weights.dim() == 2 else weights[:, None].expand(d.shape[:2])).to(d.dtype)


def attended_energy(
    first: AttentionState,
    second: AttentionState | None,
    squared_norms: Tensor,
    num_params: int,
    normalization: str = "gradient",
    outputs: str = "trace",
) -> Tensor:
    r"""Assemble the energy form of differences under attention, without the sums of the softmax.

    .. math::
        d \sum_m \frac{\sqrt{w_m(x) w_m(x')}}{|E_m|^2} D_m(x) D_m(x'), \qquad
        w_m(x) = \sum_\pm e^{e_m^\pm(x) - \max_m e_m^\pm(x)}

    Weights are computed where the differences are loaded. The result divided by the roots of the sums of both inputs is
    the kernel. Before that division, results of chunks of displacements add up: see
    :class:`nntk.kernels.assemble.StreamingSum`.

    Args:
        first: Differences and scores at the inputs of the rows.
        second: Differences and scores at the inputs of the columns, of the same displacements; None for the symmetric
            kernel of ``first``.
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        num_params: Number d of displaced parameters.
        normalization: Normalization, ``"gradient"`` or ``"paper"``.
        outputs: Treatment of outputs, ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Kernel matrix as of :func:`assemble`, to be normalised by the sums of the softmax.

    Raises:
        ValueError: If a name is unknown, shapes or dtypes disagree, or ``num_params`` is below one.
        TypeError: If ``num_params`` is not an integer.

    Example:
        >>> from nntk.kernels.attention import attend
        >>> state = attend(torch.ones(4, 1, 1), "distance", torch.zeros(4), torch.ones(4))
        >>> attended_energy(state, None, torch.full((4,), 2.0), num_params=2)  # the sum of the softmax is 4
        tensor([[4.]])
    """
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.integer("num_params", num_params, 1)
    check_states(first, second, squared_norms)
    kernel = _energy(
        first.d,
        None if second is None else second.d,
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


def assemble_by_gradients(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    parameters: Mapping[int, Tensor],
    sample_ids: Tensor,
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

    This is cheaper than the Gram matrix for many displacements and few inputs; :func:`inner_product_route` compares.

    Args:
        d1: Unit differences at the inputs of the rows, [M, N1, C].
        weights1: Weights of the displacements, [M] or [M, N1].
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        parameters: Displaced parameters by ordinal; their shapes are read, not their values.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Name of the family of displacements.
        d2: Unit differences at the inputs of the columns, [M, N2, C]; None for the symmetric kernel of ``d1``.
        weights2: Weights at the inputs of the columns, as for :func:`assemble`.
        estimator: Name of the estimator, ``"plugin"`` or ``"unbiased"``.
        normalization: Normalization, ``"gradient"`` or ``"paper"``.
        outputs: Treatment of outputs, ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Kernel matrix as of :func:`assemble`.

    Raises:
        ValueError: If a name is unknown, shapes or dtypes disagree, the seed is out of range, there are no parameters,
            or ``"unbiased"`` has fewer than two displacements.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed is not an integer.

    Example:
        >>> d, alpha, norms = torch.ones(2, 3, 1), torch.full((2,), 0.5), torch.full((2,), 12.0)
        >>> assemble_by_gradients(d, alpha, norms, {0: torch.zeros(3, 4)}, torch.arange(2), 1, "rademacher").shape
        torch.Size([3, 3])
    """
    checks.choice("estimator", estimator, ESTIMATORS[1:])
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("outputs", outputs, OUTPUTS)
    checks.sample_ids(sample_ids)
    parse(directions)
    checks.displaced_parameters(parameters)
    check_shapes(d1, weights1, squared_norms, d2, weights2, sample_ids)
    check_samples(estimator, len(d1))
    kernel = _by_gradients(
        d1,
        d2,
        weights1,
        weights2,
        squared_norms,
        list(parameters.values()),
        list(parameters),
        sample_ids,
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
    sample_ids: Tensor,
    seed: int,
    directions: str = "gaussian",
) -> Tensor:
    r"""Compute nonlocal gradients :math:`G(x) = d \sum_m \alpha_m(x) D_m(x) E_m / |E_m|^2`.

    Args:
        d: Unit differences, [M, N, C].
        weights: Weights of the displacements, [M] or [M, N].
        squared_norms: Squared norms of the unit displacements, [M], > 0.
        parameters: Displaced parameters by ordinal; their shapes are read, not their values.
        sample_ids: Stream numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: Name of the family of displacements.

    Returns:
        [N, C, d] in the dtype of ``d``, with parameters flattened in the given order.

    Raises:
        ValueError: If a name is unknown, shapes disagree, the seed is out of range, or there are no parameters.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed is not an integer.

    Example:
        >>> d, alpha, norms = torch.ones(2, 3, 1), torch.full((2,), 0.5), torch.full((2,), 12.0)
        >>> nonlocal_gradients(d, alpha, norms, {0: torch.zeros(3, 4)}, torch.arange(2), 1, "rademacher").shape
        torch.Size([3, 1, 12])
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    checks.displaced_parameters(parameters)
    check_shapes(d, weights, squared_norms, None, None, sample_ids, names=("d", "weights"))
    tensors = list(parameters.values())
    return _gradients(d, weights, squared_norms, tensors, list(parameters), sample_ids, *split_seed(seed), directions)
