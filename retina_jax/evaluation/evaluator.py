"""Evaluates a network on a split: detects every image once, computes metrics, writes files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.config.shell import field_flag
from retina_jax.data.data_set import Split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.evaluation import coco
from retina_jax.evaluation.detect import make_detect
from retina_jax.evaluation.pictures import draw_split
from retina_jax.files import write_json
from retina_jax.models.retinanet import RetinaNet


class Evaluator:
    """Evaluates a model on one split; compiles once per bucket, for any number of calls."""

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
        """Number of images in the split."""
        return len(self._split)

    def notices(self) -> list[str]:
        """Warnings where limits of the metrics exclude objects; reads the ground truth."""
        limit, max_detections = self._config.eval.limits[-1], self._config.eval.max_detections
        images, most = coco.beyond_limit(self._ground_truth(), limit)
        lines = []
        if images:
            lines.append(
                f"{images} of {len(self._split)} images have more than {limit} objects of one "
                f"class (at most {most}), but the COCO metrics count only {limit} detections per "
                "class and image, so even a perfect detector scores below 1; set "
                f"{field_flag('eval.limits', (1, 10, most))}"
            )
        if most > max_detections:
            lines.append(
                f"eval.max_detections={max_detections} is smaller than the largest number of "
                f"objects of one class on an image, {most}; set "
                f"--config.eval.max_detections={most}"
            )
        return lines

    def _ground_truth(self) -> dict[str, Any]:
        if self._truth is None:
            self._truth = coco.ground_truth(self._split)
        return self._truth

    def detect(
        self, variables: Any, advance: Callable[[], bool] = lambda: True
    ) -> list[dict[str, Any]] | None:
        """COCO results of every image of the split, by row; None if ``advance()`` returned False.

        ``advance`` is called after each image. Raises `RuntimeError` unless the stream contains
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
        """Evaluates; writes ``detections.json``, ``metrics.json`` and ``detections.png``.

        Returns the metrics. If ``advance()`` returns False, stops and writes nothing; returns None.
        """
        detections = self.detect(variables, advance)
        if detections is None:
            return None
        options = self._config.eval
        metrics = coco.score(self._ground_truth(), detections, options.engine, options.limits)
        metrics |= {"step": step, "images": len(self._split), "detections": len(detections)}
        metrics["limits"] = list(options.limits)
        write_json(folder / "detections.json", detections)
        if self._config.eval.pictures:
            draw_split(
                self._split, detections, folder / "detections.png", self._config.eval.pictures
            )
        write_json(folder / "metrics.json", metrics)  # last: marks the evaluation as complete
        return metrics
