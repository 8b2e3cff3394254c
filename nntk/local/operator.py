"""The local NTK as a linear operator: products, solutions and eigenvalues by derivatives, without any matrix."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.slices import slices
from nntk.linalg.vectors import as_columns, result_dtype
from nntk.local.agreement import fixed_weights
from nntk.local.jacobian import kernel_diagonal
from nntk.local.products import JacobianProducts
from nntk.local.subject import Subject, plain_gradients
from nntk.models.data.inputs import Batch

_RESIDUALS = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Default relative residuals of solutions; products in a dtype have no more digits."""


class LocalNTKOperator:
    r"""Local NTK of N inputs as a linear operator, :math:`K v = J (J^\top v)`.

    A product takes a backward and a forward derivative of the model for each vector; traced kernels take them for each
    output. Neither a kernel nor a Jacobian is formed. :meth:`nntk.LocalNTK.operator` makes it, and the model must not
    change while it is in use.

    Attributes:
        num_outputs: Number C of outputs.
        dtype: Floating dtype that derivatives are computed in.
    """

    def __init__(self, subject: Subject, x: Batch, outputs: str, max_bytes: int) -> None:
        """Check the derivatives of the model at the inputs.

        Args:
            subject: The model.
            x: Inputs, [N, ...], as the subject returns them.
            outputs: ``"trace"`` or ``"mean"`` over the outputs, whose operator is N x N; or ``"full"``, of which it is
                NC x NC, and entry n C + c belongs to output c at input n.
            max_bytes: Budget of temporary memory in bytes.
        """
        self._subject, self._x, self._outputs, self._max_bytes = subject, x, outputs, max_bytes
        with plain_gradients(subject.view.device):
            self._products = JacobianProducts(subject, x, max_bytes)
        self.num_outputs, self.dtype = self._products.num_outputs, subject.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of columns: N, or N C for full outputs."""
        size = len(self._x) * (self.num_outputs if self._outputs == "full" else 1)
        return size, size

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self._multiply(self._columns("vectors", vectors)).to(result_dtype(self.dtype, vectors.dtype))

    def _multiply(self, vectors: Tensor) -> Tensor:
        """Return the product with vectors in float64."""
        columns = vectors if vectors.dim() == 2 else vectors[:, None]
        with plain_gradients(self._subject.view.device):
            result = self._multiply_full(columns) if self._outputs == "full" else self._multiply_traced(columns)
        return result.reshape(vectors.shape)

    def _multiply_full(self, columns: Tensor) -> Tensor:
        weights = columns.T.reshape(columns.shape[1], len(self._x), self.num_outputs)
        products = torch.empty_like(weights)
        for some in slices(len(weights), self._products.vectors):
            products[some] = self._products.push_forward(self._products.pull_back(weights[some]))
        return products.flatten(1).T

    def _multiply_traced(self, columns: Tensor) -> Tensor:
        # Output c of vector r is weighted by that vector, and all other outputs by zero.
        num_vectors, outputs = columns.shape[1], self.num_outputs
        result = torch.zeros_like(columns)
        for some in slices(num_vectors * outputs, self._products.vectors):
            pairs = torch.arange(some.start, some.stop, device=columns.device)
            r, c = pairs // outputs, pairs % outputs
            places = torch.arange(len(pairs), device=columns.device)
            weights = columns.new_zeros(len(pairs), len(self._x), outputs)
            weights[places, :, c] = columns.T[r]
            products = self._products.push_forward(self._products.pull_back(weights))
            result.index_add_(1, r, products[places, :, c].T)
        return result / outputs if self._outputs == "mean" else result

    def solve(self, y: Tensor, alpha: float, *, rtol: float | None = None, max_iterations: int | None = None) -> Tensor:
        r"""Solve :math:`(K + \alpha I) v = y` by conjugate gradients, one right-hand side after another.

        Args:
            y: Right-hand sides, [N] or [N, R], of any real dtype; N C for full outputs.
            alpha: The ridge, above 0.
            rtol: Norm of the residual, relative to that of ``y``; None for 1e-5 in float32 and 1e-10 in float64.
            max_iterations: Largest number of products for each right-hand side; None for ten times the size.

        Returns:
            v in the shape of ``y``, in the wider of the kernel's dtype and that of a floating ``y``.

        Raises:
            ValueError: If a shape does not fit, an entry is not finite, or a number is out of range.
            TypeError: If ``y`` is no tensor, or complex, or a number is none.
            ArithmeticError: If the iteration does not reach the residual; a larger ridge converges faster.
        """
        from scipy.sparse.linalg import cg

        alpha = checks.positive_float("alpha", alpha, 1e-30, 1e30, "The ridge is added to the diagonal.")
        rtol = _RESIDUALS[self.dtype] if rtol is None else rtol
        rtol = checks.positive_float("rtol", rtol, 1e-15, 1.0, "It bounds the residual relative to y.")
        if max_iterations is not None:
            max_iterations = checks.integer("max_iterations", max_iterations, 1)
        right = self._columns("y", y)
        columns = right if right.dim() == 2 else right[:, None]
        solution = torch.empty_like(columns)
        for index, column in enumerate(columns.T if len(columns) else ()):
            # A symmetric positive definite system: the operator has only eigenvalues of at least alpha.
            found, status = cg(self._scipy(alpha), column.cpu().numpy(), rtol=rtol, atol=0.0, maxiter=max_iterations)
            if status:
                raise ArithmeticError(
                    f"conjugate gradients did not reach a relative residual of {rtol:g} in {status} iterations for "
                    f"alpha={alpha:g}; a larger alpha, rtol or max_iterations makes them converge."
                )
            solution[:, index] = torch.as_tensor(found, device=right.device)
        return solution.reshape(right.shape).to(result_dtype(self.dtype, y.dtype))

    def eigsh(self, k: int = 6) -> tuple[Tensor, Tensor]:
        """Compute the largest eigenvalues and their eigenvectors, by Lanczos iteration.

        Args:
            k: Number of eigenvalues, at most the size of the operator.

        Returns:
            Eigenvalues, [k], float64, the largest first, and orthonormal vectors, [size, k].

        Raises:
            ValueError: If ``k`` is out of range.
            TypeError: If it is no integer.
        """
        from scipy.sparse.linalg import eigsh

        size = self.shape[0]
        k = checks.integer("k", k, 1, size, f"The matrix has {size} rows.")
        if 2 * k >= size:  # The iteration would take as many products as the matrix has columns.
            matrix = self._multiply(torch.eye(size, dtype=torch.float64, device=self._x.device))
            values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
            return values[-k:].flip(0), vectors[:, -k:].flip(1)
        start = fixed_weights(size, 1, torch.empty(0, dtype=torch.float64))[:, 0].numpy()
        found = eigsh(self._scipy(), k=k, which="LA", v0=start)
        values, vectors = (torch.as_tensor(np.ascontiguousarray(part), device=self._x.device) for part in found)
        return values.flip(0), vectors.flip(1)

    def eigvalsh(self, k: int = 6) -> Tensor:
        """Compute the largest eigenvalues alone, in the order of :meth:`eigsh`, with the same arguments and errors."""
        return self.eigsh(k)[0]

    def diagonal(self) -> Tensor:
        """Return the diagonal, [N] or [N C], in float64."""
        outputs = "diagonal" if self._outputs == "full" else self._outputs
        with plain_gradients(self._subject.view.device):
            return kernel_diagonal(self._subject, self._x, outputs, self._max_bytes).double().flatten()

    def trace(self) -> float:
        """Return the sum of the diagonal."""
        return float(self.diagonal().sum())

    def to_scipy(self) -> Any:
        """Return the operator as a ``scipy.sparse.linalg.LinearOperator`` of float64, for SciPy's iterative methods."""
        return self._scipy()

    def _scipy(self, alpha: float = 0.0) -> Any:
        """Return :math:`K + alpha I` for SciPy."""
        from scipy.sparse.linalg import LinearOperator

        def multiply(vectors: Any) -> Any:
            if np.iscomplexobj(vectors):
                return multiply(vectors.real) + 1j * multiply(vectors.imag)
            columns = torch.as_tensor(np.asarray(vectors, dtype=np.float64), device=self._x.device)
            return (self._multiply(columns) + alpha * columns).cpu().numpy()

        return LinearOperator(
            self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, rmatmat=multiply, dtype="float64"
        )

    def _columns(self, name: str, vectors: Tensor) -> Tensor:
        return as_columns(name, vectors, self.shape[0], self._x.device)
