"""The folder of a run: its config, and the wish to stop that reaches it from outside."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

import ml_collections

from retina_jax.config import default_config, leaves
from retina_jax.errors import UserError
from retina_jax.evaluation.report import write_json

CONFIG = "config.json"


def write_config(folder: Path, config: ml_collections.ConfigDict) -> None:
    """Writes ``config.json``; to be done once the run is known to fit its checkpoints."""
    write_json(folder / CONFIG, json.loads(json.dumps(config.to_dict())))


def read_config(folder: Path) -> ml_collections.ConfigDict:
    """The config of a run; `UserError` without one.

    A field that has come since has its default, one that is gone is left out.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}; give the --workdir of a run")
    config = default_config()
    known = leaves(config)
    with config.unlocked():
        for name, value in leaves(json.loads(path.read_text())).items():
            if name in known:
                config.update_from_flattened_dict({name: _tuples(value)})
    return config.lock()


def _tuples(value: object) -> object:
    """JSON has lists where a config has tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def open_workdir(workdir: str, config: ml_collections.ConfigDict) -> tuple[Path, list[str]]:
    """Makes the folder and says which fields differ from those of its last run.

    Raises `UserError` where the folder cannot be written.
    """
    folder = Path(workdir).expanduser().absolute()
    path = folder / CONFIG
    given = json.loads(json.dumps(leaves(config)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = leaves(json.loads(path.read_text())) if path.exists() else given
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written
    except (OSError, ValueError) as error:
        raise UserError(
            f"--workdir={workdir}: {error}; give a folder that can be written"
        ) from None
    changed = [
        f"config.{name}: {before.get(name)} before, {given.get(name)} now"
        for name in sorted(before.keys() | given.keys())
        if before.get(name) != given.get(name)
    ]
    return folder, changed


class StopRequest:
    """True once SIGINT or SIGTERM has come; a second one ends the program as usual."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        self.signal = signal.Signals(number)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """As shells count it: 130 after Ctrl-C, 143 after SIGTERM, 0 without either."""
        return 128 + self.signal if self.signal else 0
