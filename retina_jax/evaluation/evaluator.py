"""Score a network on a split: detect every image once, score, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.data.data_set import Split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.evaluation import coco
from retina_jax.evaluation.detect import make_detect
from retina_jax.evaluation.pictures import draw_split
from retina_jax.files import write_json
from retina_jax.models.retinanet import RetinaNet


class Evaluator:
    """Scores a model on one split; compiled once per bucket, whatever the number of calls."""

    def __init__(
        self,
        model: RetinaNet,
        split: Split,
        config: ml_collections.ConfigDict,
        devices: parallel.Devices,
    ):
        self._config = config
        self._split = split
        self._detect = make_detect(model, config, devices)
        self._loader = EvaluationLoader(
            split, config, parallel.process_index(), parallel.process_count()
        )
        self._truth: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Images of the split."""
        return len(self._split)

    def detect(
        self, variables: Any, advance: Callable[[], bool] = lambda: True
    ) -> list[dict[str, Any]] | None:
        """COCO results of every image of the split, by row; None when ``advance()`` said to stop.

        ``advance`` is called after each image. Raises `RuntimeError` where the stream was not of
        every row exactly once.
        """
        split, by_row = self._split, {}
        seen = 0
        stream = self._detect(variables, self._loader)
        for row, detections in stream:
            image_id = int(split.image_ids[row])
            by_row[row] = coco.results(image_id, detections, split.category_ids)
            seen += 1
            if not advance():
                stream.close()
                return None
        if seen != len(split) or not np.array_equal(sorted(by_row), np.arange(len(split))):
            raise RuntimeError(
                f"evaluation saw {len(by_row)} of {len(split)} rows of {split.label()}, "
                f"in {seen} images"
            )
        return [result for row in range(len(split)) for result in by_row[row]]

    def run(
        self,
        variables: Any,
        step: int,
        folder: Path,
        advance: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any] | None:
        """Detects, scores and writes ``detections.json``, ``metrics.json`` and a picture.

        Returns the metrics; None when ``advance()`` said to stop, and then nothing is written.
        """
        detections = self.detect(variables, advance)
        if detections is None:
            return None
        if self._truth is None:
            self._truth = coco.ground_truth(self._split)
        metrics = coco.score(self._truth, detections, self._config.eval.engine)
        metrics |= {"step": step, "images": len(self._split), "detections": len(detections)}
        write_json(folder / "detections.json", detections)
        if self._config.eval.pictures:
            draw_split(
                self._split, detections, folder / "detections.png", self._config.eval.pictures
            )
        write_json(folder / "metrics.json", metrics)  # last: it says that the rest is there
        return metrics
