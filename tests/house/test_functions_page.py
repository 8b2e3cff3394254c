"""The page of the functions that have rules is up to date."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_functions_is_up_to_date():
    """``python docs/list_functions.py`` would change nothing; in a process of its own, without rules of other tests."""
    command = [sys.executable, str(ROOT / "docs/list_functions.py"), "--check"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    assert subprocess.run(command, env=environment, check=False).returncode == 0


def test_the_page_lists_many_functions():
    """The page has rows of every kind."""
    rows = re.findall(
        r"^\| `\w+` \| ([a-z ]+) \| (?:yes|no) \|$", (ROOT / "docs/functions.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 300
    assert {*rows} == {"rule", "composed", "query", "in place", "random", "copies"}
