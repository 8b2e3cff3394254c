"""The purpose of the nonlocal kernel: classification of digits by networks whose hidden layers have no gradient."""

import pytest
import torch

from nntk.bench.suites import Setting
from nntk.bench.suites.digits import classify


@pytest.mark.contract
@pytest.mark.parametrize(("network", "seed", "minimum"), [("sign", 0, 0.95), ("relu", 1, 0.97)])
def test_held_out_digits(network, seed, minimum):
    """The accuracy holds for a shuffle of the data, with 1000 training inputs and M = 2048 displacements.

    The autograd NTK of the sign network is far behind, and that of the relu network is as good.
    """
    row = classify(network, seed, Setting(torch.device("cpu"), 0))
    print(f"{network}, seed {seed}: NNTK {row['nonlocal_accuracy']:.4f}, NTK {row['local_accuracy']:.4f}")
    assert row["nonlocal_accuracy"] >= minimum
    assert row["local_accuracy"] < 0.9 if network == "sign" else row["local_accuracy"] >= 0.97
