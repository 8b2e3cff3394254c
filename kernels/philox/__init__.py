"""Random stream: unit displacements as a function of (seed, sample, parameter, index) and of nothing else."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.dispatch import register
from nntk.kernels.philox import cost, reference
from nntk.kernels.philox.directions import FAMILIES, Directions, parse
from nntk.kernels.philox.integers import STREAM_VERSION
from nntk.kernels.philox.source import source_of

__all__ = [
    "FAMILIES",
    "STREAM_VERSION",
    "Directions",
    "displacements_by_ordinal",
    "parse",
    "split_seed",
    "unit_displacements",
]

_op = register(
    "unit_displacements(Tensor sample_ids, int ordinal, SymInt[] shape, int seed_low, int seed_high, str directions,"
    " ScalarType dtype) -> Tensor",
    reference.unit_displacements,
    cost.unit_displacements,
    lambda sample_ids, ordinal, shape, seed_low, seed_high, directions, dtype: sample_ids.new_empty(
        (sample_ids.shape[0], *shape), dtype=dtype
    ),
    launcher="nntk.kernels.philox.triton.launch",
    compiled="nntk.kernels.philox.cpu.launch",
)


def split_seed(seed: int) -> tuple[int, int]:
    """Return the low and high 32 bits of a seed, which are the key of the stream.

    Args:
        seed: An integer in [0, 2**64).

    Returns:
        Two integers in [0, 2**32).

    Raises:
        ValueError: If the seed is out of range.
        TypeError: If the seed is not an integer.

    Example:
        >>> split_seed(2**32 + 5)
        (5, 1)
    """
    seed = checks.integer("seed", seed, 0, 2**64 - 1)
    return seed & 0xFFFFFFFF, seed >> 32


def unit_displacements(
    sample_ids: Tensor,
    ordinal: int,
    shape: Sequence[int],
    seed: int,
    directions: str = "gaussian",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Generate unit displacements :math:`E_m` of one parameter.

    README.md beside this file defines every family, for example :math:`E_m = c_m A_m^T B_m` of ``"lowrank(R)"``.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64 in [0, 2**32).
        ordinal: Position of the parameter in registration order (frozen ones counted, tied ones once).
        shape: Shape of the parameter.
        seed: Seed of the stream, in [0, 2**64).
        directions: ``"gaussian"`` (normals rounded to bfloat16), ``"rademacher"`` (signs), ``"flipout(B)"`` (signs
            derived from B shared bases) or ``"lowrank(R)"`` (products of normal factors, with the norm of signs).
        dtype: Floating dtype of the result.

    Returns:
        [M, *shape] on the device of ``sample_ids``, in units of the displacement's scale. The values are the same on
        every device and in every dtype; for lowrank they are rounded to ``dtype``.

    Raises:
        ValueError: If a name is unknown, or the seed or the ordinal is out of range.
        TypeError: If ``sample_ids`` is not an int64 vector, or the seed or the ordinal is not an integer.

    Example:
        >>> e = unit_displacements(torch.arange(2), ordinal=0, shape=(3, 5), seed=7, directions="rademacher")
        >>> e.shape, bool((e.abs() == 1).all())
        (torch.Size([2, 3, 5]), True)
    """
    checks.sample_ids(sample_ids)
    parse(directions)
    checks.integer("ordinal", ordinal, 0, 2**32 - 1)
    low, high = split_seed(seed)
    return _op(sample_ids, ordinal, list(shape), low, high, directions, dtype)


def displacements_by_ordinal(
    sample_ids: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    seed: int,
    directions: str,
    dtype: torch.dtype,
) -> dict[int, Tensor]:
    """Generate unit displacements of several parameters, as :func:`unit_displacements` does each.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        shapes: Shapes of the parameters by their ordinals.
        seed: Seed of the stream.
        directions: Family of the displacements.
        dtype: Floating dtype of the result.

    Returns:
        [M, *shape] by ordinal.
    """
    if sample_ids.device.type == "cpu":
        # Small parameters are generated together, because one call for each of them would dominate the time.
        source = source_of(sample_ids.device)
        return reference.displacements(directions, sample_ids, shapes, split_seed(seed), dtype, source=source)
    return {
        ordinal: unit_displacements(sample_ids, ordinal, shape, seed, directions, dtype)
        for ordinal, shape in shapes.items()
    }
