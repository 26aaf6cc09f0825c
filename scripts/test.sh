#!/usr/bin/env bash
# Lint, import floors, type shapes and the whole test suite, in the .venv that quickstart uses.
# usage: scripts/test.sh [pytest arguments, such as -m 'not slow']
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
exec .venv/bin/python -m pytest "$@"
