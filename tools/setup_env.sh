#!/usr/bin/env bash
# Builds the virtual environment that the Makefile's commands use: tools/setup_env.sh VENV_DIRECTORY
#
# Only PyPI is needed, no compiler. Running it again repairs or updates what is there. Python 3.10 or newer.
# TORCH_BACKEND=cpu tools/setup_env.sh VENV_DIRECTORY takes PyTorch without CUDA, which needs PyTorch's index beside PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${1:?usage: tools/setup_env.sh VENV_DIRECTORY}
PYTHON=${PYTHON:-python3}
TORCH_BACKEND=${TORCH_BACKEND:-} # cpu, cu126, ...: which build of PyTorch, from PyTorch's own index; empty: the one on PyPI

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "u2seg needs Python 3.10 or newer, $("$PYTHON" --version) came; name another with PYTHON=/path/to/python make setup" >&2
    exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PY=$VENV/bin/python

# uv installs the stack in a third of pip's time; pip does as well where uv has no wheel for the machine.
if "$PY" -m pip install --quiet --disable-pip-version-check uv; then
    install() { "$PY" -m uv pip install --quiet --python "$PY" "$@"; }
elif [ -n "$TORCH_BACKEND" ]; then
    echo "TORCH_BACKEND=$TORCH_BACKEND is an option of uv, and uv could not be installed" >&2
    exit 1
else
    install() { "$PY" -m pip install --quiet --disable-pip-version-check "$@"; }
fi
if [ -n "$TORCH_BACKEND" ]; then
    # The lock names what PyPI's build needs, CUDA 13 above all; another build brings its own.
    LOCK=$(mktemp)
    trap 'rm -f "$LOCK"' EXIT
    grep -vE '^(cuda|nvidia|triton)' requirements.lock >"$LOCK"
    install --torch-backend "$TORCH_BACKEND" -r "$LOCK"
else
    install -r requirements.lock
fi

# Detectron2's Python files, as published in sal-detectron2 0.7.2 (docs/installation.md). The wheel is tagged for CPython 3.10
# because of one optional compiled file; its Python part runs on every version. A Detectron2 that is already there is kept.
if ! "$PY" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("detectron2") is None)'; then
    SITE=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    "$PY" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --upgrade --target "$SITE" sal-detectron2==0.7.2
fi
# An oracle for the tests; its own pins would pull numpy back below 2.
install --no-deps panopticapi-lite==0.2.0
install --no-deps --no-build-isolation -e .
# Neither uv nor a Python with PYTHONDONTWRITEBYTECODE leaves bytecode, and without it `import u2seg` takes twice as long. A few files of
# libraries are for other Pythons and do not compile.
"$PY" -m compileall -q -j 0 "$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" >/dev/null 2>&1 || true
