"""What is predicted from machine code: by hand for small cases, and as README.md states it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nntk.bench.resources.measure import Measured, Part
from nntk.kernels.ahead_of_time import Work

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "results" / "resources" / "prediction.json"


@pytest.fixture(scope="module")
def prediction():
    """The module; its kernels need Triton."""
    pytest.importorskip("triton")
    from nntk.bench import prediction

    return prediction


def part(**cycles):
    """A loop, or what is outside of them, that keeps pipes busy for so long."""
    return Part(Work(), {}, {}, {}, 1.0, {"issue": 0.0, "tensor": 0.0, **cycles})


def measured(loop, once):
    """A kernel with one main loop."""
    return Measured(0, 0, 0, 0, 0, 4, False, 1, False, (loop,), once)


def test_a_launch_takes_its_busiest_pipes_one_after_the_other(prediction):
    """Products hide what issues beside them; epilogues do not, and bytes only what is shorter than they."""
    card = prediction.Card(processors=2, products=1, bf16=4.0, bandwidth=1.0)
    assert card.clock == 1.0
    launch = prediction.Launch("", programs=4, turns=10, bytes=0.0)
    kernel = measured(part(issue=3.0, tensor=2.0), part(issue=5.0))
    assert prediction.time_of(launch, kernel, card) == prediction.Time(40.0, 20.0, 10.0, 0.0)
    kernel = measured(part(issue=1.0, tensor=2.0), part(issue=5.0))
    found = prediction.time_of(replace(launch, bytes=80.0), kernel, card)
    assert found == prediction.Time(40.0, 0.0, 10.0, 30.0) and found.total == 80.0
    assert found.shares == "products 50%, memory 38%, once 12%"


def test_what_is_predicted_is_what_is_published(tmp_path, prediction):
    """The command makes the committed rows again, and README.md has their table."""
    made = tmp_path / "prediction.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "nntk.bench", "predict", "--json", str(made)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, now = (json.loads(path.read_text()) for path in (COMMITTED, made))
    assert [row["case"] for row in now["rows"]] == [row["case"] for row in before["rows"]]
    # Another version of the compiler makes other machine code.
    if now["versions"]["triton"] == before["versions"]["triton"]:
        assert now["rows"] == before["rows"] and now["card"] == before["card"]
    assert prediction.markdown(before["rows"]) in (ROOT / "README.md").read_text()
