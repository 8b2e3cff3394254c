"""Kernels from end to end, as a user calls them: a 64-256-256-1 network at 256 digits."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL = data.he_network((64, 256, 256, 1), nn.ReLU, 0, DEVICE)
X = data.load(0, DEVICE).images[:256]
SAMPLES = 256

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": nntk.NonlocalNTK(MODEL, samples=SAMPLES),
    "energy of random signs": nntk.NonlocalNTK(MODEL, samples=SAMPLES, directions="rademacher"),
    "energy, attention on outputs": nntk.NonlocalNTK(MODEL, samples=SAMPLES, weights=nntk.Attention()),
    "unbiased": nntk.NonlocalNTK(MODEL, samples=SAMPLES, estimator="unbiased"),
    "local NTK, structured": lambda x: nntk.local_ntk(MODEL, x),
}


@pytest.mark.benchmark(group="kernels", min_rounds=3, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name: str, benchmark: BenchmarkFixture) -> None:
    """Time the kernel of all inputs, until the device is finished."""

    def compute() -> Tensor:
        kernel = KERNELS[name](X)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)
        return kernel

    kernel = benchmark(compute)
    assert torch.equal(kernel, kernel.T) and kernel.isfinite().all()
