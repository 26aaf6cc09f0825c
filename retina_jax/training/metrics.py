"""Training metrics: means between log steps, ``metrics.jsonl``, TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from retina_jax import parallel
from retina_jax.errors import NonFiniteLossError
from retina_jax.files import write_text


class Meter:
    """Metrics of the steps since the last log; fetched from the device only when read."""

    def __init__(self, image_ids: np.ndarray, max_skipped: int = 0):
        """Starts without steps.

        Args:
          image_ids: the image id of each row of the training split.
          max_skipped: number of steps skipped in a row that ends training; 0: no limit.
        """
        self._image_ids = image_ids
        self._max_skipped, self._skipped_in_a_row = max_skipped, 0
        self._pending: list[tuple[int, np.ndarray, dict[str, jax.Array]]] = []
        self._read: list[dict[str, float]] = []
        self._images = self._cut_away = 0
        self._seconds = self._input_wait = 0.0
        self._compiling = (0, 0.0)
        self._names: tuple[str, ...] = ()
        self.skipped = 0

    def add(
        self, step: int, rows: np.ndarray, cut_away: int, metrics: dict[str, jax.Array]
    ) -> None:
        """Adds a dispatched step on ``rows``; augmentation removed ``cut_away`` of its boxes."""
        self._pending.append((step, rows, metrics))
        self._cut_away += cut_away
        if len(self._pending) > 2:
            # keep two steps in flight: the device stays busy, and a stop request acts soon
            jax.block_until_ready(self._pending[-3][2])

    def time_compilation(self, images: int, seconds: float) -> None:
        """Times the first step; used only if it is the only step of a log entry."""
        self._compiling = (images, seconds)

    def time(self, images: int, seconds: float, input_wait: float) -> None:
        self._images += images
        self._seconds += seconds
        self._input_wait += input_wait

    def settle(self, on_nonfinite: str, last_checkpoint: int | None) -> None:
        """Waits for all added steps.

        Raises `NonFiniteLossError` at the first non-finite one or, if they are skipped, at the
        last of ``max_skipped`` in a row.
        """
        for step, rows, metrics in self._pending:
            values = {name: float(value) for name, value in parallel.fetch(metrics).items()}
            finite = values.pop("finite")
            self._names = tuple(values)
            self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
            limit = self._max_skipped
            if finite:
                self._read.append(values)
            elif on_nonfinite == "skip" and not 0 < limit <= self._skipped_in_a_row:
                self.skipped += 1
            else:
                ids = ", ".join(str(i) for i in self._image_ids[rows])
                kept = (
                    "no checkpoint has been written yet"
                    if last_checkpoint is None
                    else f"the last good checkpoint is at step {last_checkpoint}"
                )
                fix = "set --config.train.on_nonfinite=skip"
                if on_nonfinite == "skip":
                    kept = f"{limit} steps in a row were skipped (config.train.max_skipped); {kept}"
                    fix = "raise --config.train.max_skipped"
                raise NonFiniteLossError(
                    f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']} "
                    f"on images {ids}; {kept}; lower --config.optimizer.learning_rate, set "
                    f"--config.optimizer.clip_norm=10, or {fix}, and run the command again"
                )
        self._pending.clear()

    def read(self) -> dict[str, float | None]:
        """Means since the last call, images/s and the share of time spent waiting for input."""
        values: dict[str, float | None] = dict.fromkeys(self._names)  # None: all steps skipped
        if self._read:
            values = {n: float(np.mean([m[n] for m in self._read])) for n in self._names}
        if not self._images:
            self._images, self._seconds = self._compiling
        values["images_per_second"] = self._images / self._seconds
        values["input_wait"] = self._input_wait / self._seconds
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if self._cut_away:
            values["boxes_cut_away"] = self._cut_away
        self._read, self._images, self._seconds, self._input_wait = [], 0, 0.0, 0.0
        self._cut_away = 0
        return values


class MetricsLog:
    """Writes one JSON object per log step to ``metrics.jsonl``, and the same to TensorBoard.

    When opened at ``first_step``, drops entries that a killed run logged after its last checkpoint.
    """

    def __init__(self, workdir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        kept = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except ValueError:
                    break  # the last line, truncated when the run was killed
        write_text(self._path, "".join(line + "\n" for line in kept))
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.scalars("train", step, values)

    def scalars(self, group: str, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is None:
                continue
            self._events.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._events.close()
