"""A stream of detections: the network runs on the device, NMS in host threads meanwhile."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.evaluation.nms import Rule, clip_to_image, suppress, without_padding
from retina_jax.evaluation.predict_step import make_detection_step, make_predict_step
from retina_jax.models.retinanet import RetinaNet
from retina_jax.types import Batch, Candidates, Detections

NMS_THREADS = 4
Detect = Callable[[Any, Iterable[Batch]], Iterator[tuple[int, Detections]]]
"""The function that `make_detect` returns."""


def make_detect(
    model: RetinaNet, config: ml_collections.ConfigDict, devices: parallel.Devices
) -> Detect:
    """``detect(variables, batches)``, which yields ``(row, detections)`` of every image in order.

    Compiles once per bucket, for any number of streams, also in several threads.

    - ``variables``: of the network, replicated over the devices.
    - ``batches``: of ``eval.batch_size`` images over all hosts; the stream may be endless.
      ``index`` holds the rows; fillers are skipped.

    Boxes are in pixels of the original image, xyxy, float64, highest score first. NMS of a batch
    runs on the host while the device processes the next ones (on the device with
    ``eval.nms_device=device``). Raises `UserError` if the batch size
    is not a multiple of the number of devices.
    """
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    options, rule = config.eval, Rule.of(config.eval)
    on_device = options.nms_device == "device"
    make_step = make_detection_step if on_device else make_predict_step
    predict = devices.predict_step(make_step(model, config))
    dispatching = threading.Lock()  # two threads would compile the same program twice

    def finish(candidates: Candidates, size: np.ndarray, original: np.ndarray) -> Detections:
        """NMS of one image; returns boxes in pixels of the original image."""
        if on_device:
            detections = without_padding(candidates)
        else:
            detections = suppress(candidates, rule)
            if options.cut_boxes == "after_nms":
                detections = clip_to_image(detections, *size)
        y, x = original / size
        return detections.replace(boxes=detections.boxes.astype(np.float64) * [x, y, x, y])

    def detect(variables: Any, batches: Iterable[Batch]) -> Iterator[tuple[int, Detections]]:
        def begin(batch: Batch) -> tuple[Batch, Any]:
            images, sizes = devices.shard((batch.images, batch.sizes))
            with dispatching:
                return batch, predict(variables, images, sizes)

        pending: collections.deque[list[tuple[int, Future[Detections]]]] = collections.deque()
        with ThreadPoolExecutor(NMS_THREADS) as threads:
            try:
                for batch, outputs in parallel.prefetch(batches, begin):
                    candidates = parallel.join(parallel.fetch(outputs))
                    images = []
                    for i in np.flatnonzero(batch.example_mask):
                        one = jax.tree.map(lambda values, i=i: values[i], candidates)
                        sizes = batch.sizes[i], batch.original_sizes[i]
                        images.append((int(batch.index[i]), threads.submit(finish, one, *sizes)))
                    pending.append(images)
                    if len(pending) > 1:
                        yield from _results(pending.popleft())
                while pending:
                    yield from _results(pending.popleft())
            finally:  # also if the caller closes the stream early
                for images in pending:
                    for _, future in images:
                        future.cancel()

    return detect


def _results(images: list[tuple[int, Future[Detections]]]) -> Iterator[tuple[int, Detections]]:
    for row, future in images:
        yield row, future.result()
