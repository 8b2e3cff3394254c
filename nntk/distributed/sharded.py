"""A kernel that a group of ranks computes together: its public methods."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nntk.distributed.assembly import Assembly
from nntk.distributed.columns import FeatureColumns
from nntk.distributed.estimate import shared_estimate
from nntk.distributed.inputs import SharedInputs, agree_on_inputs
from nntk.distributed.operator import ShardedOperator
from nntk.distributed.ranks.mesh import Mesh, Traffic
from nntk.estimators.errors.estimate import Estimate, check_limits
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks
from nntk.models.isolation.evaluation import plain_arithmetic


class Sharded:
    r"""A nonlocal kernel that a group of ranks computes together; the numbers are those of one process.

    Displacements are functions of the seed and their number m, so that no rank sends any. The ranks stand in a mesh of
    R rows and S columns. Row r evaluates its part of the M displacements, and column s holds its part of the inputs:

    * over displacements (R x 1), every rank holds all inputs, and one all-reduce in float64 adds the kernels of the
      parts,

      .. math::
          K = \sum_r c_r(x)\, c_r(x')\, K_r(x, x'),

      where the factors :math:`c_r` bring the weights of a part to the scale of all; they follow from the largest log
      weights and the sums of each part;
    * over inputs (1 x S), every rank evaluates all displacements at its inputs, and computes its rows of the kernel.
      Features of other inputs pass by along a ring, for a symmetric kernel half way round;
    * on a mesh (R x S), both.

    For plugin and unbiased the nonlocal gradients are summed over the ranks with the same inputs, N C numbers for each
    parameter, and each of these ranks multiplies a part of the parameters.

    Every method is a collective call: all ranks call it, with the same arguments but for their inputs. Before the work
    the ranks compare checksums of model, settings, seed, versions and data. A rank that differs, raises an error, ends,
    or does not answer within the timeout ends the call on all ranks with a :class:`RankError` that names it.

    Args:
        kernel: The kernel, equal on all ranks.
        over: ``"displacements"``, ``"inputs"``, or the pair (R, S) of a mesh of all ranks, of which rank r S + s has
            row r and column s.
        group: Process group of the ranks, with gloo for a model on a CPU and NCCL for one on a GPU; None for all ranks.
        timeout: Longest time, in seconds, that the others wait for a rank; None for the timeout of the group. A rank is
            taken for lost when it is half of this time behind rank 0.
        deterministic: Cut the displacements into fixed chunks, and add these in a fixed order. The kernel then has the
            same bits for any number of ranks on machines of one kind with the same number of threads. Chunks are
            exchanged one by one, which is slower where the network is. Needs ``over="displacements"``.

    Attributes:
        kernel: The kernel.
        over: As given.
        deterministic: As given.
        mesh: The mesh of ranks.

    Raises:
        ValueError: If ``over`` fits no mesh of the ranks, a backend does not fit the device, or settings exclude each
            other.
        TypeError: If an argument has the wrong type.
        RuntimeError: If torch.distributed was not initialised.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # torchrun: no arguments
        >>> kernel = NonlocalNTK(torch.nn.Linear(3, 1), samples=64)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(Sharded(kernel)(x), kernel(x), rtol=1e-5)
        True
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        kernel: NonlocalNTK,
        over: str | tuple[int, int] = "displacements",
        *,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        deterministic: bool = False,
    ) -> None:
        if not isinstance(kernel, NonlocalNTK):
            raise TypeError(f"kernel must be a NonlocalNTK, got {type(kernel).__name__}.")
        self.kernel, self.over = kernel, over
        self.deterministic = checks.boolean("deterministic", deterministic)
        self.mesh = Mesh(over, group, timeout, kernel._view().device)
        if deterministic and self.mesh.shape[1] > 1:
            raise ValueError(
                f"over must be 'displacements' where deterministic=True, got {over!r}: over inputs, the number of a "
                "rank's inputs decides how its products are rounded."
            )
        if kernel.draws is not None and self.mesh.shape[1] > 1:
            raise ValueError(
                f"over must be 'displacements' for a stochastic model, got {over!r}: the noise of an input may depend "
                "on its place in the batch."
            )

    @property
    def sample_range(self) -> range:
        """Numbers m of the displacements that this rank evaluates; with ``deterministic=True`` they are dealt."""
        return self.mesh.displacements.part(self.kernel.samples)

    @property
    def traffic(self) -> Traffic:
        """Time and bytes of the exchange of numbers so far."""
        return self.mesh.traffic

    @plain_arithmetic()
    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return the kernel between inputs; over inputs, the rows that belong to this rank.

        Args:
            x1: Inputs of the rows on this rank, [N1, ...]; the same on all ranks of a column. A rank may have none.
            x2: Inputs of the columns on this rank, [N2, ...]; None for the symmetric kernel of ``x1``.

        Returns:
            [N1, N2] in the model's dtype, with the axes of the outputs; N2 counts the inputs of all ranks along the
            axis of inputs, in the order of ranks. Over displacements every rank gets the same kernel. Without ``x2``
            the whole kernel is exactly symmetric.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: For the reasons of a call of the kernel, on all ranks.
            TypeError: For the reasons of a call of the kernel, on all ranks.
            MemoryError: If the rows do not fit in the memory that is free, on all ranks.
        """
        return self._assembly("kernel(x1, x2)", x1, x2).rows()

    @plain_arithmetic()
    def diagonal(self, x: Tensor) -> Tensor:
        """Return the kernel of each input with itself; over inputs, of those of this rank.

        Args:
            x: Inputs of this rank, [N, ...].

        Returns:
            [N], with the axes of the outputs.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: For the reasons of a call of the kernel, on all ranks.
            TypeError: For the reasons of a call of the kernel, on all ranks.
        """
        return self._assembly("diagonal(x)", x).diagonal()

    @plain_arithmetic()
    def features(self, x: Tensor) -> Tensor:
        r"""Return this rank's features A_r, with :math:`K(x, x') = \sum_r A_r(x) A_r(x')^\top` over the rows r.

        Args:
            x: Inputs of this rank, [N, ...].

        Returns:
            [N, F_r] in the model's dtype. Those of all ranks of a column, joined along the second axis, are the
            features of :meth:`nntk.NonlocalNTK.features`, unless ``deterministic=True``, which deals them in chunks.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: If the kernel has no features, or for the reasons of a call, on all ranks.
            TypeError: For the reasons of a call of the kernel, on all ranks.
        """
        self.kernel.check_features()
        inputs = self._inputs("features(x)", x)
        columns = FeatureColumns(self.mesh, self.kernel.settings, inputs, self.deterministic)
        return columns.own().to(inputs.view.dtype)

    def operator(self, x: Tensor) -> ShardedOperator:
        """Return the kernel as a linear operator, whose products exchange vectors alone.

        Args:
            x: Inputs of this rank, [N, ...]. The model must not change while the operator is in use.

        Returns:
            The operator.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: If the kernel has no features, or for the reasons of a call, on all ranks.
            TypeError: For the reasons of a call of the kernel, on all ranks.
        """
        self.kernel.check_features()
        inputs = self._inputs("operator(x)", x)
        return ShardedOperator(self.mesh, self.kernel.settings, inputs, self._inputs, self.deterministic)

    @plain_arithmetic()
    def estimate(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        *,
        rtol: float = 0.05,
        max_samples: int = 2**17,
        progress: Callable[[Estimate], None] | None = None,
    ) -> Estimate:
        """Return the kernel of the inputs of all ranks with error bars, as :meth:`nntk.NonlocalNTK.estimate` does.

        Every rank computes other groups of displacements, and all ranks get all groups: the estimate is that of one
        process. The inputs of all ranks are gathered, and every rank holds the whole kernel, for plugin and unbiased
        also the differences. As many ranks are of use as there are groups between two error checks, 16 at first.

        Args:
            x1: Inputs of the rows on this rank, [N1, ...].
            x2: Inputs of the columns on this rank; None for the symmetric kernel.
            rtol: Standard error of the matrix over its Frobenius norm that ends the estimate.
            max_samples: Number of displacements that ends the estimate with ``converged=False``.
            progress: Receives the estimate so far, on every rank.

        Returns:
            The estimate, on every rank.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: For the reasons of the estimate of one process, on all ranks.
            TypeError: For the reasons of the estimate of one process, on all ranks.
        """
        rtol, max_samples = check_limits(rtol, max_samples, self.kernel.samples)
        inputs = self._inputs("estimate(x1, x2)", x1, x2, rtol=rtol, max_samples=max_samples)
        return shared_estimate(self.mesh, self.kernel.settings, inputs, rtol, max_samples, progress)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks of this row of the mesh, joined in their order: a whole kernel or vector.

        Args:
            rows: What a method returned for the inputs of this rank, [N, ...].

        Returns:
            The same for the inputs of all ranks.
        """
        return torch.cat(self.mesh.inputs.gather(rows))

    def _assembly(self, call: str, x1: Tensor, x2: Tensor | None = None) -> Assembly:
        return Assembly(self.mesh, self.kernel.settings, self._inputs(call, x1, x2), self.deterministic)

    @plain_arithmetic()
    def _inputs(self, call: str, x1: Tensor, x2: Tensor | None = None, **facts: Any) -> SharedInputs:
        facts["deterministic"] = self.deterministic
        return agree_on_inputs(self.mesh, self.kernel, call, x1, x2, **facts)
