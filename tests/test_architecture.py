"""The house's rules that a parser can check: imports go one way, nothing happens at import, nothing heavy is imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import u2seg

PACKAGE = Path(u2seg.__file__).parent
# Room -> the rooms that it may import; modules at the package's top are rooms of their own name.
BASE = {"version", "label_space", "images", "stages", "registry", "id_maps", "kmeans", "config"}
MAY_IMPORT = {
    "features": {"checkpoints"},
    "masks": {"features"},
    "clusters": {"features", "masks"},
    "semantics": {"features", "masks", "clusters"},
    "panoptic": {"masks", "clusters", "semantics"},
    "data": {"panoptic"},
    "modeling": {"data"},
    "evaluation": {"data", "panoptic"},
    "visualization": {"panoptic"},
    "engine": {"data", "modeling", "evaluation", "checkpoints", "visualization", "inference", "panoptic", "pipeline"},
}
TOP = {"_registration", "checkpoints", "inference", "pipeline", "chain", "chain_report", "luss", "__init__"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "u2seg" else {node.module}
            )
    return {name.split(".")[1] for name in names if name.startswith("u2seg.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    room = room_of(path)
    if room in TOP:
        return
    imported = imported_rooms(ast.parse(path.read_text())) - {room}
    allowed = {"version", "registry", "label_space", "stages", "id_maps"} if room in BASE else BASE | MAY_IMPORT[room]
    assert imported <= allowed, f"{room} must not import {sorted(imported - allowed)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_only_defines(path):
    """At a module's top stand imports, definitions, constants, and calls whose purpose is registration."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node.value)
            assert "register" in call or "setdefault" in call, f"work at import: {call}"
        if isinstance(node, (ast.For, ast.While, ast.With, ast.Assert)):
            assert "register" in ast.unparse(node), f"work at import in line {node.lineno}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)


def test_importing_the_package_is_cheap_and_silent():
    done = run_python(
        "import sys, time; start = time.perf_counter(); import u2seg; elapsed = time.perf_counter() - start\n"
        "assert elapsed < 1, elapsed\n"
        "assert not {'torch', 'timm', 'faiss', 'pyarrow', 'matplotlib'} & set(sys.modules)"
    )
    assert done.stdout == done.stderr == ""


def test_our_names_are_registered_whichever_import_comes_first():
    check = (
        "from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY\n"
        "assert 'DropLossCascadeROIHeads' in ROI_HEADS_REGISTRY"
    )
    run_python(f"import u2seg\n{check}")
    run_python(f"import detectron2.modeling\nimport u2seg\n{check}")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_public_ones():
    with pytest.raises(AttributeError, match="add_u2seg_config"):
        _ = u2seg.add_config
