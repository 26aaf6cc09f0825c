"""Compares an exported program with the run's own predictions, on its data or synthetic images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.data.data_set import data_dir, find_data_set, open_split
from retina_jax.data.loader import EvaluationLoader
from retina_jax.errors import RunError, UserError
from retina_jax.evaluation.detect import make_detect
from retina_jax.exporting.program import Program
from retina_jax.prediction.network import Network
from retina_jax.types import Batch, Detections, GroundTruth

IMAGES = 4
"""Number of images to compare per bucket."""
PIXELS, SCORE = 0.1, 1e-3
"""Largest allowed differences of a coordinate and of a score, in float32."""
_COARSE = 20.0  # with bfloat16, three digits of whose results depend on what XLA fuses
_PAIRED_WITHIN = 4.0  # pixels; a box farther away is another detection


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The largest differences between an exported model and the run."""

    images: int
    source: str
    """Where the images come from."""
    detections: int
    """Pairs of detections that were compared."""
    pixels: float
    """Largest difference of a coordinate, in pixels of the original images."""
    score: float
    undecided: int
    """Detections on one side only, whose score or IoU is at a threshold."""

    def text(self) -> str:
        compared = f"{self.detections} detections on {self.images} {self.source} compared"
        if not self.detections:
            return f"{compared}: none scores above eval.score_threshold"
        text = f"{compared}: boxes differ by up to {self.pixels:.2g} px, scores by {self.score:.2g}"
        extra = f"; {self.undecided} on one side only, at a threshold" if self.undecided else ""
        return text + extra


def sample_batches(config: ml_collections.ConfigDict) -> Iterator[tuple[tuple[int, int], Batch]]:
    """A bucket and a batch of `IMAGES` images for each bucket that the run's data set fills."""
    directory = find_data_set(data_dir(config.data.dir), config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels)
    loader = EvaluationLoader(split, config)
    for number, bucket in enumerate(resolve(config).buckets):
        batch = loader.first_of(number)
        if batch is not None:
            yield bucket, batch


