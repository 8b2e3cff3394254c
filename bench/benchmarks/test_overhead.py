"""What a call of each op costs the host: on arguments so small that nothing else does."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from nntk.bench.suites.op_arguments import small_calls

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONE_FORM = dict(small_calls(DEVICE))


@pytest.mark.benchmark(group="host overhead")
@pytest.mark.parametrize("name", ONE_FORM)
def test_overhead(name: str, benchmark: BenchmarkFixture) -> None:
    """One call, submitted: on a GPU nothing waits for its end."""
    benchmark(getattr(torch.ops.nntk, name), *ONE_FORM[name])
