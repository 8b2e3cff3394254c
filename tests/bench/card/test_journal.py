"""The journal of a card: nothing finished is lost, and what does not belong together is refused."""

import fcntl
import json
import os

import pytest
from conftest import RUN_FACTS

from nntk.bench.card import journal
from nntk.bench.card.journal import Journal
from nntk.bench.results.schema import DRY_RUN, ResultsError

UNIT = {"step": "roofs", "unit": "roofs"}


def begun(folder, is_dry_run=False, **changes):
    """A journal with one finished unit of one row, closed."""
    record = Journal.start(folder, {**RUN_FACTS, **changes}, is_dry_run)
    record.append("begin", **UNIT, limit_s=1.0)
    record.append("row", **UNIT, case="copy", per_second=2.0, attempt=1)
    record.append("end", **UNIT, status="finished", attempt=1)
    return record


def test_rows_are_on_disk_when_append_returns(tmp_path):
    """Another process reads each of them at once."""
    record = Journal.start(tmp_path, RUN_FACTS, False)
    for number in range(3):
        record.append("row", **UNIT, case=str(number), attempt=1)
        assert [row["case"] for row in journal.read(tmp_path).rows()] == [str(n) for n in range(number + 1)]


@pytest.mark.parametrize("length", [1, 20, 60])
def test_a_line_that_a_crash_cut_is_dropped(tmp_path, length):
    """Every line before it stays, byte for byte, and the next attempt continues behind them."""
    begun(tmp_path).close()
    path = journal.path_in(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:length])
    assert journal.read(tmp_path).is_finished(("roofs", "roofs"))
    Journal.start(tmp_path, RUN_FACTS, False).close()
    assert path.read_bytes().startswith(whole) and journal.read(tmp_path).attempts == 2


def test_a_row_that_was_measured_again_replaces_the_earlier_one(tmp_path):
    """The file keeps both; readers see the later."""
    record = begun(tmp_path)
    record.append("row", **UNIT, case="copy", per_second=3.0, attempt=2)
    (row,) = journal.read(tmp_path).rows("roofs")
    assert row["per_second"] == 3.0


def test_a_prediction_stays_what_it_was(tmp_path):
    """It was made before the measurement; a later one is not."""
    record = begun(tmp_path)
    for value in (1.5, 9.0):
        record.append("prediction", **UNIT, case="copy", predicted=value, because="it is so")
    (prediction,) = journal.read(tmp_path).predictions.values()
    assert prediction["predicted"] == 1.5


def test_attempts_that_never_ended_are_counted(tmp_path):
    """A begin without its end: something stopped the process, or the machine."""
    record, key = begun(tmp_path), ("roofs", "roofs")
    assert journal.read(tmp_path).broken_attempts(key) == 0
    for number in (1, 2):
        record.append("begin", **UNIT, limit_s=1.0)
        assert journal.read(tmp_path).broken_attempts(key) == number


@pytest.mark.parametrize(
    ("changes", "is_dry_run", "message"),
    [
        ({"commit": "def"}, False, "commit was 'abc', is 'def'"),
        ({"device": {**RUN_FACTS["device"], "name": "other"}}, False, "device.name was 'abacus', is 'other'"),
        ({}, True, "holds measurements of a card, and this is a dry run: choose another --output"),
    ],
)
def test_figures_that_do_not_belong_together_are_refused(tmp_path, changes, is_dry_run, message):
    """The message says what differs, and the file stays as it is."""
    begun(tmp_path).close()
    before = journal.path_in(tmp_path).read_bytes()
    with pytest.raises(ResultsError, match=message):
        Journal.start(tmp_path, {**RUN_FACTS, **changes}, is_dry_run)
    assert journal.path_in(tmp_path).read_bytes() == before


def test_a_second_process_is_refused_as_long_as_the_first_lives(tmp_path):
    """Also while only the worker lives, which has the lock of its parent."""
    record = begun(tmp_path)
    inherited = os.dup(record.lock)
    record.close()
    with pytest.raises(ResultsError, match="still running"):
        Journal.start(tmp_path, RUN_FACTS, False)
    fcntl.flock(inherited, fcntl.LOCK_UN)
    os.close(inherited)
    Journal.start(tmp_path, RUN_FACTS, False).close()


def test_every_line_of_a_dry_run_is_marked(tmp_path):
    """No line can be taken for a measurement."""
    begun(tmp_path, is_dry_run=True).close()
    lines = [json.loads(line) for line in journal.path_in(tmp_path).read_text().splitlines()]
    assert all(line[DRY_RUN] is True for line in lines) and journal.read(tmp_path).is_dry_run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: must be the start of a run"),
        ('{"kind": "row", "step": "a", "unit": "b", "case": "c"}\n', "line 1: must be the start of a run"),
        ("[]\n", "line 1: kind must be one of start, prediction"),
        ('{"kind": "row", "step": 1}\n', "line 1: step: must be text, got 1"),
        ('{"kind": "start", "schema": 9}\n', "schema: got 9, must be 1"),
        ('{"kind": "start", "schema": 1}\n', "line 1: device is missing"),
        ("{\n", "line 1: not JSON"),
    ],
)
def test_a_file_that_is_no_journal_is_named(tmp_path, text, message):
    """The file, the line, what is allowed."""
    journal.path_in(tmp_path).write_text(text)
    with pytest.raises(ResultsError, match=message):
        journal.read(tmp_path)
