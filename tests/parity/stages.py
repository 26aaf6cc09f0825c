"""This program's RetinaNet run stage by stage, as the golden cases of other systems are."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retina_jax.config import resolve
from retina_jax.data.plan import place
from retina_jax.data.transforms import resize, scale_boxes
from retina_jax.evaluation.nms import cut_to_picture, suppress
from retina_jax.interop.export import export_weights
from retina_jax.models import retinanet
from retina_jax.ops.anchors import LEVELS, feature_grid
from retina_jax.ops.postprocess import class_scores, select_candidates
from retina_jax.ops.targets import assign_targets
from retina_jax.training import objective
from retina_jax.types import GroundTruth, Targets

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
EXPORT = {
    "torchvision_v1": "torchvision", "torchvision_v2": "torchvision", "detectron2": "detectron2"
}  # fmt: skip


def experiment(name: str):
    """The config of ``experiments/coco_NAME.py``, in float32."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"coco_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.precision = "float32"
    return config


@dataclasses.dataclass
class Stages:
    """What a system's case has, by this program: an experiment's config and imported weights."""

    system: str
    config: Any
    tree: dict[str, Any]
    """``{"params": …, "batch_stats": …}``"""
    classes: int

    def __post_init__(self):
        self.model = retinanet.build(self.config, self.classes)

    def preprocess(self, image, boxes):
        """Picture, boxes and size as the loader makes them, padded to the bucket."""
        data = self.config.data
        size = image.shape[:2]
        placed = place(*size, data.buckets, data.short_side, data.long_side, data.rounding)
        image = image.astype(np.float32 if data.float_pixels else np.uint8)
        scaled = resize(image, placed.height, placed.width, data.antialias)
        padded = np.zeros((*data.buckets[placed.bucket], 3), image.dtype)
        padded[: placed.height, : placed.width] = scaled
        target = (placed.height, placed.width)
        return padded, scale_boxes(boxes, size, target).astype(np.float32), np.array(target)

    def features(self, batch):
        """P3 to P7, NHWC."""
        _, kept = jax.jit(
            lambda tree, x: self.model.apply(
                tree, x, train=False, capture_intermediates=lambda m, _: m.name == "fpn"
            )
        )(self.tree, batch)
        return kept["intermediates"]["fpn"]["__call__"][0]

    def outputs(self, batch):
        """Logits ``[n, a, c]`` and deltas ``[n, a, 4]`` over all levels."""
        logits, deltas = jax.jit(lambda tree, x: self.model.apply(tree, x, train=False))(
            self.tree, batch
        )
        return np.concatenate(logits, 1), np.concatenate(deltas, 1)[:, :, 0]

    def anchors(self, input_size):
        return np.concatenate(retinanet.anchors_for(self.config, input_size))

    def targets(self, anchors, boxes, labels) -> Targets:
        """Of one image."""
        matching = self.config.matching
        truth = GroundTruth(
            boxes=boxes,
            labels=labels.astype(np.int32),
            valid=np.ones(len(boxes), bool),
            is_crowd=np.zeros(len(boxes), bool),
        )
        return jax.jit(assign_targets, static_argnums=(2, 3, 4))(
            anchors,
            truth,
            matching.foreground_iou,
            matching.background_iou,
            matching.low_quality,
        )

    def losses(self, params, batch, targets):
        """Both losses and the moving average, with the network on its stored statistics."""
        logits, deltas = self.model.apply({**self.tree, "params": params}, batch, train=False)
        sums = objective.image_losses(
            jnp.concatenate(logits, 1),
            jnp.concatenate(deltas, 1),
            targets,
            self.anchors(batch.shape[1:3]),
            self.config,
        )
        ema = jnp.asarray(self.config.loss.ema_initial)
        return objective.normalize(sums, ema, lambda x: x, self.config.loss)

    def losses_and_gradients(self, batch, targets):
        """Classification, box, the divisor's average, and gradients under the system's names."""

        def total(params):
            classification, box, ema = self.losses(params, batch, targets)
            return classification + self.config.loss.box_weight * box, (classification, box, ema)

        (_, parts), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(self.tree["params"])
        squares = [np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)]
        norm = float(np.sqrt(np.sum(squares)))
        whole = self.config.copy_and_resolve_references()
        whole.model.width = 64  # torchvision has no narrow one; names and layouts are the same
        named = export_weights(
            jax.tree.map(np.asarray, {**self.tree, "params": gradient}), whole, EXPORT[self.system]
        )
        return (*map(float, parts), named, norm)

    def detections(self, logits, deltas, size, original):
        """Of one image: boxes in pixels of the original, scores, labels; best first."""
        options = self.config.eval
        input_size = self.config.data.buckets[0]
        places = resolve(self.config).anchors_per_place
        counts = [places * np.prod(feature_grid(input_size, level)) for level in LEVELS]
        levels = np.cumsum(counts)[:-1]
        found = jax.jit(select_candidates, static_argnums=(4, 5, 6, 7, 8))(
            [class_scores(x, softmax=False) for x in np.split(logits, levels)],
            np.split(deltas[:, None], levels),
            retinanet.anchors_for(self.config, input_size),
            np.asarray(size, np.int32),
            options.score_threshold,
            options.top_k,
            tuple(self.config.coder.weights),
            self.config.coder.clamp,
            options.cut_boxes == "before_nms",
        )
        kept = suppress(jax.tree.map(np.asarray, found), options.nms_iou, options.max_detections)
        if options.cut_boxes == "after_nms":
            kept = cut_to_picture(kept, *size)
        y, x = np.array(original) / size
        return kept.boxes * [x, y, x, y], kept.scores, kept.labels


def assert_near(ours, theirs, bar, largest=None):
    """Largest difference over the largest value of the array, or over ``largest``."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / (largest or np.abs(theirs).max())
    assert difference <= bar


def unpaired(ours, theirs, pixels, score, above=0.0):
    """Detections of either side (boxes, scores, labels) without one like it on the other."""
    far = []
    for one, other in ((ours, theirs), (theirs, ours)):
        for box, value, label in zip(*one, strict=True):
            near = (
                (other[2] == label)
                & (np.abs(other[1] - value) <= score)
                & (np.abs(other[0] - box).max(-1) <= pixels)
            )
            if value > above and not near.any():
                far.append((label, value, box))
    return far
