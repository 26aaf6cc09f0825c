"""Training metrics: means between log steps, ``metrics.jsonl``, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from retina_jax import parallel
from retina_jax.errors import NonFiniteLossError
from retina_jax.files import write_text


class Meter:
    """Metrics of the steps since the last log; fetched from the device only when read."""

    def __init__(self, ids_at: Callable[[int], list[int]], interval: Mapping[str, Any] = {}):
        """Args:
        ids_at: the image ids of a step, of all processes.
        interval: `open_interval` of the checkpoint from which the run goes on.
        """
        self._ids_at = ids_at
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._read: list[dict[str, float]] = list(interval.get("read", []))
        self._images = 0
        self._cut_away = int(interval.get("cut_away", 0))
        self._seconds = self._input_wait = 0.0
        self._compiling = (0, 0.0)
        self._names: tuple[str, ...] = ()
        self.skipped = int(interval.get("skipped", 0))

    def open_interval(self) -> dict[str, Any]:
        """What the next `read` will average, of settled steps; JSON, for the checkpoint.

        So a run that was killed logs the same averages as one that was not.
        """
        cut_away = sum(int(n) for n in parallel.group.exchange("boxes", str(self._cut_away)))
        if not parallel.is_main():
            cut_away = 0
        self._cut_away = cut_away
        return {"read": list(self._read), "cut_away": cut_away, "skipped": self.skipped}

    def add(self, step: int, cut_away: int, metrics: dict[str, jax.Array]) -> None:
        """Adds a dispatched step; augmentation removed ``cut_away`` of this process's boxes."""
        self._pending.append((step, metrics))
        self._cut_away += cut_away
        if len(self._pending) > 2:
            # keep two steps in flight: the device stays busy, and a stop request acts soon
            jax.block_until_ready(self._pending[-3][1])

    def time_compilation(self, images: int, seconds: float) -> None:
        """Times the first step; used only if it is the only step of a log entry."""
        self._compiling = (images, seconds)

    def time(self, images: int, seconds: float, input_wait: float) -> None:
        self._images += images
        self._seconds += seconds
        self._input_wait += input_wait

    def settle(self, on_nonfinite: str, last_checkpoint: int | None) -> None:
        """Waits for all added steps; raises `NonFiniteLossError` at the first non-finite one."""
        for step, metrics in self._pending:
            values = {name: float(value) for name, value in parallel.fetch(metrics).items()}
            finite = values.pop("finite")
            self._names = tuple(values)
            if finite:
                self._read.append(values)
            elif on_nonfinite == "skip":
                self.skipped += 1
            else:
                ids = ", ".join(map(str, self._ids_at(step)))
                kept = (
                    "no checkpoint has been written yet"
                    if last_checkpoint is None
                    else f"the last good checkpoint is at step {last_checkpoint}"
                )
                raise NonFiniteLossError(
                    f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']} "
                    f"on images {ids}; {kept}; lower --config.optimizer.learning_rate, set "
                    "--config.optimizer.clip_norm=10, or set --config.train.on_nonfinite=skip, and "
                    "run the command again"
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
        cut_away = sum(int(n) for n in parallel.group.exchange("boxes", str(self._cut_away)))
        if cut_away:
            values["boxes_cut_away"] = cut_away
        self._read, self._images, self._seconds, self._input_wait = [], 0, 0.0, 0.0
        self._cut_away = 0
        return values


class MetricsLog:
    """Writes one JSON object per log step to ``metrics.jsonl``, and the same to TensorBoard.

    When opened at ``first_step``, drops entries that a killed run logged after its last checkpoint.
    Of several processes, one writes.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._events = None
        if not parallel.is_main():
            return
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
        if self._events is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.scalars("train", step, values)

    def scalars(self, group: str, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is None or self._events is None:
                continue
            self._events.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
