"""Every launcher against Triton's own binder and compiler, which the interpreter leaves out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.machine_code
def test_launches_bind_and_compile():
    """Every launcher's arguments, ones and None and tuples among them, pass for sm_90."""
    script = Path(__file__).parents[1] / "launch_on_absent_card.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "assemble.rank_update",
        "attention.project",
        "attention.scores",
        "attention.statistics",
        "attention.weights",
        "fixed_weights.reduce_weights",
        "fixed_weights.write_weights",
        "local_ntk.layer_pair",
        "perturb.assign_bases",
        "perturb.form",
        "perturb.layer_step",
        "perturb.project",
        "perturb.small_mlp",
        "perturb.sort_by_base",
        "perturb.stacked_step",
        "perturb.stationary_step",
        "perturb.unperturbed_layer",
        "philox.sum_squares",
        "philox.write_noise",
        "philox.write_rank_one",
        "philox.write_vectors",
        "philox.write_words",
    ]
