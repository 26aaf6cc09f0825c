#!/usr/bin/env bash
# Install into .venv, generate the embedded data set, train on it, evaluate, and draw detections.
# usage: scripts/quickstart.sh [--config.path.to.field=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment ""
exec .venv/bin/retina-jax train --config=experiments/shapes.py:gfl --workdir=runs/quickstart "$@"
