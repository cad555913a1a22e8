"""Set-up as docs/installation.md describes it: what the script asks uv for, and that the package is found wherever a script lies."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands for a virtual environment's Python: notes its arguments and the requirements that it is given, and installs nothing.
PYTHON = """#!/bin/sh
echo "$@" >> calls.txt
while [ $# -gt 0 ]; do [ "$1" = -r ] && cp "$2" asked.txt; shift; done
true
"""


@pytest.fixture
def set_up(tmp_path):
    """Returns a function that runs the set-up script with a backend and returns uv's call, and the requirements it was given."""
    root = tmp_path / "clone"
    (root / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup_env.sh", root / "tools")
    shutil.copy(ROOT / "requirements.lock", root)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(backend: str) -> tuple[str, str]:
        environment = {**os.environ, "TORCH_BACKEND": backend, "PYTHON": sys.executable}
        subprocess.run([root / "tools/setup_env.sh", tmp_path / "venv"], env=environment, check=True, timeout=60)
        calls = (root / "calls.txt").read_text().splitlines()
        return next(call for call in calls if " -r " in call), (root / "asked.txt").read_text()

    return run


def test_a_backend_of_pytorch_is_handed_to_uv_without_the_lock_of_cuda(set_up):
    call, requirements = set_up("cpu")
    assert call.startswith("-m uv pip install") and "--torch-backend cpu" in call
    assert "torch==" in requirements and "nvidia" not in requirements and "triton" not in requirements
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    dropped = set(lines) - set(requirements.splitlines())
    assert {line.split("-")[0].split("=")[0] for line in dropped} == {"cuda", "nvidia", "triton"}


def test_without_a_backend_the_whole_lock_is_installed(set_up):
    call, requirements = set_up("")
    assert "--torch-backend" not in call and requirements == (ROOT / "requirements.lock").read_text()


def test_make_hands_the_backend_on(tmp_path):
    command = ["make", "--dry-run", "-C", str(ROOT), "setup", f"VENV={tmp_path}", "TORCH_BACKEND=cpu"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"TORCH_BACKEND=cpu tools/setup_env.sh {tmp_path}" in printed


def test_a_clone_called_u2seg_does_not_hide_the_package_from_scripts_beside_it(tmp_path):
    clone, site = tmp_path / "u2seg", tmp_path / "site"
    for name in ("setup.py", "pyproject.toml", "README.md", "configs", "projects"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        clone.mkdir(exist_ok=True)
        copy(ROOT / name, clone / name)
    build = "from setuptools import build_meta; build_meta.build_editable('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next((clone / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(site)
    script = tmp_path / "script.py"
    script.write_text(
        f"import site; site.addsitedir({str(site)!r})\n"
        "from importlib.util import find_spec; print(find_spec('u2seg').origin)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # Without the site directory of this Python, where a u2seg is installed already.
    done = subprocess.run(
        [sys.executable, "-S", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(clone / "projects" / "U2Seg" / "u2seg" / "__init__.py")


def test_a_missing_detectron2_is_one_message_with_the_lines_of_the_documentation():
    code = "import sys; sys.modules['detectron2'] = None; import u2seg"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "No module named" not in done.stderr
    assert "u2seg needs Detectron2" in done.stderr
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("    pip install")]
    page = (ROOT / "docs" / "installation.md").read_text().replace("\\\n    ", "")
    assert len(lines) == 2 and all(line in page for line in lines)
