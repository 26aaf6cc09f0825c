"""Run the network over a split once, suppress in threads beside it, score, write."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.data.data_set import Split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.evaluation import coco
from retina_jax.evaluation import pictures as visualize
from retina_jax.evaluation.nms import cut_to_picture, suppress
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.files import write_json
from retina_jax.models.retinanet import RetinaNet
from retina_jax.types import Batch, Candidates

NMS_THREADS = 4


class Evaluator:
    """Scores a model on one split; compiled once per bucket, whatever the number of calls."""

    def __init__(
        self,
        model: RetinaNet,
        split: Split,
        config: ml_collections.ConfigDict,
        devices: parallel.Devices,
    ):
        devices.check_batch(config.eval.batch_size, "eval.batch_size")
        self._config = config
        self._split = split
        self._devices = devices
        self._loader = EvaluationLoader(
            split, config, parallel.process_index(), parallel.process_count()
        )
        self._predict = devices.predict_step(make_predict_step(model, config))
        self._truth: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def detect(
        self, variables: Any, advance: Callable[[], bool] = lambda: True
    ) -> list[dict[str, Any]] | None:
        """COCO results of every image of the split; None when ``advance()`` said to stop.

        ``advance`` is called after each batch.
        """
        seen: list[np.ndarray] = []
        pending: list[Future] = []
        with ThreadPoolExecutor(NMS_THREADS) as threads:
            for batch, outputs in parallel.ahead(self._loader, lambda b: self._start(variables, b)):
                candidates = parallel.join(parallel.fetch(outputs))
                seen.append(batch.index[batch.example_mask])
                for i in np.flatnonzero(batch.example_mask):
                    one = jax.tree.map(lambda x, i=i: x[i], candidates)
                    row, size = int(batch.index[i]), batch.sizes[i]
                    pending.append(threads.submit(self._finish, one, row, size))
                if not advance():
                    return None
        rows = np.sort(np.concatenate(seen))
        if not np.array_equal(rows, np.arange(len(self._split))):
            raise RuntimeError(
                f"evaluation saw {len(rows)} of {len(self._split)} rows of {self._split.label()}"
            )
        return [result for future in pending for result in future.result()]

    def _start(self, variables: Any, batch: Batch) -> tuple[Batch, Any]:
        images, sizes = self._devices.shard((batch.images, batch.sizes))
        return batch, self._predict(variables, images, sizes)

    def _finish(self, candidates: Candidates, row: int, size: np.ndarray) -> list[dict[str, Any]]:
        options = self._config.eval
        detections = suppress(candidates, options.nms_iou, options.max_detections)
        if options.cut_boxes == "after_nms":
            detections = cut_to_picture(detections, *size)
        y, x = self._split.sizes[row] / size
        image_id = int(self._split.image_ids[row])
        return coco.results(image_id, detections, (y, x), self._split.category_ids)

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
            visualize.draw_split(
                self._split, detections, folder / "detections.png", self._config.eval.pictures
            )
        write_json(folder / "metrics.json", metrics)  # last: it says that the rest is there
        return metrics
