"""The documentation runs: every docstring example, and the examples of every page."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

import nntk

ROOT = Path(__file__).parents[2]
MODULES = [info.name for info in pkgutil.walk_packages(nntk.__path__, "nntk.") if not info.name.endswith("__main__")]


@pytest.mark.parametrize("name", sorted({"nntk", "nntk.kernels", "nntk.bench", *MODULES}))
def test_docstring_examples(name):
    """Doctests of every module."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_package_is_installed():
    """Installed by copying, not in place: setuptools finds each folder of modules, kernels and bench inside nntk."""
    folders = [path.parent for top in ("nntk", "kernels", "bench") for path in (ROOT / top).rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    expected = {name if name.startswith("nntk") else f"nntk.{name}" for name in names}
    assert set(find_packages(str(ROOT), include=["nntk*"])) == expected


def test_the_modules_are_found():
    """The walk above sees all three packages."""
    assert {"nntk.kernel", "nntk.kernels.perturb.reference", "nntk.bench.suites.digits"} <= set(MODULES)


PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"), *ROOT.glob("[!.]*/**/README.md"), *ROOT.glob("kernels/*/*.md")}
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_examples_and_links(path):
    """Python blocks run from top to bottom, and relative links lead somewhere."""
    text = path.read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    exec(compile(code, str(path), "exec"), {"__name__": "readme"})
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}, which is missing"


def test_the_readme_names_what_one_import_brings():
    """Whatever the README calls ``nntk.NAME`` is there after ``import nntk`` alone."""
    names = sorted(set(re.findall(r"\bnntk\.([A-Za-z_]+(?:\.[A-Za-z_]+)*)", (ROOT / "README.md").read_text())))
    lines = ["import nntk", *(f"nntk.{name}" for name in names if name.split(".")[0] != "bench")]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert "distributed.Sharded" in names and not result.stderr


def test_files_that_contributors_are_sent_to_exist():
    """CONTRIBUTING names files and folders by their paths from the root."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:kernels|nntk|bench|docs|results|tests)/[a-z_./]*)`", text)
    assert len(paths) > 40
    for path in paths:
        if path.startswith("docs/_build/"):
            continue  # Written by `make docs`.
        assert (ROOT / path).exists(), f"CONTRIBUTING.md names {path}, which is missing"


def test_every_public_name_is_in_the_reference():
    """The site has an entry for each name of the package, and for each operation with a README."""
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst"))
    entries = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(\))?$", reference, re.MULTILINE))
    folders = [path.parent for path in (ROOT / "kernels").glob("*/__init__.py")]
    operations = {folder.name for folder in folders if (folder / "README.md").exists()}
    assert entries >= {f"nntk.{name}" for name in nntk.__all__} | {f"nntk.kernels.{name}" for name in operations}
