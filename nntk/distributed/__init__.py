"""Kernels over many devices and machines: the questions of one device, answered by a group of ranks.

The engine is ``torch.distributed``, started by ``torchrun``. :class:`Sharded` is a kernel that the ranks compute
together, :class:`KernelRidge` fits data with it, and :func:`write_kernel` writes it to a file by all ranks. A rank that
fails ends the call on all of them with a :class:`RankError`. A :class:`RankPlan` predicts time and memory of ranks that
are not at hand.
"""

from nntk.distributed.matrix_file import write_kernel
from nntk.distributed.operator import ShardedOperator
from nntk.distributed.ranks.agreement import RankError
from nntk.distributed.ranks.mesh import Traffic
from nntk.distributed.ridge import KernelRidge
from nntk.distributed.sharded import Sharded
from nntk.estimators.rank_plan import H100, RankPlan, Rates

__all__ = [
    "H100",
    "KernelRidge",
    "RankError",
    "RankPlan",
    "Rates",
    "Sharded",
    "ShardedOperator",
    "Traffic",
    "write_kernel",
]
