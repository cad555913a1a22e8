#!/usr/bin/env bash
# Runs the test suite on every Python from 3.10 to 3.13 that is installed: tools/test_pythons.sh DIRECTORY
#
# Each version gets a virtual environment of its own, DIRECTORY/3.N, built by tools/setup_env.sh (several gigabytes each), and a log
# beside it. Ends with a table. Exits with 1 if a version fails or if none is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
DIRECTORY=${1:?usage: tools/test_pythons.sh DIRECTORY}
mkdir -p "$DIRECTORY"

find_python() { # find_python 3.N: prints the path of that version, on PATH or among those that uv and pyenv manage
    local managed candidate
    managed=$(command -v uv >/dev/null && uv python find --no-python-downloads "$1" 2>/dev/null)
    for candidate in "python$1" "$managed" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        # pyenv's shims exist for versions that are not active, and then fail: what counts is that it runs.
        if "$candidate" -c "import sys; assert sys.version.startswith('$1.'); print(sys.executable)" 2>/dev/null; then
            return 0
        fi
    done
    return 1
}

rows=() failed=0 found=0
for version in 3.10 3.11 3.12 3.13; do
    if ! python=$(find_python "$version"); then
        rows+=("$(printf '%-8s %-10s %s' "$version" "not found" "-")")
        continue
    fi
    found=$((found + 1))
    log=$DIRECTORY/$version.log
    echo "Python $version ($python): set-up and tests, log in $log"
    if ! PYTHON=$python tools/setup_env.sh "$DIRECTORY/$version" >"$log" 2>&1; then
        rows+=("$(printf '%-8s %-10s %s' "$version" "FAILED" "set-up: $(tail -n 1 "$log")")")
        failed=1
    elif OMP_NUM_THREADS=1 "$DIRECTORY/$version/bin/python" -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder >>"$log" 2>&1; then
        rows+=("$(printf '%-8s %-10s %s' "$version" "passed" "$(tail -n 1 "$log")")")
    else
        rows+=("$(printf '%-8s %-10s %s' "$version" "FAILED" "tests: $(tail -n 1 "$log")")")
        failed=1
    fi
done

printf '\n%-8s %-10s %s\n' Python result details
printf '%s\n' "${rows[@]}"
[ "$found" -gt 0 ] || { echo "no Python from 3.10 to 3.13 was found on PATH, with uv or with pyenv" >&2; exit 1; }
exit "$failed"
