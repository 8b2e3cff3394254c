"""What fixed-kernel weights need of the displacements: their squared norms."""

from collections.abc import Mapping

from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.dispatch import register
from nntk.kernels.fixed_weights import reference
from nntk.kernels.philox import parse, split_seed

__all__ = ["squared_norms"]

_op = register(
    "squared_norms(Tensor[] parameters, int[] ordinals, Tensor rows, int seed_low, int seed_high, str directions)"
    " -> Tensor",
    reference.squared_norms,
    lambda parameters, ordinals, rows, *_: rows.new_empty(rows.shape, dtype=reference.NORM_DTYPE),
    launcher="nntk.kernels.philox.launch",
)


def squared_norms(parameters: Mapping[int, Tensor], rows: Tensor, seed: int, directions: str = "gaussian") -> Tensor:
    r"""Squared norms :math:`|E_m|^2` of the unit displacements, summed over all displaced parameters.

    Args:
        parameters: The displaced parameters by ordinal; only their shapes are read.
        rows: Numbers m of the displacements, [M], int64.
        seed: Seed of the stream, in [0, 2**64).
        directions: ``"gaussian"``, where the norm is a chi-squared number near d, or another family, where it is d.

    Returns:
        [M], float64, in squared units of the scale s: :math:`|\delta_m|^2 = s_m^2 |E_m|^2`.

    Raises:
        ValueError: If a name is unknown or the seed out of range.
        TypeError: If ``rows`` is no int64 vector.

    Example:
        >>> import torch
        >>> squared_norms({0: torch.zeros(3, 4)}, torch.arange(2), seed=1, directions="rademacher")
        tensor([12., 12.], dtype=torch.float64)
    """
    checks.row_numbers(rows)
    parse(directions)
    return _op(list(parameters.values()), list(parameters), rows, *split_seed(seed), directions)
