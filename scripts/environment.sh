# Sourced by the scripts beside it: makes .venv and installs what they need, once.
# usage: . scripts/environment.sh; prepare_environment EXTRA   (EXTRA empty or "[test]")

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 to 3.14 found; install one, or name it: PYTHON=/path/to/python $0" >&2
    return 2
}

prepare_environment() {
    local extra=$1 python wanted
    local mark=".venv/installed$extra"
    # pip too: a failed attempt leaves a python without it
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 2
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv || {
            echo "error: $python cannot make a virtual environment; install its venv package" >&2
            exit 2
        }
    fi
    wanted=$(cat setup.cfg pyproject.toml | cksum)
    if [ "$(cat "$mark" 2>/dev/null)" != "$wanted" ]; then
        echo "installing retina_jax$extra into .venv (a few minutes the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra" || {
            echo "error: pip could not install retina_jax$extra; its message is above" >&2
            exit 2
        }
        echo "$wanted" >"$mark"
    fi
}
