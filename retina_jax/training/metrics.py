"""Training metrics: means between log steps, ``metrics.jsonl``, TensorBoard events."""

from __future__ import annotations

import collections
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from PIL import Image

from retina_jax import parallel
from retina_jax.errors import NonFiniteLossError
from retina_jax.files import is_address, mirror, write_text
from retina_jax.ops.anchors import LEVELS

_BY_LEVEL = ("loss_classification", "loss_box", "foreground_anchors")
"""Names of the first rows of ``by_level``, in the metrics of a step."""
_OF_A_LEVEL = tuple(f"_P{level}" for level in LEVELS)
_NAMES = (
    "loss", "loss_classification", "loss_box", "foreground_anchors", "gradient_norm",
    "learning_rate",
)  # fmt: skip
"""Names of a step's metrics, for an interval without steps."""
_RECENT = 100  # number of previous steps with which a loss is compared
_SPIKE = 5.0  # a loss of more than this times their median is reported


def by_name(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """A step's metrics (`make_train_step`) as numbers; each value by level gets its own name."""
    values = {name: float(value) for name, value in metrics.items() if name != "by_level"}
    if "by_level" in metrics:
        # `objective.extra_terms` are sorted by name
        extra = sorted(n for n in values if n.startswith("loss_") and n not in _BY_LEVEL)
        for names, row in zip((*_BY_LEVEL, *extra), metrics["by_level"], strict=True):
            values |= {f"{names}_P{n}": float(v) for n, v in zip(LEVELS, row, strict=True)}
    return values


def weight_norm(params: Any) -> float:
    """The L2 norm of all weights, from the first device's copy of the replicated ``params``.

    A separate program that runs only at log steps; inside the step, it would read all weights every
    time.
    """
    return float(_norm(jax.tree.map(lambda x: x.addressable_shards[0].data, params)))


_norm = jax.jit(optax.tree.norm)


class Meter:
    """Metrics of the steps since the last log; fetched from the device only when read."""

    def __init__(
        self,
        ids_at: Callable[[int], list[int]],
        max_skipped: int = 0,
        interval: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ):
        """Starts without steps, or with those of an interval that a checkpoint left open.

        Args:
          ids_at: the image ids of a step, of all processes.
          max_skipped: number of steps skipped in a row that ends training; 0: no limit.
          interval: `open_interval` of the checkpoint from which the run resumes.
          batch_size: images per step, of all processes; None: no counts per image.
        """
        interval = interval or {}
        self._ids_at = ids_at
        self._max_skipped = max_skipped
        self._batch_size = batch_size
        self._skipped_in_a_row = int(interval.get("skipped_in_a_row", 0))
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._read: list[dict[str, float]] = list(interval.get("read", []))
        self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self.spikes: list[str] = []
        """A line for each step whose loss was far above the recent ones."""
        self.not_finite: list[int] = []
        """Settled steps whose loss or gradient was not finite; the reader clears it."""
        self._images = 0
        self._cut_away = int(interval.get("cut_away", 0))
        self._seconds = self._input_wait = 0.0
        self._compiling = (0, 0.0)
        self._names: tuple[str, ...] = ()
        self.skipped = int(interval.get("skipped", 0))

    def open_interval(self) -> dict[str, Any]:
        """The settled steps that the next `read` will average; JSON, stored in the checkpoint.

        A run that was killed thus logs the same averages as an undisturbed one.
        """
        cut_away = sum(int(n) for n in parallel.group.exchange("boxes", str(self._cut_away)))
        if not parallel.is_main():
            cut_away = 0
        self._cut_away = cut_away
        return {
            "read": list(self._read),
            "cut_away": cut_away,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

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
        """Waits for all added steps.

        Raises `NonFiniteLossError` at the first non-finite one or, if they are skipped, at the
        last of ``max_skipped`` in a row.
        """
        for step, metrics in self._pending:
            values = by_name(parallel.fetch(metrics))
            finite = values.pop("finite")
            self._names = tuple(values)
            self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
            limit = self._max_skipped
            if not finite:
                self.not_finite.append(step)
            if finite:
                self._read.append(values)
                self._look_for_spike(step, values["loss"])
            elif on_nonfinite == "skip" and not 0 < limit <= self._skipped_in_a_row:
                self.skipped += 1
            else:
                ids = ", ".join(map(str, self._ids_at(step)))
                kept = (
                    "no checkpoint has been written yet"
                    if last_checkpoint is None
                    else f"the last good checkpoint is at step {last_checkpoint}"
                )
                fix = "set --config.train.on_nonfinite=skip"
                if on_nonfinite == "skip":
                    kept = f"{limit} steps in a row were skipped (config.train.max_skipped); {kept}"
                    fix = "raise --config.train.max_skipped"
                self._pending.clear()
                raise NonFiniteLossError(
                    f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']} "
                    f"on images {ids}; {kept}; lower --config.optimizer.learning_rate, set "
                    f"--config.optimizer.clip_norm=10, or {fix}, and run the command again",
                    step=step,
                )
        self._pending.clear()

    def _look_for_spike(self, step: int, loss: float) -> None:
        if len(self._recent) >= _RECENT // 5:
            usual = float(np.median(self._recent))
            if loss > _SPIKE * usual:
                ids = ", ".join(map(str, self._ids_at(step)))
                self.spikes.append(
                    f"step {step}: loss {loss:.3g} is {loss / usual:.0f} times the median of the "
                    f"last {len(self._recent)} steps, on images {ids}"
                )
        self._recent.append(loss)

    def read(self) -> dict[str, float | None]:
        """Means since the last call, images/s and the share of time spent waiting for input."""
        if not self._names:  # no step was taken since the start
            self._names = tuple(self._read[0]) if self._read else _NAMES
        values: dict[str, float | None] = dict.fromkeys(self._names)  # None: all steps skipped
        for name in self._names if self._read else ():
            # steps that an earlier version left in a checkpoint lack some
            known = [m[name] for m in self._read if name in m]
            values[name] = float(np.mean(known)) if known else None
        if self._batch_size and values.get("foreground_anchors") is not None:
            values["foreground_per_image"] = values["foreground_anchors"] / self._batch_size
        if not self._images:
            self._images, self._seconds = self._compiling
        seconds = self._seconds or 1.0  # 0: all steps were left out
        values["images_per_second"] = self._images / seconds
        values["input_wait"] = self._input_wait / seconds
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
    Of several processes, one writes. In an object store, both are uploaded whole after each entry.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._events = None
        self._files = None
        if not parallel.is_main():
            return
        before = workdir / "metrics.jsonl"
        kept = []
        if before.exists():
            for line in before.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except ValueError:
                    break  # the last line, truncated when the run was killed
        self._files = mirror(workdir)
        self._is_copied = is_address(workdir)
        self._path = self._files.local / before.name
        write_text(self._path, "".join(line + "\n" for line in kept))
        events = self._files.local / "tensorboard"
        self._events = _tensorboard().SummaryWriter(str(events), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        if self._events is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        levels = [name for name in values if name.endswith(_OF_A_LEVEL)]
        self.scalars("levels", step, {name: values[name] for name in levels})
        self.scalars("train", step, {n: v for n, v in values.items() if n not in levels})
        if self._is_copied:
            self._events.flush()
        self._files.upload()

    def scalars(self, group: str, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is None or self._events is None:
                continue
            self._events.add_scalar(f"{group}/{name}", value, step)

    def pictures(self, step: int, pictures: Iterable[tuple[int, Image.Image]]) -> None:
        """Writes drawn detections to TensorBoard, by image id; as JPEG, to save space."""
        for image_id, picture in pictures if self._events is not None else ():
            encoded = io.BytesIO()
            picture.save(encoded, format="JPEG", quality=85)
            Summary = _tensorboard().proto.summary_pb2.Summary
            image = Summary.Image(
                encoded_image_string=encoded.getvalue(),
                width=picture.width,
                height=picture.height,
                colorspace=3,
            )
            value = Summary.Value(tag=f"detections/image_{image_id}", image=image)
            self._events.file_writer.add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._files.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else this one follows from it
                raise


def _tensorboard():
    """tensorboardX, without the second that it takes to import torch where that exists."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None
    try:
        import tensorboardX
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX
