"""Suite that several processes measure together: kernels over ranks, beside one process."""

from nntk.bench.suites.distributed.scaling import DISTRIBUTED

__all__ = ["DISTRIBUTED"]
