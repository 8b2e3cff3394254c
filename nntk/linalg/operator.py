"""A kernel matrix that is never formed: products, solutions and spectra by its features, in blocks of inputs."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.linalg import ridge
from nntk.linalg.alignment import alignment, effective_rank
from nntk.linalg.spectra import check_rank, leading_eigenpairs
from nntk.linalg.vectors import as_columns, result_dtype
from nntk.models.data.inputs import Batch, bytes_of
from nntk.models.data.streams import Source, SourceValue, Stream, as_source, blocks_of


class KernelOperator:
    r"""The kernel of N inputs as a linear operator, :math:`K = A A^\top` with features A [N, F].

    Products cost O(N F). Everything else uses :math:`A^\top A` [F, F] in float64, or the kernel matrix itself where N
    is at most F. The features are computed for one block of inputs at a time, and kept only where the budget has room
    for all of them: the model must not change while an operator is in use. :meth:`nntk.NonlocalNTK.operator` makes the
    operator of a nonlocal kernel.

    Args:
        features: Function from inputs [n, ...] to their features A(x) [n, F], in the model's dtype. It checks inputs.
        kernel: Function from inputs [n, ...] to their kernel matrix [n, n]; it is called where N is at most F.
        x: Inputs, [N, ...], that fit the model, or a :class:`nntk.Stream` of them.
        max_bytes: Budget of temporary memory in bytes.

    Attributes:
        x: Inputs, detached, or the stream of them.
        num_features: Number F of features.
        dtype: Floating dtype of the kernel, that of its features.

    Example:
        >>> a = torch.randn(50, 3)
        >>> operator = KernelOperator(lambda x: x, lambda x: x @ x.T, a, max_bytes=2**20)
        >>> v = torch.ones(50)
        >>> torch.allclose(operator @ v, a @ a.T @ v, rtol=1e-4, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: Callable[[Batch], Tensor],
        kernel: Callable[[Source], Tensor],
        x: Source,
        max_bytes: int,
    ) -> None:
        self._features, self._kernel = features, kernel
        self.x: Source = x if isinstance(x, Stream) else x.detach()
        first = features(self.x.first if isinstance(self.x, Stream) else self.x[:1])
        self._device = first.device
        self.num_features, self.dtype = first.shape[1], first.dtype
        # Differences, features and float64 copies of a block take at most four times 8 bytes for each feature.
        self._block_size = max(1, max_bytes // (32 * max(1, self.num_features)))
        # Of a stream, the inputs of a block take their part of the budget too, with float64 copies.
        self._read_size = self._block_size
        if isinstance(self.x, Stream):
            self._read_size = max(1, min(self._block_size, max_bytes // (16 * bytes_of(self.x.first))))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns, both N."""
        return len(self.x), len(self.x)

    def features(self, x: SourceValue | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Compute features in float64, one block of inputs at a time.

        Args:
            x: Inputs; those of the operator by default.

        Yields:
            The block's place among the inputs, and its features, [n, F].
        """
        if x is None and self._block_size >= len(self.x):
            yield slice(0, len(self.x)), self._all_features
            return
        inputs = self.x if x is None else _on_device(as_source("x", x), self._device)
        for place, block in blocks_of(inputs, self._read_size):
            yield place, self._features(block).double()

    @cached_property
    def _all_features(self) -> Tensor:
        """Features of all inputs, [N, F], where the budget has room for them."""
        if isinstance(self.x, Stream):
            return torch.cat([self._features(block) for _, block in blocks_of(self.x, self._read_size)]).double()
        return self._features(self.x).double()

    def project(self, vectors: Tensor) -> Tensor:
        r"""Multiply vectors by the transposed features, :math:`A^\top v`.

        Args:
            vectors: v, [N] or [N, R], of any real dtype.

        Returns:
            [F] or [F, R], float64.

        Raises:
            ValueError: If their number is another than that of the inputs, or an entry is not finite.
            TypeError: If they are no tensor, or complex.
        """
        vectors = self._vectors("vectors", vectors)
        total = vectors.new_zeros(self.num_features, *vectors.shape[1:])
        for block, a in self.features():
            total += a.T @ vectors[block]
        return total

    def expand(self, weights: Tensor, x: SourceValue | None = None) -> Tensor:
        r"""Multiply the features by weights, :math:`A(x) w`: at other inputs this is a prediction.

        Args:
            weights: w, [F] or [F, R], of any real dtype.
            x: Inputs, [N, ...]; those of the operator by default.

        Returns:
            [N] or [N, R], float64.

        Raises:
            ValueError: If their number is another than that of the features, an entry is not finite, or the inputs do
                not fit the model.
            TypeError: If the weights or the inputs are no tensor, the weights are complex, or the inputs have another
                dtype than the model.
        """
        weights = as_columns("weights", weights, self.num_features, self._device)
        inputs = self.x if x is None else _on_device(as_source("x", x), self._device)
        out = weights.new_empty(len(inputs), *weights.shape[1:])
        for block, a in self.features(None if x is None else inputs):
            out[block] = a @ weights
        return out

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.expand(self.project(vectors)).to(result_dtype(self.dtype, vectors.dtype))

    @cached_property
    def gram(self) -> Tensor:
        r"""Gram matrix of the features, :math:`A^\top A`, [F, F], float64."""
        return self.gram_and_projection(torch.zeros(len(self.x), 0, dtype=torch.float64, device=self._device))[0]

    def gram_and_projection(self, vectors: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Compute :math:`A^\top A` and :math:`A^\top v` in one pass over the inputs.

        Args:
            vectors: v, [N] or [N, R], of any real dtype.
            scales: Factors of the inputs' features, [N], float64; one by default.

        Returns:
            [F, F], and [F] or [F, R], float64.

        Raises:
            ValueError: If the number of vectors' entries is another than that of the inputs, or one is not finite.
            TypeError: If they are no tensor, or complex.
        """
        vectors = self._vectors("vectors", vectors)
        gram = torch.zeros(self.num_features, self.num_features, dtype=torch.float64, device=self._device)
        projected = vectors.new_zeros(self.num_features, *vectors.shape[1:])
        for block, a in self.features():
            a = a if scales is None else a * scales[block, None]
            gram.addmm_(a.T, a)
            projected += a.T @ vectors[block]
        return gram, projected

    @property
    def is_wide(self) -> bool:
        """True where there are at least as many features as inputs, so that K is not larger than the Gram matrix."""
        return self.num_features >= len(self.x)

    @cached_property
    def matrix(self) -> Tensor:
        r"""The smaller of K [N, N] and :math:`A^\top A` [F, F], in float64; both have the same nonzero eigenvalues."""
        return self._kernel(self.x).double() if self.is_wide else self.gram

    def root(self) -> Tensor:
        r"""Compute a matrix R with :math:`K = R R^\top`, [N, min(N, F)].

        Returns:
            R in float64: the features, [N, F], where there are fewer of them than inputs; else the eigenvectors of K
            times the square roots of their eigenvalues, [N, N].
        """
        if not self.is_wide:
            return torch.cat([a for _, a in self.features()])
        values, vectors = torch.linalg.eigh(self.matrix)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root

    def solve(self, y: Tensor, alpha: float) -> Tensor:
        r"""Solve :math:`(K + \alpha I) v = y`.

        Args:
            y: Right-hand sides, [N] or [N, R], of any real dtype, for example class labels.
            alpha: The ridge, above 0.

        Returns:
            v in the shape of ``y``, in the wider of the kernel's dtype and that of a floating ``y``; by Woodbury's
            identity where N exceeds F.

        Raises:
            ValueError: If a shape does not fit, an entry is not finite, or the ridge is out of range.
            TypeError: If ``y`` is no tensor, or complex, or the ridge no number.
        """
        alpha = checks.positive_float("alpha", alpha, 1e-30, 1e30, "The ridge is added to the diagonal.")
        right = self._vectors("y", y)
        if self.is_wide:
            solution = ridge.solve(self.matrix, alpha, right)
        else:
            solution = (right - self.expand(ridge.solve(self.gram, alpha, self.project(right)))) / alpha
        return solution.to(result_dtype(self.dtype, y.dtype))

    def eigsh(self, k: int = 6) -> tuple[Tensor, Tensor]:
        """Compute the largest eigenvalues and their eigenvectors.

        Args:
            k: Number of eigenvalues, at most N and F.

        Returns:
            Eigenvalues, [k], float64, the largest first, and orthonormal vectors, [N, k].

        Raises:
            ValueError: If ``k`` is out of range.
            TypeError: If it is no integer.
        """
        k = check_rank(k, len(self.x), self.num_features)
        values, vectors, roots = leading_eigenpairs(self.matrix, k)
        return values, vectors if self.is_wide else self.expand(vectors / roots)

    def eigvalsh(self, k: int = 6) -> Tensor:
        """Compute the largest eigenvalues alone, in the order of :meth:`eigsh`.

        Args:
            k: Number of eigenvalues, at most N and F.

        Returns:
            [k], float64.

        Raises:
            ValueError: If ``k`` is out of range.
            TypeError: If it is no integer.
        """
        k = check_rank(k, len(self.x), self.num_features)
        values: Tensor = torch.linalg.eigvalsh(self.matrix)
        return values[-k:].flip(0)

    def diagonal(self) -> Tensor:
        """Return the diagonal, [N], float64."""
        return torch.cat([a.square().sum(1) for _, a in self.features()])

    def trace(self) -> float:
        """Return the sum of the diagonal."""
        return float(self.diagonal().sum())

    def effective_rank(self) -> float:
        r"""Return the squared trace over the squared norm, :math:`(\sum \lambda)^2 / \sum \lambda^2`, 1 for rank 1."""
        return effective_rank(self.matrix)

    def alignment(self, y: Tensor) -> float:
        r"""Return the alignment with targets, :math:`\langle y, K y \rangle / (|K|_F\,|y y^\top|_F)`, in [0, 1].

        Args:
            y: Targets, [N] or [N, R], of any real dtype; inner products are summed over several targets. With the
                :meth:`root` of another kernel K' as ``y`` it is the similarity
                :math:`\langle K, K' \rangle / (|K|_F\,|K'|_F)` of the two.

        Returns:
            The alignment.

        Raises:
            ValueError: If their number is another than that of the inputs, or an entry is not finite.
            TypeError: If they are no tensor, or complex.
        """
        targets = self._vectors("y", y)
        columns = targets if targets.dim() == 2 else targets[:, None]
        products = columns * (self.matrix @ columns) if self.is_wide else self.project(columns).square()
        return alignment(columns.T @ columns, self.matrix, products.sum())

    def to_scipy(self) -> Any:
        """Return the operator as a ``scipy.sparse.linalg.LinearOperator``, for SciPy's iterative methods.

        Returns:
            Operator on NumPy vectors of any dtype, integers and complex numbers included; its products are float64, or
            complex128.
        """
        from scipy.sparse.linalg import LinearOperator

        def multiply(vectors: Any) -> Any:
            if np.iscomplexobj(vectors):
                return multiply(vectors.real) + 1j * multiply(vectors.imag)
            on_device = torch.as_tensor(np.asarray(vectors, dtype=np.float64), device=self._device)
            return (self @ on_device).cpu().numpy()

        return LinearOperator(
            self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, rmatmat=multiply, dtype="float64"
        )

    def _vectors(self, name: str, vectors: Tensor) -> Tensor:
        return as_columns(name, vectors, len(self.x), self._device)


def _on_device(x: Source, device: torch.device) -> Source:
    """Return a stream with its batches on a device, and inputs that are held as they are."""
    return x.to(device) if isinstance(x, Stream) else x
