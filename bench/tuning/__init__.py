"""Tuning: predict, then measure the configurations of the kernels on a card, keep the fastest in a table."""

from nntk.bench.tuning.table import plan, run
from nntk.bench.tuning.tasks import select_tasks

__all__ = ["plan", "run", "select_tasks"]
