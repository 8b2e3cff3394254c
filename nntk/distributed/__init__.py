"""Kernels over many devices and machines: the questions of one device, answered by a group of ranks.

The engine is ``torch.distributed``, started by ``torchrun``. :class:`Sharded` is a kernel that the ranks compute
together.
"""

from nntk.distributed.operator import ShardedOperator
from nntk.distributed.ranks.agreement import RankError
from nntk.distributed.sharded import Sharded

__all__ = ["RankError", "Sharded", "ShardedOperator"]
