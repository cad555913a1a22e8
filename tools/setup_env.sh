#!/usr/bin/env bash
# Builds the virtual environment that the Makefile's commands use: tools/setup_env.sh VENV_DIRECTORY
#
# Only PyPI is needed, no compiler. Running it again repairs or updates what is there. Python 3.10 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${1:?usage: tools/setup_env.sh VENV_DIRECTORY}
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "u2seg needs Python 3.10 or newer, $("$PYTHON" --version) came; name another with PYTHON=/path/to/python make setup" >&2
    exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PY=$VENV/bin/python

# uv installs the stack in a third of pip's time; pip does as well where uv has no wheel for the machine.
if "$PY" -m pip install --quiet --disable-pip-version-check uv; then
    install() { "$PY" -m uv pip install --quiet --python "$PY" "$@"; }
else
    install() { "$PY" -m pip install --quiet --disable-pip-version-check "$@"; }
fi
install -r requirements.lock

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
