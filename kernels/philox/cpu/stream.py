"""Calls of the compiled kernels that fill slabs with noise, in arrays that the caller owns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nntk.kernels.philox.cpu import kernel
from nntk.kernels.philox.integers import DISPLACEMENT, STREAM_VERSION

Array = NDArray[Any]
Call = tuple[Any, ...]
"""A compiled kernel and its arguments."""


@dataclass(frozen=True)
class Displaced:
    """Weights W + s E that are written beside the noise.

    Attributes:
        weight: Rows of W, [rows, columns].
        steps: Signed steps s of the members, [T, members], in the dtype of W.
        out: Array for the sums, [T, members, rows, columns].
    """

    weight: Array
    steps: Array
    out: Array


@dataclass(frozen=True)
class Stream:
    """Source of noise: a seed.

    Attributes:
        key: Low and high 32 bits of the seed.
    """

    key: tuple[int, int]

    def _words(self, ordinal: int, purpose: int) -> Array:
        return np.array([ordinal, STREAM_VERSION << 24 | purpose << 16, *self.key], dtype=np.int64)

    def matrix(
        self,
        is_gaussian: bool,
        samples: Array,
        ordinal: int,
        rows: slice,
        width: int,
        noise: Array | None,
        displaced: Displaced | None = None,
        squares: Array | None = None,
        purpose: int = DISPLACEMENT,
    ) -> Call:
        """Return the call that fills rows of matrices.

        Args:
            is_gaussian: True for normals, False for signs.
            samples: Stream numbers m of the samples, [T], int64.
            ordinal: Position of the tensor in registration order.
            rows: Range of rows; it starts at a multiple of four.
            width: Number of columns.
            noise: Array for E, [T, rows, columns], float32 or float64; None to leave it out.
            displaced: Displaced weights that are written too.
            squares: Array to which squared norms of normals are added, [T], float64.
            purpose: Purpose of the words in the stream.

        Returns:
            The kernel and its arguments.
        """
        if noise is None:
            noise = np.empty((0, 0, 0), np.float32 if displaced is None else displaced.out.dtype)
        if displaced is None:
            displaced = Displaced(*(np.empty((0,) * axes, noise.dtype) for axes in (2, 2, 4)))
        weight, steps, out = displaced.weight, displaced.steps, displaced.out
        stream, shape = self._words(ordinal, purpose), (rows.stop, width)
        if is_gaussian:
            return (
                kernel.fill_normals,
                stream,
                samples,
                (rows.start, rows.stop),
                shape,
                noise,
                weight,
                steps,
                out,
                _squares(squares),
            )
        return kernel.fill_signs, stream, samples, (rows.start, rows.stop), shape, noise, weight, steps, out

    def vector(
        self,
        is_gaussian: bool,
        samples: Array,
        ordinal: int,
        indices: slice,
        noise: Array | None,
        squares: Array | None = None,
        purpose: int = DISPLACEMENT,
    ) -> Call:
        """Return the call that fills parts of vectors, [T, 1, length].

        Args:
            is_gaussian: True for normals, False for signs.
            samples: Stream numbers m of the samples, [T], int64.
            ordinal: Position of the tensor in registration order.
            indices: Range of indices; it starts at a multiple of 128.
            noise: Array for E, [T, 1, length], float32 or float64; None to leave it out.
            squares: Array to which squared norms of normals are added, [T], float64.
            purpose: Purpose of the words in the stream.

        Returns:
            The kernel and its arguments.
        """
        stream, span = self._words(ordinal, purpose), (indices.start, indices.stop)
        noise = np.empty((0, 0, 0), np.float32) if noise is None else noise
        nothing = (np.empty((0,) * axes, noise.dtype) for axes in (2, 2, 4))
        if is_gaussian:
            return kernel.fill_normals, stream, samples, span, (0, indices.stop), noise, *nothing, _squares(squares)
        return kernel.fill_signs, stream, samples, span, (0, indices.stop), noise, *nothing


def _squares(squares: Array | None) -> Array:
    return np.empty(0) if squares is None else squares
