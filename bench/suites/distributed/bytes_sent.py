"""Model of the bytes that a rank sends while a symmetric kernel is computed by a group of ranks."""


def over_displacements(ranks: int, inputs: int) -> float:
    r"""Return the bytes that each rank sends for the sum of the kernels of all ranks, in float64.

    .. math::
        2\,\frac{P - 1}{P}\, 8 N^2

    Args:
        ranks: Number P of ranks.
        inputs: Number N of inputs, which every rank holds.

    Returns:
        The bytes.

    Example:
        >>> over_displacements(2, 1000) / 1e6
        8.0
    """
    return 2 * (ranks - 1) / ranks * 8 * inputs**2


def over_inputs(ranks: int, inputs: int, samples: int, outputs: int, itemsize: int) -> float:
    r"""Return the mean over ranks of the bytes that one sends: features along a ring, and tiles to be mirrored.

    .. math::
        \lfloor P/2 \rfloor\, M \frac{N}{P} C\, b + \frac{P - 1}{2}\, 8 \Bigl(\frac{N}{P}\Bigr)^2

    Args:
        ranks: Number P of ranks.
        inputs: Number N of all inputs; each rank holds N / P.
        samples: Number M of displacements.
        outputs: Number C of outputs.
        itemsize: Bytes b of a feature, 4 for float32.

    Returns:
        The bytes.

    Example:
        >>> over_inputs(2, 1000, 512, 1, 4) / 1e6
        2.024
    """
    of_rank = inputs / ranks
    return (ranks // 2) * samples * of_rank * outputs * itemsize + (ranks - 1) / 2 * 8 * of_rank**2
