"""Kernels over ranks: what a group computes is what one process computes."""

from functools import cache

import pytest
from processes import run

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("distributed")]
LAWS = (
    "kernels_are_those_of_one_process",
    "whole_kernels_are_exactly_symmetric",
    "ranks_may_have_nothing_to_do",
    "chunks_and_general_models_change_nothing",
    "features_and_operators_are_those_of_one_process",
    "groups_of_some_ranks_come_before_those_of_all",
    "kernels_share_their_process_groups",
    "estimates_are_those_of_one_process",
    "ridge_regression_is_that_of_one_process",
    "deterministic_results",
)


@cache
def outcomes(size):
    """Run all laws on one group of ranks."""
    return run("laws", LAWS, size)


@pytest.mark.parametrize("law", LAWS[:-1])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_law(law, size):
    """The law holds on every rank."""
    assert [outcome.get(law, "not run") for outcome in outcomes(size)] == [None] * size


@pytest.mark.parametrize("size", [2, 3, 4])
def test_files_are_those_of_one_process(size, tmp_path):
    """Ranks of every mesh write one file."""
    law = "files_are_those_of_one_process"
    assert [outcome.get(law) for outcome in run("laws", [law], size, folder=tmp_path)] == [None] * size
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".npy", ".progress")]


def test_deterministic_kernels_have_the_same_bits_for_any_number_of_ranks():
    """One process included."""
    (expected,) = (outcome["deterministic_results"] for outcome in run("laws", LAWS[-1:], 1))
    assert len(expected) == 31 and isinstance(expected, list)
    for size in (2, 3, 4):
        assert all(outcome["deterministic_results"] == expected for outcome in outcomes(size)), size
