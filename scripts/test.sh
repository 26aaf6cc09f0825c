#!/usr/bin/env bash
# Lint, import floors, type shapes and the whole test suite, in the .venv that quickstart uses.
# usage: scripts/test.sh [--torchvision] [pytest arguments, such as -m 'not slow']
# --torchvision installs torch and torchvision too, to compare with torchvision itself beside what
# it once gave (CI does); without them those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
extras=test
if [ "${1:-}" = --torchvision ]; then
    extras=test,torchvision
    shift
fi
prepare_environment "[$extras]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
exec .venv/bin/python -m pytest "$@"
