# Sourced by the other scripts: creates a virtual environment and installs the package, once.
# usage: . scripts/environment.sh; prepare_environment EXTRA [FOLDER [PYTHON]]
#        EXTRA is empty or "[test]"; FOLDER defaults to .venv, PYTHON to the first supported one

is_fit() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        if is_fit "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 to 3.14 found; install one, or set its path: PYTHON=/path/to/python $0" >&2
    return 2
}

newest_python() { # the newest on this machine, including pyenv's
    local candidate version
    for version in 3.14 3.13 3.12; do
        for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            if is_fit "$candidate"; then
                echo "$candidate"
                return
            fi
        done
    done
    return 1
}

prepare_environment() {
    local extra=$1 folder=${2:-.venv} python=${3:-} required
    local mark="$folder/installed$extra"
    # check pip too: a failed attempt leaves a python without pip
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        [ -n "$python" ] || python=$(find_python) || exit 2
        echo "creating $folder with $("$python" --version)"
        "$python" -m venv "$folder" || {
            echo "error: $python cannot create a virtual environment; install its venv package" >&2
            exit 2
        }
    fi
    required=$(cat setup.cfg pyproject.toml | cksum)
    if [ "$(cat "$mark" 2>/dev/null)" != "$required" ]; then
        echo "installing retina_jax$extra into $folder (a few minutes the first time)"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra" || {
            echo "error: pip could not install retina_jax$extra; see its message above" >&2
            exit 2
        }
        echo "$required" >"$mark"
    fi
}
