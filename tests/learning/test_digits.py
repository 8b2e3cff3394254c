"""What the nonlocal kernel is for: classifying held-out digits with networks that autograd cannot see into."""

import pytest
import torch

from nntk.bench.suites import Setting
from nntk.bench.suites.digits import classify


@pytest.mark.parametrize(("network", "least"), [("sign", 0.95), ("relu", 0.97)])
def test_held_out_digits(network, least):
    """Three shuffles, 1000 for training, M = 2048; the autograd NTK of the sign network is far behind."""
    setting = Setting(torch.device("cpu"), 0)
    for seed in range(3):
        row = classify(network, seed, setting)
        print(f"{network}, seed {seed}: NNTK {row['nonlocal_accuracy']:.4f}, NTK {row['local_accuracy']:.4f}")
        assert row["nonlocal_accuracy"] >= least
        assert row["local_accuracy"] < 0.9 if network == "sign" else row["local_accuracy"] >= 0.97
