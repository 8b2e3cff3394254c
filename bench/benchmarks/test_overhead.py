"""Time of the host for a call of each op, at arguments so small that the host dominates."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from nntk.bench.suites.op_arguments import small_calls

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONE_FORM = dict(small_calls(DEVICE))


@pytest.mark.benchmark(group="host overhead")
@pytest.mark.parametrize("name", ONE_FORM)
def test_overhead(name: str, benchmark: BenchmarkFixture) -> None:
    """Submit one call, without waiting until a GPU has finished it."""
    benchmark(getattr(torch.ops.nntk, name), *ONE_FORM[name])
