"""Tuning: predict, then measure the configurations of the kernels on a card, and keep the fastest in its table."""

from nntk.bench.tuning.table import plan, run
from nntk.bench.tuning.tasks import wanted

__all__ = ["plan", "run", "wanted"]
