"""The request and the result of a prediction."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

DRAWN_FROM = 0.4
"""Smallest score of a drawn box, unless the user chooses a threshold."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to predict, as the flags of the command say."""

    workdir: str
    """Folder of a run; "": the exported model ``export`` is used."""
    inputs: Sequence[str]
    """Files, folders or patterns."""
    out: Path
    checkpoint: str = "best"
    threshold: float | None = None
    """None: that of the run for the files, and at least `DRAWN_FROM` for drawings."""
    classes: Sequence[str] = ()
    """Names of the classes to keep; (): all."""
    format: str = "coco"
    batch_size: int | None = None
    """None: ``eval.batch_size`` of the run, or less for fewer images."""
    images: bool = True
    """Whether to write images and videos with boxes."""
    tile: int | None = None
    overlap: float = 0.2
    nms: str | None = None
    """None: ``eval.nms`` of the run."""
    class_agnostic: bool | None = None
    """None: ``eval.class_agnostic`` of the run."""
    export: str = ""


@dataclasses.dataclass
class Prediction:
    """The result of `predict`."""

    path: Path | None = None
    """The file or folder with the detections; None if a signal came before the end."""
    pictures: int = 0
    """Number of finished images and frames, including those of earlier attempts."""
    detections: int = 0
    drawn: int = 0
    """Number of detections that score above `drawn_from`."""
    drawn_from: float = 0.0
    left_out: list[str] = dataclasses.field(default_factory=list)
    """A line for each file that could not be read."""
    signal: signal.Signals | None = None
