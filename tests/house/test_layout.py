"""The layout of the house: imports run one way, without a circle; files and folders stay small."""

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[2]

# A folder or a single file imports only from those before it. CONTRIBUTING.md draws the same order.
ORDER = (
    "nntk.kernels",
    "nntk.kernels.philox",
    "nntk.kernels.mlp",
    "nntk.kernels.fixed_weights",
    "nntk.kernels.attention",
    "nntk.kernels.assemble",
    "nntk.kernels.perturb",
    "nntk.kernels.local_ntk",
    "nntk.activations",
    "nntk.attention",
    "nntk.files.hashing",
    "nntk.models",
    "nntk.propagation",
    "nntk.differences",
    "nntk.settings",
    "nntk.displacements",
    "nntk.estimators",
    "nntk.linalg",
    "nntk.local",
    "nntk.displaced_model",
    "nntk.kernel",
    "nntk.files",
    "nntk.learning",
    "nntk.distributed",
    "nntk",
    "nntk.bench",
    "nntk.bench.results",
    "nntk.bench.measure",
    "nntk.bench.report",
    "nntk.bench.machine_code",
    "nntk.bench.suites",
    "nntk.bench.studies",
    "nntk.bench.benchmarks",
    "nntk.bench.tuning",
    "nntk.bench.profiling",
    "nntk.bench.card",
    "nntk.bench.cli",
    "nntk.bench.__main__",
)


def modules() -> dict[str, Path]:
    """Return the file of every module, by its name."""
    files = [path for top in ("nntk", "kernels", "bench") for path in (ROOT / top).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return {
        name if name.split(".")[0] == "nntk" else f"nntk.{name}": path for name, path in zip(names, files, strict=True)
    }


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, also inside of functions and for types alone."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            result |= {name if name in MODULES else node.module for name in names}
    return result & MODULES.keys()


GRAPH = networkx.DiGraph((name, target) for name, path in MODULES.items() for target in imports(path))


def test_no_import_runs_in_a_circle():
    """Not even one that is hidden inside of a function or behind TYPE_CHECKING."""
    assert list(networkx.simple_cycles(GRAPH)) == []


def test_imports_run_one_way_between_folders():
    """Each folder imports only from the folders before it in ``ORDER``."""

    def place(module: str) -> int:
        """Return the position of a module's folder: its longest prefix in ``ORDER``."""
        parts = module.split(".")
        return next(ORDER.index(name) for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in ORDER)

    backwards = [f"{name} imports {target}" for name, target in GRAPH.edges if place(target) > place(name)]
    assert backwards == []


def test_files_of_the_thin_layer_are_short():
    """No file of nntk/ has more than 350 lines."""
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "nntk").rglob("*.py")}
    thin = {path: length for path, length in lengths.items() if not {"kernels", "bench"} & set(path.parts[-4:-1])}
    assert {str(path): length for path, length in thin.items() if length > 350} == {}


@pytest.mark.parametrize("top", ["nntk", "kernels", "bench", "tests"])
def test_folders_are_small(top):
    """No folder has more than 12 files."""
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir() and path.name != "__pycache__")]
    counts = {str(folder): sum(path.is_file() for path in folder.iterdir()) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > 12} == {}
