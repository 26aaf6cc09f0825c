"""This program's RetinaNet run stage by stage, as the golden cases of other systems are.

Pictures go through the shipped loader; losses, gradients and candidates come from the shipped train
and predict steps.
"""

import dataclasses
import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from retina_jax.config.values import resolve, target_arguments
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.data.records import Record
from retina_jax.evaluation.nms import Rule, clip_to_image, suppress
from retina_jax.evaluation.predict_step import make_predict_step
from retina_jax.interop.export import export_weights
from retina_jax.models import retinanet
from retina_jax.ops.anchors import LEVELS, feature_grid
from retina_jax.ops.targets import assign_targets
from retina_jax.prepare.writer import write_data_set
from retina_jax.training.step import make_train_step
from retina_jax.types import GroundTruth, Predictions, Targets, TrainState

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def experiment(name: str):
    """The config of ``experiments/coco_NAME.py``, in float32."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"coco_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.precision = "float32"
    return config


@dataclasses.dataclass
class Pictures:
    """Pictures and boxes as the rows of a data set; encoded without loss."""

    images: list[np.ndarray]
    boxes: list[np.ndarray]
    labels: list[np.ndarray]

    def __len__(self):
        return len(self.images)

    def read(self, row):
        image, boxes, count = self.images[row], self.boxes[row], len(self.boxes[row])
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "PNG")
        return Record(
            image_id=row,
            file_name=f"{row}.png",
            image=encoded.getvalue(),
            height=image.shape[0],
            width=image.shape[1],
            boxes=boxes,
            labels=self.labels[row],
            is_crowd=np.zeros(count, bool),
            areas=np.ones(count),
        )

    def fingerprint(self, row):
        return str(row)


class OnStoredStatistics:
    """A network that trains on its stored statistics, as the cases of other systems do."""

    axis_name = None

    def __init__(self, model):
        self._model = model

    def apply(self, variables, images, train, mutable):
        del train, mutable
        statistics = {"batch_stats": variables["batch_stats"]}
        return self._model.apply(variables, images, train=False), statistics


class Known:
    """Stands in for a network whose outputs are known."""

    axis_name = None

    def __init__(self, logits, deltas):
        """By level: ``[n, a, classes]`` and ``[n, a, 1, 4]``."""
        self._outputs = Predictions(logits, deltas)

    def apply(self, variables, images, train, mutable=None):
        del variables, images, train
        return (self._outputs, {}) if mutable else self._outputs


_KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, params), gradient),
)
"""An optimizer that moves nothing; its state is the last gradient."""


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

    def load(self, folder, images, boxes, labels):
        """The training batch of these pictures, in their order, without augmentation.

        ``folder`` gets the data set.
        """
        names = [f"thing {i}" for i in range(self.classes)]
        rows = {"train": Pictures(images, boxes, labels)}
        directory, _ = write_data_set(
            folder, "case", rows, names, range(1, self.classes + 1), "made"
        )
        config = self.config.copy_and_resolve_references()
        config.data.flip = False
        config.data.train_short_sides, config.data.scale_range = (), (1.0, 1.0)
        config.train.batch_size = len(images)
        (batch,) = TrainLoader(open_split(directory, "train"), config).batches(0, 1)
        order = np.argsort(batch.index)
        return jax.tree.map(lambda x: x[order], batch)

    def normalize(self, batch):
        """What the network sees of a batch."""
        return retinanet.normalize_images(batch.images, batch.sizes, self.config.data)

    @functools.cached_property
    def _network(self):
        """P3 to P7 beside the network's outputs; compiled once per input shape."""

        def network(tree, pixels):
            predictions, kept = self.model.apply(
                tree, pixels, train=False, capture_intermediates=lambda m, _: m.name == "fpn"
            )
            features = kept["intermediates"]["fpn"]["__call__"][0]
            return features, predictions.logits, predictions.box_outputs

        return jax.jit(network)

    def features(self, pixels):
        """P3 to P7, NHWC."""
        return self._network(self.tree, pixels)[0]

    def outputs(self, pixels):
        """Logits ``[n, a, c]`` and deltas ``[n, a, 4]`` over all levels."""
        _, logits, deltas = self._network(self.tree, pixels)
        return np.concatenate(logits, 1), np.concatenate(deltas, 1)[:, :, 0]

    def anchors(self, input_size):
        return np.concatenate(retinanet.anchors_for(self.config, input_size))

    def targets(self, anchors, boxes, labels) -> Targets:
        """Of one image."""
        count = len(boxes)
        truth = GroundTruth(
            boxes=boxes,
            labels=labels.astype(np.int32),
            valid=np.ones(count, bool),
            is_crowd=np.zeros(count, bool),
        )
        options = target_arguments(self.config)
        return jax.jit(lambda a, t: assign_targets(a, t, **options))(anchors, truth)

    def train(self, batch, pixels, boxes, outputs=None):
        """One shipped train step: its metrics, gradient, and normaliser's average.

        Args:
          batch: as `load` gives it; the labels, order and padding are taken from it.
          pixels: of the network's input, already normalised.
          boxes: of each image, in its pixels.
          outputs: logits and deltas, as `outputs` gives them, in place of the network's.
        """
        truth = batch.ground_truth
        exact = np.array(truth.boxes)
        for image, own in zip(exact, boxes, strict=True):
            image[: len(own)] = own
        batch = batch.replace(
            images=np.asarray(pixels, np.float32), ground_truth=truth.replace(boxes=exact)
        )
        step = self._step_of(Known(*self._by_level(*outputs))) if outputs else self._step
        params = self.tree.get("params", {})
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=self.tree.get("batch_stats", {}),
            opt_state=_KEEP_GRADIENT.init(params),
            loss_normalizer=jnp.asarray(self.config.loss.ema_initial, jnp.float32),
        )
        state, metrics = step(state, batch)
        return metrics, state.opt_state, float(state.loss_normalizer)

    @functools.cached_property
    def _step(self):
        """The train step of the network; compiled once per input shape."""
        return self._step_of(OnStoredStatistics(self.model))

    def _step_of(self, model):
        config = self.config.copy_and_resolve_references()
        # pixels come as the network sees them
        config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        config.data.pixel_order = "RGB"
        return jax.jit(make_train_step(model, _KEEP_GRADIENT, lambda count: 1.0, config))

    def named(self, gradient):
        """A gradient under the system's names."""
        whole = self.config.copy_and_resolve_references()
        whole.model.width = 64  # torchvision has no narrow one; names and layouts are the same
        tree = jax.tree.map(np.asarray, {**self.tree, "params": gradient})
        return export_weights(tree, whole, self.system.split("_")[0])

    def _by_level(self, logits, deltas):
        places = resolve(self.config).anchors_per_place
        size = self.config.data.buckets[0]
        counts = [places * np.prod(feature_grid(size, level)) for level in LEVELS]
        levels = np.cumsum(counts)[:-1]
        return np.split(logits, levels, 1), np.split(deltas[:, :, None], levels, 1)

    @functools.cached_property
    def _predict(self):
        """The predict step on known outputs; compiled once."""
        images = np.zeros((1, *self.config.data.buckets[0], 3), np.uint8)
        return jax.jit(
            lambda logits, deltas, sizes: make_predict_step(Known(logits, deltas), self.config)(
                {}, images, sizes
            )
        )

    def detections(self, logits, deltas, size, original):
        """Of one image: boxes in pixels of the original, scores, labels; best first."""
        outputs = self._by_level(logits[None], deltas[None])
        found = self._predict(*outputs, np.asarray(size, np.int32)[None])
        options = self.config.eval
        found = jax.tree.map(lambda x: np.asarray(x)[0], found)
        kept = suppress(found, Rule.of(options))
        if options.cut_boxes == "after_nms":
            kept = clip_to_image(kept, *size)
        y, x = np.array(original) / size
        return kept.boxes * [x, y, x, y], kept.scores, kept.labels


def relative_error(ours, theirs, largest=None):
    """Largest difference over the largest value of the array, or over ``largest``."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / (largest or np.abs(theirs).max())


def assert_near(ours, theirs, bar, largest=None):
    assert relative_error(ours, theirs, largest) <= bar


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
