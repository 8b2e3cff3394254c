"""A rank that differs, fails, stalls or dies ends the call on all ranks, with one message that names it."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import inputs
from laws import model_of
from processes import run

import nntk

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("distributed")]


def test_what_differs_between_ranks_is_an_error_before_work():
    """One message for each thing that can differ, the same on all ranks; afterwards the ranks go on."""
    outcomes = [outcome["differences_between_ranks"] for outcome in run("failures", ["differences_between_ranks"], 3)]
    assert outcomes[0] == outcomes[1] == outcomes[2] and isinstance(outcomes[0], dict)
    assert outcomes[0].pop("nothing") == ("no error", "")
    kind, text = outcomes[0].pop("column")
    assert kind == "RankError" and "Rank 2 failed while preparing kernel(x1, x2): TypeError: x must be torch.f" in text
    assert len(outcomes[0]) == 12
    for name, (kind, text) in outcomes[0].items():
        assert kind == "RankError" and text.startswith("Rank 2 has another "), name
        assert f"another {name} than rank 0: " in text, text


def test_an_error_on_one_rank_is_an_error_on_all():
    """The message names the rank; an error that all ranks have is the error of one process."""
    outcomes = [outcome["errors_on_ranks"] for outcome in run("failures", ["errors_on_ranks"], 2)]
    assert outcomes[0] == outcomes[1]
    kind, text = outcomes[0]["one"]
    assert kind == "RankError" and text.startswith(
        "Rank 1 failed while preparing kernel(x1, x2): ValueError: x must be"
    )
    kind, text = outcomes[0]["every"]
    assert kind == "ValueError" and text.startswith("x must be finite")
    assert outcomes[0]["infinite"][0] in ("RankError", "ValueError") and "finite" in outcomes[0]["infinite"][1]
    assert outcomes[0]["after"] == ("no error", "")


def test_a_rank_that_stalls_ends_all_within_the_timeout():
    """The others name it, and refuse to go on without it."""
    outcomes = [outcome["a_stalled_rank"] for outcome in run("failures", ["a_stalled_rank"], 3)]
    for error, seconds, again in outcomes[:2]:
        assert error == ("RankError", "Rank 2 did not answer within 2 seconds, so that all ranks end.")
        assert seconds < 4
        assert again[0] == "RankError" and again[1].endswith("Start all ranks again.")
    assert outcomes[2][0][0] == "RankError"


def test_a_rank_that_is_killed_ends_all():
    """Its connections are closed, so that nobody waits."""
    outcomes = run("failures", ["a_killed_rank"], 4)
    assert outcomes[1] == {}
    for rank in (0, 2, 3):
        assert outcomes[rank]["a_killed_rank"] == ("RankError", "Rank 1 ended, so that all ranks end.")


def finished_tiles(path):
    """Return the numbers of the tiles that are in a journal."""
    journals = [json.loads(file.read_text())["tiles"] for file in path.parent.glob("k.npy.progress*")]
    return {index for tiles in journals for index, value in enumerate(tiles) if value is not None}


def test_twenty_killed_ranks_lose_no_finished_tile(tmp_path):
    """Whatever rank is killed at whatever tile, the next run goes on with any number of ranks, to the same bits."""
    path, choice, finished = tmp_path / "k.npy", random.Random(0), set()
    for _ in range(20):
        size = choice.choice((2, 3, 4))
        victim = choice.randrange(size)
        options = {"victim": victim, "number": choice.randrange(3), "after": choice.random() < 0.5}
        outcomes = run("failures", ["writing"], size, path=path, **options)
        assert outcomes[victim] == {}
        for outcome in (outcome["writing"] for rank, outcome in enumerate(outcomes) if rank != victim):
            written, error = outcome
            assert not finished & set(written) and error[0] == (victim,) and f"Rank {victim} ended" in error[1]
        before, finished = finished, finished_tiles(path)
        assert before <= finished
    assert 0 < len(finished) < 210
    outcomes = run("failures", ["writing"], 3, path=path, victim=None, number=0, after=False)
    written = [index for outcome in outcomes for index in outcome["writing"][0]]
    assert sorted([*written, *finished]) == list(range(210))
    kernel = nntk.NonlocalNTK(model_of(torch.float32), samples=16)
    whole = nntk.write_kernel(tmp_path / "whole.npy", kernel, inputs(60, 3), tile=3)
    assert np.array_equal(np.load(path), whole)
    assert {file.name for file in tmp_path.iterdir()} == {
        "k.npy", "k.npy.progress", "whole.npy", "whole.npy.progress"
    }  # fmt: skip
