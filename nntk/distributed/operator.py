"""A kernel matrix that is never formed, over ranks: vectors are exchanged, and never differences."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from nntk.distributed.assembly import Assembly
from nntk.distributed.columns import FeatureColumns
from nntk.distributed.inputs import SharedInputs
from nntk.distributed.ranks.dealing import Deal
from nntk.distributed.ranks.mesh import Mesh
from nntk.files.hashing import hash_tensors
from nntk.kernels import checks
from nntk.kernels.slices import slices
from nntk.linalg import ridge
from nntk.linalg.spectra import check_rank, leading_eigenpairs
from nntk.linalg.vectors import as_columns, result_dtype
from nntk.models.isolation.evaluation import plain_arithmetic
from nntk.settings import KernelSettings

Agree = Callable[..., SharedInputs]
"""Function from the name of a call and inputs to the inputs that all ranks agreed on."""


class ShardedOperator:
    r"""The kernel of N inputs as a linear operator, :math:`K = A A^\top`, on a mesh of ranks.

    A rank holds the columns of A that belong to its displacements, and the rows that belong to its inputs. A vector v
    over the inputs, [N] or [N, R], is given and returned in the same way as the inputs: ranks that hold the same inputs
    hold the same part of it. Weights of the features, [F] or [F, R], are whole on every rank. Every method is a
    collective call, of all ranks with the same arguments. :meth:`Sharded.operator` makes it.

    .. math::
        K v = \sum_r A_r A_r^\top v

    takes one sum of F numbers over the ranks with other inputs, and one of N numbers over those with other
    displacements. :math:`A^\top A` is a sum over inputs: each rank evaluates all displacements at its share of the
    inputs, and one all-reduce in float64 adds the parts.

    Args:
        mesh: The mesh.
        settings: Settings of the kernel.
        inputs: Inputs that the ranks agreed on.
        agree: Agreement on further inputs.
        deterministic: Add in a fixed order.

    Attributes:
        num_features: Number F of features.
        dtype: Floating dtype of the kernel.
    """

    def __init__(
        self, mesh: Mesh, settings: KernelSettings, inputs: SharedInputs, agree: Agree, deterministic: bool
    ) -> None:
        self._mesh, self._settings, self._inputs = mesh, settings, inputs
        self._agree, self._deterministic = agree, deterministic
        self._columns = FeatureColumns(mesh, settings, inputs, deterministic)
        self.num_features, self.dtype = self._columns.total, inputs.view.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns, both the number N of the inputs of all ranks."""
        total = sum(self._inputs.rows)
        return total, total

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of inputs on the ranks along the axis of inputs."""
        return self._inputs.rows

    @property
    def is_wide(self) -> bool:
        """True where there are at least as many features as inputs, so that K is not larger than the Gram matrix."""
        return self.num_features >= self.shape[0]

    def project(self, vectors: Tensor) -> Tensor:
        r"""Multiply vectors by the transposed features, :math:`A^\top v`.

        Args:
            vectors: This rank's part of v, [N] or [N, R], of any real dtype.

        Returns:
            [F] or [F, R], float64, on every rank.

        Raises:
            RankError: If a rank has other vectors, raised an error, or does not answer.
            ValueError: If the number of entries is not that of the inputs, or an entry is not finite, on all ranks.
            TypeError: If they are no tensor, or complex, on all ranks.
        """
        vectors = self._vectors("vectors", vectors)
        return self._columns.gather(self._columns.project(vectors))

    def expand(self, weights: Tensor, x: Tensor | None = None) -> Tensor:
        r"""Multiply the features by weights, :math:`A(x) w`: at other inputs this is a prediction.

        Args:
            weights: w, [F] or [F, R], of any real dtype, the same on every rank.
            x: This rank's inputs, [N, ...]; those of the operator by default.

        Returns:
            This rank's part of [N] or [N, R], float64.

        Raises:
            RankError: If a rank has other weights, raised an error, or does not answer.
            ValueError: If a shape does not fit, or an entry is not finite, on all ranks.
            TypeError: If an argument has the wrong type on all ranks.
        """
        agreement = self._mesh.agreement
        with agreement.together("reading weights"):
            weights = as_columns("weights", weights, self.num_features, self._inputs.view.device)
        inputs = None if x is None else self._agree("expand(weights, x)", x)
        return self._columns.expand(self._columns.cut(weights), inputs)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        own = self._vectors("vectors", vectors)
        return self._columns.expand(self._columns.project(own)).to(result_dtype(self.dtype, vectors.dtype))

    @cached_property
    def gram(self) -> Tensor:
        r"""Gram matrix of the features, :math:`A^\top A`, [F, F], float64, on every rank."""
        empty = torch.zeros(len(self._inputs.x1), 0, dtype=torch.float64, device=self._inputs.view.device)
        return self.gram_and_projection(empty)[0]

    def gram_and_projection(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        r"""Compute :math:`A^\top A` and :math:`A^\top v` by one sum over the ranks, in float64.

        Args:
            vectors: This rank's part of v, [N] or [N, R], of any real dtype.

        Returns:
            [F, F], and [F] or [F, R], float64, on every rank.

        Raises:
            RankError: If a rank has other vectors, raised an error, or does not answer.
            ValueError: If the number of entries is not that of the inputs, or an entry is not finite, on all ranks.
            TypeError: If they are no tensor, or complex, on all ranks.
        """
        vectors = self._vectors("vectors", vectors)
        columns = vectors if vectors.dim() == 2 else vectors[:, None]
        deal = Deal(self._mesh.displacements, len(columns), self._deterministic)

        def part_of(rows: range) -> Tensor:
            with self._mesh.agreement.together("multiplying features"):
                total = columns.new_zeros(self.num_features, self.num_features + columns.shape[1])
                for block in slices(rows.stop, self._block_size, rows.start):
                    a = self._columns.of_all(self._inputs.x1[block])
                    total += a.T @ torch.cat((a, columns[block]), 1)
            return total

        total = self._mesh.inputs.sum(deal.sum(part_of(rows) for rows in deal.parts))
        gram, projected = total[:, : self.num_features], total[:, self.num_features :]
        return (gram + gram.T) / 2, projected if vectors.dim() == 2 else projected[:, 0]

    @cached_property
    def matrix(self) -> Tensor:
        r"""The smaller of K [N, N] and :math:`A^\top A` [F, F], in float64, on every rank."""
        if not self.is_wide:
            return self.gram
        with plain_arithmetic():
            rows = Assembly(self._mesh, self._settings, self._inputs, self._deterministic).rows()
        return torch.cat(self._mesh.inputs.gather(rows)).double()

    def solve(self, y: Tensor, alpha: float) -> Tensor:
        r"""Solve :math:`(K + \alpha I) v = y`.

        Args:
            y: This rank's part of the right-hand sides, [N] or [N, R], of any real dtype.
            alpha: The ridge, above 0.

        Returns:
            This rank's part of v, in the wider of the kernel's dtype and that of a floating ``y``; by Woodbury's
            identity where N exceeds F.

        Raises:
            RankError: If a rank has another ridge, raised an error, or does not answer.
            ValueError: If a shape does not fit, an entry is not finite, or the ridge is out of range, on all ranks.
            TypeError: If ``y`` is no tensor, or complex, or the ridge no number, on all ranks.
        """
        with self._mesh.agreement.together("reading the ridge"):
            alpha = checks.positive_float("alpha", alpha, 1e-30, 1e30, "The ridge is added to the diagonal.")
        right = self._vectors("y", y, ridge=alpha)
        if self.is_wide:
            matrix, whole = self.matrix, self._whole(right)
            with self._mesh.agreement.together("solving"):
                solution = self._own(ridge.solve(matrix, alpha, whole))
        else:
            gram, projected = self.gram, self._columns.gather(self._columns.project(right))
            with self._mesh.agreement.together("solving"):
                weights = ridge.solve(gram, alpha, projected)
            solution = (right - self._columns.expand(self._columns.cut(weights))) / alpha
        return solution.to(result_dtype(self.dtype, y.dtype))

    def eigsh(self, k: int = 6) -> tuple[Tensor, Tensor]:
        """Compute the largest eigenvalues and their eigenvectors.

        Args:
            k: Number of eigenvalues, at most N and F.

        Returns:
            Eigenvalues, [k], float64, the largest first, on every rank; and this rank's part of orthonormal vectors,
            [N, k].

        Raises:
            RankError: If a rank has another ``k``, raised an error, or does not answer.
            ValueError: If ``k`` is out of range on all ranks.
            TypeError: If it is no integer on all ranks.
        """
        k, matrix = self._number(k), self.matrix
        with self._mesh.agreement.together("decomposing"):
            values, vectors, roots = leading_eigenpairs(matrix, k)
        return values, self._own(vectors) if self.is_wide else self.expand(vectors / roots)

    def eigvalsh(self, k: int = 6) -> Tensor:
        """Compute the largest eigenvalues alone; see :meth:`eigsh`.

        Args:
            k: Number of eigenvalues, at most N and F.

        Returns:
            [k], float64, on every rank.

        Raises:
            RankError: If a rank has another ``k``, raised an error, or does not answer.
            ValueError: If ``k`` is out of range on all ranks.
            TypeError: If it is no integer on all ranks.
        """
        k, matrix = self._number(k), self.matrix
        with self._mesh.agreement.together("decomposing"):
            values: Tensor = torch.linalg.eigvalsh(matrix)
        return values[-k:].flip(0)

    def diagonal(self) -> Tensor:
        """Return this rank's part of the diagonal, [N], float64."""
        return self._columns.diagonal()

    def trace(self) -> float:
        """Return the sum of the diagonal over the inputs of all ranks."""
        return float(self._mesh.inputs.sum(self.diagonal().sum()[None]))

    def effective_rank(self) -> float:
        r"""Return the squared trace over the squared norm, :math:`(\sum \lambda)^2 / \sum \lambda^2`, 1 for rank 1."""
        return float(self.matrix.trace() ** 2 / self.matrix.square().sum())

    @property
    def _block_size(self) -> int:
        """Number of inputs whose features in all columns are held together."""
        return max(1, self._settings.budget(self._inputs.view.device) // (32 * max(1, self.num_features)))

    def _vectors(self, name: str, vectors: Tensor, **facts: object) -> Tensor:
        """Check vectors over the inputs of this rank, and that all ranks of a column have the same."""
        agreement = self._mesh.agreement
        with agreement.together(f"reading {name}"):
            checked = as_columns(name, vectors, len(self._inputs.x1), self._inputs.view.device)
            column = "" if self._mesh.shape[1] == 1 else f" in column {self._mesh.inputs.index}"
            own = {f"{name}{column}": hash_tensors({name: checked})[:16], f"shape of {name}": [*checked.shape[1:]]}
        agreement.exchange({**own, **facts})
        return checked

    def _number(self, k: int) -> int:
        with self._mesh.agreement.together("reading k"):
            k = check_rank(k, self.shape[0], self.num_features)
        self._mesh.agreement.exchange({"k": k})
        return k

    def _whole(self, part: Tensor) -> Tensor:
        """Return the vectors over the inputs of all ranks."""
        return torch.cat(self._mesh.inputs.gather(part))

    def _own(self, whole: Tensor) -> Tensor:
        """Return this rank's part of vectors over the inputs of all ranks."""
        first = sum(self._inputs.rows[: self._mesh.inputs.index])
        return whole[first : first + len(self._inputs.x1)]
