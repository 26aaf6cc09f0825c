"""Reads an exported model, for use instead of a network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from retina_jax.config.values import from_json
from retina_jax.data.deep import PixelScale
from retina_jax.errors import UserError
from retina_jax.prediction.ahead import in_threads
from retina_jax.prediction.load import CARD, PROGRAMS, Detector
from retina_jax.prediction.network import Detect
from retina_jax.training.workdir import Classes
from retina_jax.types import Batch, Detections

_PACKAGES = {"onnx": "onnxruntime"}
"""The package that a format needs in addition to this package's dependencies."""
_REQUIRED = ("batch_size", "classes", "config", "files", "pixel_scale", "run", "step")


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported detector, used instead of a `Network`; `from_export` reads one.

    The score threshold, NMS and batch size are built in. It runs on one device.
    """

    config: ml_collections.ConfigDict
    """The config of the run, with the exported buckets as ``data.buckets``."""
    classes: Classes
    pixel_scale: PixelScale | None
    """The 16-bit or float values that training mapped to 0 and 255; None: it had no such images."""
    source: str
    """Where it comes from, for messages."""
    loader: Detector

    def check(self, threshold: float | None, nms: str | None, class_agnostic: bool | None) -> None:
        """Raises `UserError` for values that contradict the built-in ones; None: as built in."""
        own = self.config.eval
        if threshold is not None and threshold < own.score_threshold:
            raise UserError(
                f"--threshold={threshold:g} is below {own.score_threshold:g}, which is built into "
                f"{self.source}; export the run again with "
                f"--config.eval.score_threshold={threshold:g}"
            )
        for value, built_in, flag in (
            (nms, own.nms, f"--nms={nms}"),
            (class_agnostic, own.class_agnostic, "--class-agnostic"),
        ):
            if value not in (None, built_in):
                raise UserError(
                    f"{flag} differs from the NMS that is built into {self.source}; use "
                    "--workdir=RUN instead"
                )

    def make_detect(self, config: ml_collections.ConfigDict) -> Detect:
        """Detection with ``config``: the exported config, possibly with other fields of ``eval``.

        Raises `UserError` as `check` does.
        """
        asked = config.eval
        self.check(asked.score_threshold, asked.nms, asked.class_agnostic)
        running = threading.Lock()  # two threads would load and compile the same program twice

        def run(batch: Batch) -> dict[str, np.ndarray]:
            with running:
                self._load(batch.images.shape[1:3])
                return self.loader.detect(batch.images, batch.sizes)

        def detect(batches: Iterable[Batch]) -> Iterator[tuple[int, Detections]]:
            for batch, found in in_threads(run, batches, 1):
                for i in np.flatnonzero(batch.example_mask):
                    kept = found["scores"][i] > asked.score_threshold
                    y, x = batch.original_sizes[i] / batch.sizes[i]
                    yield (
                        int(batch.index[i]),
                        Detections(
                            boxes=found["boxes"][i][kept].astype(np.float64) * [x, y, x, y],
                            scores=found["scores"][i][kept],
                            labels=found["labels"][i][kept],
                        ),
                    )

        return detect

    def _load(self, bucket: tuple[int, int]) -> None:
        try:
            self.loader.program(bucket)
        except Exception as error:  # whatever JAX, ONNX Runtime and the disk make of it
            first = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{self.loader.folder / self.loader.buckets[bucket]['file']} cannot be loaded "
                f"({type(error).__name__}: {first[:200]}); export the run again"
            ) from error

    def digest(self) -> str:
        """Identifies the files: 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for file in self.loader.buckets.values():
            digest.update(file["sha256"].encode())
        return digest.hexdigest()


def from_export(path: str | Path, flag: str = "--export") -> Artefact:
    """The detector that ``retina-jax export`` wrote.

    An exported model is code, not data: load it only if you trust its origin. A notice on stderr
    says so. The ``load.py`` next to it is not executed.

    Args:
      path: the folder of the export (all its buckets), or the file of one bucket.
      flag: names ``path`` in messages.

    Raises `UserError` if ``path`` is not a complete export or a required package is missing.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise UserError(f"{flag}={path}: no such file or folder; set it to the --out of an export")
    if not (folder / CARD).is_file():
        raise UserError(
            f"{flag}={path} is not a complete export: {folder} has no {CARD}; set it to the --out "
            "of an export"
        )
    card = _read(folder / CARD)
    if path.is_file() and path.name not in [file["file"] for file in card["files"]]:
        listed = ", ".join(file["file"] for file in card["files"])
        raise UserError(
            f"{flag}={path} is not one of the models in {folder}; set it to one of: {listed}"
        )
    needs = _PACKAGES.get(card["format"])
    if needs and importlib.util.find_spec(needs) is None:
        raise UserError(
            f"{flag}={path} needs {needs}; install it with: pip install 'retina_jax[onnx]'"
        )
    loader = Detector(folder)
    if path.is_file():
        loader.buckets = {b: f for b, f in loader.buckets.items() if f["file"] == path.name}
    for file in loader.buckets.values():
        if not (folder / file["file"]).is_file():
            raise UserError(f"{flag}={path} lacks {file['file']}; restore it, or export again")
    config = from_json(card["config"]).unlock()
    config.data.buckets = tuple(loader.buckets)
    if card["batch_size"]:
        config.eval.batch_size = card["batch_size"]
    scale = card["pixel_scale"]
    return Artefact(
        config=config.lock(),
        classes=Classes(
            tuple(one["name"] for one in card["classes"]),
            tuple(one["category_id"] for one in card["classes"]),
        ),
        pixel_scale=None if scale is None else (float(scale[0]), float(scale[1])),
        source=f"step {card['step']} of {card['run']}, exported to {path}",
        loader=loader,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
        if card["format"] not in PROGRAMS:
            raise ValueError(f"format {card['format']!r}")
        return {**card, **{name: card[name] for name in _REQUIRED}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not describe an export ({type(error).__name__}: {error}); export again"
        ) from None
