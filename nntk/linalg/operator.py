"""A kernel matrix that is never formed: products, solutions and spectra through its features, chunk by chunk."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.perturb import DEFAULT_BYTES

if TYPE_CHECKING:
    from nntk.kernel import NonlocalNTK


class KernelOperator:
    r"""The kernel of N inputs as a linear operator, :math:`K = A A^\top` with features A [N, F].

    Products cost O(N F); everything else goes through :math:`A^\top A` [F, F] in float64, or through the kernel itself
    where N is smaller than F. A is made for some inputs at a time, and held only where the budget has room for all of
    it: the model is not to change while an operator is in use.

    Args:
        kernel: The kernel, traced or averaged over outputs; its estimator has features.
        x: Inputs, [N, ...].

    Raises:
        ValueError: If the kernel has no features, or inputs do not fit its model or are not finite.
        TypeError: If inputs are no tensor or have another dtype than the model.

    Example:
        >>> import nntk
        >>> kernel = nntk.NonlocalNTK(torch.nn.Linear(3, 1), samples=64)
        >>> x = torch.randn(50, 3)
        >>> v = torch.ones(50)
        >>> torch.allclose(kernel.operator(x) @ v, kernel(x) @ v, rtol=1e-4, atol=1e-4)
        True
    """

    def __init__(self, kernel: "NonlocalNTK", x: Tensor) -> None:
        kernel.check_inputs("x", x)
        self.kernel, self.x = kernel, x.detach()
        width = kernel.features(x[:1]).shape[1]
        self.num_features = width
        # Four copies of the features of some inputs: differences, features, float64.
        budget = kernel.max_memory or DEFAULT_BYTES
        self._inputs = max(1, budget // (32 * max(1, width)))

    @property
    def shape(self) -> tuple[int, int]:
        """Both lengths, N."""
        return len(self.x), len(self.x)

    def features(self, x: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Features of some inputs at a time, in float64.

        Args:
            x: Inputs; those of the operator by default.

        Yields:
            Where they stand, and their features, [n, F].
        """
        if x is None and self._inputs >= len(self.x):
            yield slice(0, len(self.x)), self._held
            return
        inputs = self.x if x is None else x
        for start in range(0, len(inputs), self._inputs):
            some = slice(start, min(start + self._inputs, len(inputs)))
            yield some, self.kernel.features(inputs[some]).double()

    @cached_property
    def _held(self) -> Tensor:
        """All features, which the budget has room for."""
        return self.kernel.features(self.x).double()

    def project(self, vectors: Tensor) -> Tensor:
        r""":math:`A^\top v` of vectors [N] or [N, R].

        Returns:
            [F] or [F, R], float64.

        Raises:
            ValueError: If their number is another than that of the inputs.
            TypeError: If they are no tensor.
        """
        vectors = self._vectors("vectors", vectors)
        total = vectors.new_zeros(self.num_features, *vectors.shape[1:])
        for some, a in self.features():
            total += a.T @ vectors[some]
        return total

    def expand(self, weights: Tensor, x: Tensor | None = None) -> Tensor:
        r""":math:`A(x) w` of weights [F] or [F, R]: at other inputs, a prediction.

        Returns:
            [N] or [N, R], float64.

        Raises:
            ValueError: If their number is another than that of the features, or the inputs do not fit the model.
            TypeError: If the weights or the inputs are no tensor, or the inputs have another dtype than the model.
        """
        inputs, weights = self.x if x is None else x, _columns("weights", weights, self.num_features)
        out = weights.new_empty(len(inputs), *weights.shape[1:])
        for some, a in self.features(x):
            out[some] = a @ weights
        return out

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.expand(self.project(vectors)).to(vectors.dtype)

    @cached_property
    def gram(self) -> Tensor:
        r""":math:`A^\top A`, [F, F], float64."""
        return self.gram_and_projection(self.x.new_zeros(len(self.x), 0, dtype=torch.float64))[0]

    def gram_and_projection(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`A^\top A` and :math:`A^\top v` of one pass over the inputs.

        Returns:
            [F, F], and [F] or [F, R], float64.

        Raises:
            ValueError: If the number of vectors' entries is another than that of the inputs.
            TypeError: If they are no tensor.
        """
        vectors = self._vectors("vectors", vectors)
        gram = torch.zeros(self.num_features, self.num_features, dtype=torch.float64, device=self.x.device)
        projected = vectors.new_zeros(self.num_features, *vectors.shape[1:])
        for some, a in self.features():
            gram.addmm_(a.T, a)
            projected += a.T @ vectors[some]
        return gram, projected

    @property
    def is_wide(self) -> bool:
        """Whether there are at least as many features as inputs, so that the matrix itself is the smaller problem."""
        return self.num_features >= len(self.x)

    @cached_property
    def matrix(self) -> Tensor:
        r"""The smaller of K [N, N] and :math:`A^\top A` [F, F], in float64: but for zeros their eigenvalues are one."""
        return self.kernel(self.x).double() if self.is_wide else self.gram

    def root(self) -> Tensor:
        r"""Some R with :math:`K = R R^\top`, in float64: the features, [N, F], or [N, N] where those are more."""
        if not self.is_wide:
            return torch.cat([a for _, a in self.features()])
        values, vectors = torch.linalg.eigh(self.matrix)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root

    def solve(self, y: Tensor, alpha: float) -> Tensor:
        r"""Solve :math:`(K + \alpha I) v = y`.

        Args:
            y: Right-hand sides, [N] or [N, R].
            alpha: The ridge, above 0.

        Returns:
            v, like ``y``; by Woodbury's identity where N exceeds F.

        Raises:
            ValueError: If a shape does not fit, or the ridge is out of range.
            TypeError: If ``y`` is no tensor, or the ridge no number.
        """
        alpha = checks.positive_float("alpha", alpha, 1e-30, 1e30, "The ridge is added to the diagonal.")
        right = self._vectors("y", y)
        if self.is_wide:
            solution = _solve(self.matrix, alpha, right)
        else:
            solution = (right - self.expand(_solve(self.gram, alpha, self.project(right)))) / alpha
        return solution.to(y.dtype)

    def eigsh(self, k: int = 6) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues and their vectors.

        Args:
            k: How many, at most N and F.

        Returns:
            Eigenvalues, [k], float64, the largest first, and orthonormal vectors, [N, k].

        Raises:
            ValueError: If ``k`` is out of range.
            TypeError: If it is no integer.
        """
        k = checks.integer("k", k, 1, min(len(self.x), self.num_features))
        values, vectors = torch.linalg.eigh(self.matrix)
        values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
        if self.is_wide:
            return values, vectors
        # Vectors of eigenvalues of rounding have no direction of their own.
        roots = values.clamp(min=torch.finfo(torch.float64).eps * float(values[0])).sqrt()
        return values, self.expand(vectors / roots)

    def eigvalsh(self, k: int = 6) -> Tensor:
        """The largest eigenvalues alone, as :meth:`eigsh` gives them.

        Returns:
            [k], float64.

        Raises:
            ValueError: If ``k`` is out of range.
            TypeError: If it is no integer.
        """
        k = checks.integer("k", k, 1, min(len(self.x), self.num_features))
        values: Tensor = torch.linalg.eigvalsh(self.matrix)
        return values[-k:].flip(0)

    def diagonal(self) -> Tensor:
        """The diagonal, [N], float64."""
        return torch.cat([a.square().sum(1) for _, a in self.features()])

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().sum())

    def squared_norm(self) -> float:
        """Sum of the squares of all entries."""
        return float(self.matrix.square().sum())

    def effective_rank(self) -> float:
        r"""Squared trace over squared norm, :math:`(\sum \lambda)^2 / \sum \lambda^2`: 1 for a single direction."""
        return float(self.matrix.trace() ** 2 / self.matrix.square().sum())

    def alignment(self, y: Tensor) -> float:
        r"""Alignment with targets, :math:`\langle y, K y \rangle / (|K|_F\,|y y^\top|_F)`, in [0, 1].

        Args:
            y: Targets, [N] or [N, R]; of several the sum over them. Given the :meth:`root` of another kernel it is
                the similarity of the two, :math:`\langle K, K' \rangle / (|K|_F\,|K'|_F)`.

        Returns:
            The alignment.

        Raises:
            ValueError: If their number is another than that of the inputs.
            TypeError: If they are no tensor.
        """
        targets = self._vectors("y", y)
        columns = targets if targets.dim() == 2 else targets[:, None]
        products = columns * (self.matrix @ columns) if self.is_wide else self.project(columns).square()
        return float(products.sum() / ((columns.T @ columns).norm() * self.matrix.norm()))

    def to_scipy(self) -> Any:
        """The same as a ``scipy.sparse.linalg.LinearOperator``, for its iterative methods; needs SciPy."""
        from scipy.sparse.linalg import LinearOperator

        def times(vectors: Any) -> Any:
            return (self @ torch.as_tensor(vectors, dtype=torch.float64, device=self.x.device)).cpu().numpy()

        return LinearOperator(self.shape, matvec=times, rmatvec=times, matmat=times, rmatmat=times, dtype="float64")

    def _vectors(self, name: str, vectors: Tensor) -> Tensor:
        return _columns(name, vectors, len(self.x))


def _columns(name: str, vectors: Tensor, length: int) -> Tensor:
    """Vectors of a length, or columns of it, in float64."""
    checks.tensor(name, vectors)
    if vectors.dim() not in (1, 2) or len(vectors) != length:
        raise ValueError(f"{name} must have shape [{length}] or [{length}, R], got {tuple(vectors.shape)}.")
    return vectors.double()


def _solve(matrix: Tensor, alpha: float, right: Tensor) -> Tensor:
    """Solve (matrix + alpha I) v = right for a matrix that is positive semi-definite but for rounding."""
    shifted = matrix.clone()
    shifted.diagonal().add_(alpha)
    factor, info = torch.linalg.cholesky_ex(shifted)
    columns = right if right.dim() == 2 else right[:, None]
    solution = torch.linalg.solve(shifted, columns) if int(info) else torch.cholesky_solve(columns, factor)
    return solution if right.dim() == 2 else solution[:, 0]
