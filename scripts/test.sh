#!/usr/bin/env bash
# Run the linter, the import rules, the shape checks and the test suite, in the quickstart's .venv.
# usage: scripts/test.sh [--torchvision | --newest] [pytest arguments, such as -m 'not slow']
# --torchvision also installs torch and torchvision, to compare with torchvision itself as well as
# with its stored outputs (CI does this); without them those tests are skipped.
# -m faults runs the tests that kill, stop and break real processes; -m 'not faults' all others.
# --newest runs the fast tests on the newest installed Python (and hence the newest jax), in
# .venv-newest; if there is no Python newer than 3.11, it prints that and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
if [ "${1:-}" = --newest ]; then
    shift
    python=$(newest_python) || { echo "no Python newer than 3.11 found; nothing to run"; exit 0; }
    prepare_environment "[test]" .venv-newest "$python"
    .venv-newest/bin/python -c 'import sys, jax; print("the fast tests on Python",
        sys.version.split()[0], "and jax", jax.__version__)'
    exec .venv-newest/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m 'not slow and not faults' "$@"
fi
extras=test
if [ "${1:-}" = --torchvision ]; then
    extras=test,torchvision
    shift
fi
prepare_environment "[$extras]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
