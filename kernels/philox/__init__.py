"""The random stream: unit displacements as a function of (seed, row, parameter, index) and of nothing else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.dispatch import register
from nntk.kernels.philox import cost, reference
from nntk.kernels.philox.directions import FAMILIES, Directions, parse
from nntk.kernels.philox.reference import STREAM_VERSION

__all__ = ["FAMILIES", "STREAM_VERSION", "Directions", "parse", "split_seed", "unit_displacements"]

_op = register(
    "unit_displacements(Tensor rows, int ordinal, SymInt[] shape, int seed_low, int seed_high, str directions,"
    " ScalarType dtype) -> Tensor",
    reference.unit_displacements,
    cost.unit_displacements,
    lambda rows, ordinal, shape, seed_low, seed_high, directions, dtype: rows.new_empty(
        (rows.shape[0], *shape), dtype=dtype
    ),
    launcher="nntk.kernels.philox.triton.launch",
)


def split_seed(seed: int) -> tuple[int, int]:
    """The low and high 32 bits of a seed: the key of the stream.

    Args:
        seed: An integer in [0, 2**64).

    Returns:
        Two integers in [0, 2**32).

    Raises:
        ValueError: If the seed is out of range.
        TypeError: If it is no integer.

    Example:
        >>> split_seed(2**32 + 5)
        (5, 1)
    """
    seed = checks.integer("seed", seed, 0, 2**64 - 1)
    return seed & 0xFFFFFFFF, seed >> 32


def unit_displacements(
    rows: Tensor,
    ordinal: int,
    shape: Sequence[int],
    seed: int,
    directions: str = "gaussian",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Unit displacements :math:`E_m` of one parameter; README.md beside this file defines every family.

    Args:
        rows: Which displacements m, [M], int64 in [0, 2**32).
        ordinal: Position of the parameter in registration order (frozen ones counted, tied ones once).
        shape: Shape of the parameter.
        seed: Seed of the stream, in [0, 2**64).
        directions: ``"gaussian"`` (normals rounded to bfloat16), ``"rademacher"`` (signs), ``"flipout(B)"`` (signs made
            of B bases) or ``"lowrank(R)"`` (products of normal factors, of the norm of signs).
        dtype: Floating dtype of the result.

    Returns:
        [M, *shape] on the device of ``rows``. The same values on every device and in every dtype, rounded to it for
        lowrank.

    Raises:
        ValueError: If a name is unknown, or the seed or the ordinal out of range.
        TypeError: If ``rows`` is no int64 vector, or the seed or the ordinal no integer.

    Example:
        >>> e = unit_displacements(torch.arange(2), ordinal=0, shape=(3, 5), seed=7, directions="rademacher")
        >>> e.shape, bool((e.abs() == 1).all())
        (torch.Size([2, 3, 5]), True)
    """
    checks.row_numbers(rows)
    parse(directions)
    checks.integer("ordinal", ordinal, 0, 2**32 - 1)
    low, high = split_seed(seed)
    return _op(rows, ordinal, list(shape), low, high, directions, dtype)
