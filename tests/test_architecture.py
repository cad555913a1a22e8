"""The rules of the layout that a parser can check: imports go one way, and nothing happens at import but registration."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import u2seg

PACKAGE = Path(u2seg.__file__).parent
# In the order of imports: a package may import those before it, never one behind it.
LAYERS = (
    "version",
    "utils",
    "config",
    "structures",
    "checkpoint",
    "features",
    "data",
    "modeling",
    "pseudo_labels",
    "solver",
    "evaluation",
    "visualization",
    "predictor",
    "web_app",
    "engine",
    "export",
    "luss",
    "__init__",
    "cli",
)
MAX_MODULES = 12


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(source: str) -> set[str]:
    """Returns the dotted names that a module imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_layers(source: str) -> set[str]:
    """Returns the layers that a module imports anywhere; ``from u2seg import name`` counts as ``__init__``."""
    parts = [name.split(".") for name in imported_names(source) if name.split(".")[0] == "u2seg"]
    return {part[1] if len(part) > 1 and part[1] in LAYERS else "__init__" for part in parts}


def back_edges(path: Path, source: str) -> set[str]:
    own = LAYERS.index(layer_of(path))
    return {layer for layer in imported_layers(source) if LAYERS.index(layer) > own}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    assert not back_edges(path, path.read_text())


def test_a_back_edge_is_found_wherever_it_stands():
    path = PACKAGE / "utils" / "files.py"
    assert back_edges(path, "def f():\n    from u2seg.engine import trainer\n") == {"engine"}
    assert back_edges(path, "import u2seg.data.build\n") == {"data"}
    assert back_edges(path, "from u2seg import setup_cfg\n") == {"__init__"}
    assert back_edges(path, "from u2seg.config import setup_cfg\n") == {"config"}
    assert back_edges(path, "from u2seg.utils import files\nfrom u2seg.version import __version__\n") == set()


def subpackage_imports(directory: Path) -> dict[str, set[str]]:
    """Returns which other subpackages of a package the modules of each of its subpackages import."""
    prefix = ".".join((PACKAGE.name, *directory.relative_to(PACKAGE).parts, ""))
    graph = {child.name: set() for child in directory.iterdir() if (child / "__init__.py").is_file()}
    for name, found in graph.items():
        for path in (directory / name).rglob("*.py"):
            below = {
                module.removeprefix(prefix) for module in imported_names(path.read_text()) if module.startswith(prefix)
            }
            found |= {module.split(".")[0] for module in below} & set(graph) - {name}
    return graph


def test_subpackages_of_a_package_import_in_one_direction():
    for directory in {path.parent for path in modules()} - {PACKAGE}:
        TopologicalSorter(subpackage_imports(directory)).prepare()  # raises a CycleError, which names the cycle
    assert subpackage_imports(PACKAGE / "data")["datasets"] == {"formats"}


def test_every_module_belongs_to_a_layer():
    assert {layer_of(path) for path in modules()} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_only_defines(path):
    """At a module's top stand imports, definitions, constants, and calls whose purpose is registration."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert "register" in ast.unparse(node), f"work at import: {ast.unparse(node)}"
        if isinstance(node, (ast.For, ast.While, ast.With, ast.Assert)):
            assert "register" in ast.unparse(node), f"work at import in line {node.lineno}"


def test_no_directory_is_crowded_and_no_two_modules_share_a_name():
    names: dict[str, list[Path]] = {}
    for path in modules():
        if path.stem != "__init__":
            names.setdefault(path.stem, []).append(path.relative_to(PACKAGE))
    # A command is a module of its own and is called like what it starts; a benchmark like its dataset.
    shared = {name: paths for name, paths in names.items() if len({p for p in paths if p.parts[0] != "cli"}) > 1}
    # Detectron2 itself has a build.py in each package that builds something.
    assert set(shared) <= {"build", "config"}, shared
    for directory in {path.parent for path in modules()} - {PACKAGE / "cli"}:
        held = [path for path in directory.glob("*.py") if path.stem != "__init__"]
        assert len(held) <= MAX_MODULES, f"{directory.relative_to(PACKAGE)} holds {len(held)} modules"


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)


def test_importing_the_package_is_silent_and_loads_nothing_heavy():
    done = run_python(
        "import sys, u2seg\nassert not {'timm', 'faiss', 'pyarrow', 'matplotlib.pyplot', 'pandas'} & set(sys.modules)"
    )
    assert done.stdout == done.stderr == ""


def test_our_names_are_registered_whichever_import_comes_first():
    check = (
        "from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY\n"
        "assert 'DropLossCascadeROIHeads' in ROI_HEADS_REGISTRY and 'PASSPretrainer' in META_ARCH_REGISTRY"
    )
    run_python(f"import u2seg\n{check}")
    run_python(f"import detectron2.modeling\nimport u2seg\n{check}")


def test_the_public_names_exist():
    assert all(hasattr(u2seg, name) for name in u2seg.__all__)