def noise(bucket: tuple[int, int], dtype: type) -> Batch:
    """`IMAGES` images of soft spots, of several sizes."""
    height, width = bucket
    rng = np.random.default_rng(0)
    images = np.zeros((IMAGES, height, width, 3), dtype)
    sizes = np.array([(height - 8 * i, width - 12 * i) for i in range(IMAGES)], np.int32)
    for image, (rows, columns) in zip(images, sizes, strict=True):
        coarse = rng.integers(0, 256, (-(-rows // 16), -(-columns // 16), 3))
        image[:rows, :columns] = coarse.repeat(16, 0).repeat(16, 1)[:rows, :columns]
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=sizes,
        ground_truth=GroundTruth.empty(IMAGES, 0),
        index=np.arange(IMAGES, dtype=np.int32),
        example_mask=np.ones(IMAGES, bool),
        cut_away=np.zeros(IMAGES, np.int32),
    )


class Checker:
    """Compares exported models with `evaluation.detect` on the same weights."""

    def __init__(self, network: Network):
        config = network.config.copy_and_resolve_references()
        config.eval.batch_size = IMAGES
        config.eval.nms_device = "host"
        self._config = config
        self._devices = parallel.Devices.local(1)
        self._variables = self._devices.replicate(network.variables)
        self._detect = make_detect(network.model, config, self._devices)
        try:
            self._batches = dict(sample_batches(config))
        except (UserError, OSError):
            self._batches = {}

    def check(self, program: Program, bucket: tuple[int, int], batch_size: int) -> Agreement:
        """Raises `RunError` unless the exported model and the run give the same detections."""
        batch, source = self._batches.get(bucket), "images of the data set"
        if batch is None:
            dtype = np.float32 if self._config.data.float_pixels else np.uint8
            batch, source = noise(bucket, dtype), "synthetic images"
        expected = [d for _, d in self._detect(self._variables, [batch])]
        ours = list(run_program(program, batch, batch_size))
        options = self._config.eval
        coarse = _COARSE if self._config.train.precision == "bfloat16" else 1.0
        found = compare(expected, ours, options.nms_iou, options.score_threshold, SCORE * coarse)
        agreement = dataclasses.replace(found, source=source)
        if found.undecided < 0 or found.pixels > PIXELS * coarse or found.score > SCORE * coarse:
            raise RunError(
                f"the {bucket[0]}×{bucket[1]} model differs from the run: {agreement.text()}; "
                f"at most {PIXELS * coarse:g} px and {SCORE * coarse:g} are allowed"
            )
        return agreement


def run_program(program: Program, batch: Batch, batch_size: int) -> Iterator[Detections]:
    """Detections of an exported model on each image of a batch, in pixels of the original image."""
    at_once = batch_size or len(batch.images)
    rows = np.flatnonzero(batch.example_mask)
    for start in range(0, len(rows), at_once):
        chosen = rows[start : start + at_once]
        padded = np.resize(chosen, at_once)  # repeats the first ones
        outputs = program(batch.images[padded], batch.sizes[padded])
        boxes, scores, labels = (np.asarray(outputs[k]) for k in ("boxes", "scores", "labels"))
        for i, row in enumerate(chosen):
            there = scores[i] > 0
            y, x = batch.original_sizes[row] / batch.sizes[row]
            yield Detections(
                boxes=boxes[i][there].astype(np.float64) * [x, y, x, y],
                scores=scores[i][there],
                labels=labels[i][there],
            )


def compare(
    expected: Sequence[Detections],
    ours: Sequence[Detections],
    nms_iou: float,
    score_threshold: float,
    score_tolerance: float,
) -> Agreement:
    """Pairs the detections of each image by class and location.

    A detection without a partner counts as undecided if rounding may explain it: its score equals
    the threshold or that of the last detection kept; or it overlaps a box of its class that has the
    same score, or whose IoU with it equals the threshold of NMS. Any other detection without a
    partner, and more than a tenth of undecided ones, set ``undecided`` to -1.
    """
    pixels = score = 0.0
    pairs = undecided = 0
    for theirs, own in zip(expected, ours, strict=True):
        partner = _partners(theirs, own)
        pairs += len(partner)
        for i, j in partner.items():
            pixels = max(pixels, float(np.abs(theirs.boxes[i] - own.boxes[j]).max()))
            score = max(score, float(abs(theirs.scores[i] - own.scores[j])))
        for one, paired in ((theirs, set(partner)), (own, set(partner.values()))):
            limits = [score_threshold, *(d.scores[-1] for d in (theirs, own) if len(d.scores))]
            boxes, scores, labels = (
                np.concatenate([getattr(d, name) for d in (theirs, own)])
                for name in ("boxes", "scores", "labels")
            )
            for i in set(range(len(one.scores))) - paired:
                iou = _iou(one.boxes[i], boxes)
                at_limit = np.abs(np.subtract(limits, one.scores[i])) <= score_tolerance
                tied = np.abs(scores - one.scores[i]) <= score_tolerance
                tied &= (iou > nms_iou) & ((boxes != one.boxes[i]).any(axis=1))
                at_iou = np.abs(iou - nms_iou) < 1e-2
                if not at_limit.any() and not ((tied | at_iou) & (labels == one.labels[i])).any():
                    return Agreement(len(expected), "", pairs, np.inf, np.inf, -1)
                undecided += 1
    if undecided > max(1, pairs // 10):
        undecided = -1
    return Agreement(len(expected), "", pairs, pixels, score, undecided)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """`ops.boxes.pairwise_iou` for the host: JAX would compile it for every number of boxes."""
    side = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.maximum(side, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-9)


def _partners(expected: Detections, ours: Detections) -> dict[int, int]:
    """Row of ``ours`` for rows of ``expected``: the nearest box of its class that is left."""
    partner: dict[int, int] = {}
    free = np.ones(len(ours.scores), bool)
    for i, (box, label) in enumerate(zip(expected.boxes, expected.labels, strict=True)):
        distance = np.abs(ours.boxes - box).max(axis=1, initial=0)
        distance = np.where(free & (ours.labels == label), distance, np.inf)
        if len(distance) and distance.min() < _PAIRED_WITHIN:
            partner[i] = int(distance.argmin())
            free[partner[i]] = False
    return partner
