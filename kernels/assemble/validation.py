"""Checks of the arguments of assembly: shapes and dtypes of differences, weights and norms."""

from torch import Tensor

from nntk.kernels.attention import AttentionState


def check_samples(estimator: str, samples: int) -> None:
    """Check that the unbiased estimator has at least two displacements.

    Raises:
        ValueError: If it has fewer.
    """
    if estimator == "unbiased" and samples < 2:
        raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {samples}.")


def check_gram(estimator: str, gram: Tensor | None, samples: int) -> Tensor:
    """Return the Gram matrix of displacements if it has the right shape.

    Raises:
        ValueError: If it is None or not [samples, samples].
    """
    if gram is None or gram.shape != (samples, samples):
        actual = "None" if gram is None else f"shape {tuple(gram.shape)}"
        raise ValueError(
            f"gram must be the [{samples}, {samples}] Gram of displacements for {estimator!r}, got {actual}."
        )
    return gram


def check_shapes(
    d1: Tensor,
    weights1: Tensor,
    squared_norms: Tensor,
    d2: Tensor | None,
    weights2: Tensor | None,
    sample_ids: Tensor | None = None,
    names: tuple[str, str] = ("d1", "weights1"),
) -> None:
    """Check that differences, weights and norms have matching shapes and dtypes.

    Args:
        d1: Differences at the inputs of the rows, [M, N1, C].
        weights1: Weights, [M] or [M, N1].
        squared_norms: Squared norms of the unit displacements, [M].
        d2: Differences at the inputs of the columns, [M, N2, C], or None.
        weights2: Weights at the inputs of the columns, [M] or [M, N2], or None.
        sample_ids: Stream numbers m of the displacements, [M], or None.
        names: Names of ``d1`` and ``weights1`` in errors.

    Raises:
        ValueError: If a shape or a dtype does not fit.
    """
    if d1.dim() != 3 or not d1.is_floating_point():
        raise ValueError(f"{names[0]} must be a floating tensor [M, N1, C], got {d1.dtype} of shape {tuple(d1.shape)}.")
    samples, n1, c = d1.shape
    if d2 is not None and (d2.dim() != 3 or (d2.shape[0], d2.shape[2], d2.dtype) != (samples, c, d1.dtype)):
        raise ValueError(
            f"d2 must be [{samples}, N2, {c}] in {d1.dtype} like d1, got {d2.dtype} of shape {tuple(d2.shape)}."
        )
    if squared_norms.shape != (samples,):
        raise ValueError(f"squared_norms must be [{samples}], got {tuple(squared_norms.shape)}.")
    if sample_ids is not None and len(sample_ids) != samples:
        raise ValueError(f"sample_ids must be [{samples}], got {tuple(sample_ids.shape)}.")
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


def check_states(first: AttentionState, second: AttentionState | None, squared_norms: Tensor) -> None:
    """Check that attention at rows and columns belongs to the same displacements.

    Raises:
        ValueError: If shapes, dtypes or scores differ.
    """
    samples = first.d.shape[-3]
    if squared_norms.shape != (samples,):
        raise ValueError(f"squared_norms must be [{samples}], got {tuple(squared_norms.shape)}.")
    if second is not None and (actual := _summary(second)) != (expected := _summary(first)):
        raise ValueError(f"second must have {expected} like first, got {actual}.")


def _summary(state: AttentionState) -> str:
    """Describe what the attention states of rows and columns must share."""
    d = state.d
    shape = ", ".join(map(str, (*d.shape[:-2], "N", d.shape[-1])))
    return f"differences [{shape}] in {d.dtype} under {state.score!r}"
