"""The one place where a field is written down: a row each.

Default, meaning, allowed values, and what depends on it. From the rows come `default_config`,
validation, the help, what a checkpoint's weights were made for, and the comparison of two runs.
The defaults are the paper's where it names a value (arXiv:1708.02002, section 4), else what
Detectron2 does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import ml_collections

from retina_jax.config.backbones import BACKBONES

CLASSIFICATION_LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "focal": ("sigmoid_focal_loss", ("alpha", "gamma")),
    "cross_entropy": ("sigmoid_cross_entropy", ()),
    "balanced_cross_entropy": ("balanced_cross_entropy", ("alpha",)),
    "focal_star": ("focal_star_loss", ("alpha", "gamma", "beta")),
    "softmax_focal": ("softmax_focal_loss", ("alpha", "gamma")),
    "ohem": ("sigmoid_cross_entropy", ()),  # of the anchors that `ops.losses` selects
}
"""Values of loss.classification: the function in `ops.losses`, and the fields of loss it takes."""

BOX_LOSSES: dict[str, tuple[str, str]] = {
    "smooth_l1": ("smooth_l1", "deltas"),
    "l1": ("smooth_l1", "deltas"),  # with a beta of 0
    "giou": ("giou_loss", "boxes"),
    "diou": ("diou_loss", "boxes"),
    "ciou": ("ciou_loss", "boxes"),
}
"""Values of loss.box: the function in `ops.box_losses`, and what it compares."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a field may hold: the rule as an error says it, and the check."""

    rule: str
    holds: Callable[[object], bool]
    fix: object = None
    """What the error suggests; None: the default."""


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def one_of(*choices: object) -> Allowed:
    listed = ", ".join(map(str, choices))
    return Allowed(f"must be one of {listed}", lambda v: v in choices, choices[0])


def numbers(rule: str = "", holds: Callable = lambda v: True, fix: object = None) -> Allowed:
    """A tuple of finite numbers, for which ``holds`` is true."""
    return Allowed(
        rule or "must contain only finite numbers",
        lambda v: all(map(_finite, v)) and holds(v),
        fix,
    )


def _positive(count: int) -> Allowed:
    return numbers(
        f"must be {count} numbers above 0", lambda v: len(v) == count and all(x > 0 for x in v)
    )


ANY = Allowed("", lambda v: True)
ABOVE_0 = Allowed("must be above 0", lambda v: v > 0)
FROM_0 = Allowed("must be 0 or more", lambda v: v >= 0)
SHARE = Allowed("must lie between 0 and 1", lambda v: 0 <= v <= 1)
INSIDE = Allowed("must lie strictly between 0 and 1", lambda v: 0 < v < 1)
THREE = numbers("must be 3 numbers", lambda v: len(v) == 3)
SOME = numbers("must contain at least one number", lambda v: len(v) > 0)
SOME_POSITIVE = numbers(
    "must contain at least one number, all above 0", lambda v: len(v) > 0 and min(v) > 0
)
LIMITS = numbers(
    "must be three whole numbers above 0, in ascending order",
    lambda v: len(v) == 3 and all(isinstance(x, int) for x in v) and 0 < v[0] < v[1] < v[2],
)
SIDES = numbers("must be pixels, 1 or more", lambda v: all(x >= 1 for x in v), (640, 800))
FACTORS = numbers("must be two factors, low and high", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
JITTER = numbers(
    "must be four strengths of 0 to 1, the last (hue) at most 0.5",
    lambda v: len(v) == 4 and all(0 <= x <= 1 for x in v) and v[3] <= 0.5,
    (0.4, 0.4, 0.4, 0.1),
)


@dataclasses.dataclass(frozen=True)
class Field:
    """A row."""

    name: str
    default: object
    meaning: str
    """With its unit and its source."""
    allowed: Allowed = ANY
    depends: str = ""
    """What another value changes, in words of `DEPENDENTS`; "": nothing but speed or files."""


DEPENDENTS = ("weights", "trajectory", "scores")
"""weights: what a checkpoint's numbers mean; trajectory: the course of training; scores: what the
same weights score."""
W, T, S, TS = "weights", "trajectory", "scores", "trajectory scores"

# fmt: off
FIELDS = (
    Field("seed", 0, "of weights, order and augmentation", FROM_0, T),

    Field("data.dir", "", "folder of data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets",
          ANY, TS),
    Field("data.name", "coco", "data set under dir; empty: the only one there", ANY, TS),
    Field("data.train_split", "train", "split to train on", ANY, T),
    Field("data.eval_split", "validation", "split to evaluate", ANY, S),
    Field("data.short_side", 800, "pixels; an image is scaled until its short side has these ...",
          ABOVE_0, TS),
    Field("data.long_side", 1333, "... unless its long side would exceed this", ABOVE_0, TS),
    Field("data.buckets", (), "(height, width) of each input shape, one compiled program per "
          "bucket; empty: landscape and portrait, from the sides above", ANY, TS),
    Field("data.max_boxes", 100, "boxes kept for each image, crowds included (COCO: at most 93)",
          ABOVE_0),
    Field("data.flip", True, "mirror half of the training images", ANY, T),
    Field("data.train_short_sides", (), "training draws one instead of short_side: (640, …, 800)",
          SIDES, T),
    Field("data.scale_range", (1.0, 1.0), "training scales by a further factor, and crops "
          "(large-scale jitter: 0.1, 2.0)", FACTORS, T),
    Field("data.min_visible", 0.0, "drop a box when a crop leaves less of its area than this share",
          SHARE, T),
    Field("data.color_jitter", (0.0, 0.0, 0.0, 0.0), "brightness, contrast, saturation, hue: "
          "± of each", JITTER, T),
    Field("data.drop_empty", False, "leave out training images without a box (crowds aside)",
          ANY, T),
    Field("data.labels", "dense", "dense: 0, 1, …; category_ids: a class slot for every id up to "
          "the largest", one_of("dense", "category_ids"), W),
    Field("data.float_pixels", False, "resize in floating point (torchvision); four times the "
          "bytes to move", ANY, TS),
    Field("data.rounding", "nearest", "of a resized image's sides: nearest, or floor (torchvision)",
          one_of("nearest", "floor"), TS),
    Field("data.antialias", False, "shrink with Pillow's widened bilinear (Detectron2), not "
          "OpenCV's", ANY, TS),
    Field("data.pixel_order", "RGB", "channels that the network sees: RGB or BGR",
          one_of("RGB", "BGR"), W),
    Field("data.mean", (123.675, 116.28, 103.53), "0 to 255, in pixel_order: ImageNet's", THREE, W),
    Field("data.std", (58.395, 57.12, 57.375), "0 to 255, in pixel_order", _positive(3), W),
    Field("data.num_workers", 0, "processes that read and decode; 0: threads of this one", FROM_0),

    Field("model.backbone", "resnet50", "resnet, resnext or wide_resnet by torchvision's names",
          one_of(*BACKBONES), W),
    Field("model.width", 64, "channels of the stem; every stage follows", ABOVE_0, W),
    Field("model.stride_in_1x1", False, "a bottleneck halves in its first 1x1 (Caffe's weights)",
          ANY, W),
    Field("model.frozen_stages", 0, "1: the stem is not trained; 2: nor C2 (peers); … 5",
          one_of(0, 1, 2, 3, 4, 5), T),
    Field("model.remat", False, "recompute blocks for the gradient: less memory, more time"),
    Field("model.norm", "frozen", "of the backbone: frozen, batch (over all devices) or group",
          one_of("frozen", "batch", "group"), W),
    Field("model.norm_eps", 1e-5, "0 for torchvision's shipped RetinaNet v1", FROM_0, W),
    Field("model.norm_momentum", 0.9, "of batch statistics: weight of the past", SHARE, T),
    Field("model.fpn_channels", 256, "of every level of the pyramid", ABOVE_0, W),
    Field("model.p6_from", "C5", "input of P6: C5 (paper) or P5 (torchvision v1)",
          one_of("C5", "P5"), W),
    Field("model.head_convs", 4, "convolutions of a tower before its last", FROM_0, W),
    Field("model.head_channels", 256, "of a tower", ABOVE_0, W),
    Field("model.head_norm", "none", "none (paper), group (torchvision v2) or batch (per level)",
          one_of("none", "group", "batch"), W),
    Field("model.class_specific_boxes", False, "a box for each class instead of one for all "
          "(section 4)", ANY, W),
    Field("model.prior", 0.01, "probability of an object at step 0 (section 3.3)", INSIDE, T),
    Field("model.predictor_std", 0.01, "of the last convolution's initial weights", ABOVE_0, T),
    Field("model.init_from", "", "weights to start from: .safetensors, .pth, .pkl or a workdir",
          ANY, T),

    Field("anchors.scale", 4.0, "smallest anchor of a level over its stride: 32 to 512 px on P3 "
          "to P7", ABOVE_0, W),
    Field("anchors.octaves", (0.0, 1 / 3, 2 / 3), "sizes of a level: 2 to these powers", SOME, W),
    Field("anchors.ratios", (0.5, 1.0, 2.0), "height over width", SOME_POSITIVE, W),
    Field("anchors.offset", 0.0, "centres at (k + offset) · stride: 0 Detectron2, 0.5 TF Model "
          "Garden", SHARE, W),
    Field("anchors.order", "size_major", "of the anchors of a cell: size_major, or ratio_major "
          "(torchvision)", one_of("size_major", "ratio_major"), W),
    Field("anchors.rounded", False, "base anchors to whole pixels (torchvision)", ANY, W),
    Field("anchors.truncate_sizes", False, "whole sizes, as torchvision's int(x · 2^⅓)", ANY, W),
    Field("anchors.stride_from", "level", "level, or grid: input size // grid (torchvision)",
          one_of("level", "grid"), W),

    Field("matching.foreground_iou", 0.5, "from here on an anchor is foreground", SHARE, T),
    Field("matching.background_iou", 0.4, "below it is background; between the two it is ignored",
          SHARE, T),
    Field("matching.low_quality", True, "every box claims its nearest anchors (all peers)", ANY, T),

    Field("coder.weights", (1.0, 1.0, 1.0, 1.0), "of dx, dy, dw, dh", _positive(4), W),
    Field("coder.clamp", math.log(1000 / 16), "largest log scale that is decoded (peers)",
          ABOVE_0, TS),

    Field("loss.classification", "focal", ", ".join(CLASSIFICATION_LOSSES),
          one_of(*CLASSIFICATION_LOSSES), TS),
    Field("loss.alpha", 0.25, "weight of the foreground; 1 - alpha of the background", SHARE, T),
    Field("loss.gamma", 2.0, "focusing exponent; 0 is balanced cross entropy", FROM_0, T),
    Field("loss.beta", 1.0, "focal_star: shift of the logit (appendix A)", ANY, T),
    Field("loss.ohem_examples", 128, "ohem: anchors of an image that are trained on", ABOVE_0, T),
    Field("loss.ohem_nms_iou", 0.5, "ohem: of two that overlap more the harder stays; 1: both",
          SHARE, T),
    Field("loss.ohem_negatives", 0.0, 'ohem: background per foreground anchor; 3: "1:3"; 0: any',
          FROM_0, T),
    Field("loss.normalizer", "foreground", "foreground, foreground_plus_1, per_image or ema",
          one_of("foreground", "foreground_plus_1", "per_image", "ema"), T),
    Field("loss.ema_initial", 100.0, "ema: foreground anchors of a batch before the first "
          "(Detectron2)", ABOVE_0, T),
    Field("loss.ema_momentum", 0.9, "ema: weight of the past", SHARE, T),
    Field("loss.box", "smooth_l1", "smooth_l1 (paper), l1 (v1, Detectron2), giou (v2), diou, ciou",
          one_of(*BOX_LOSSES), T),
    Field("loss.smooth_l1_beta", 0.11, "Detectron's 1/9 to two digits", FROM_0, T),
    Field("loss.box_weight", 1.0, "of the box loss in the sum", FROM_0, T),

    Field("optimizer.learning_rate", 0.01, "peak, for a batch of learning_rate_batch images",
          ABOVE_0, T),
    Field("optimizer.learning_rate_batch", 16, "other batches scale it linearly; 0: as it is",
          FROM_0, T),
    Field("optimizer.name", "sgd", "sgd, or adamw (torchvision v2), whose decay is decoupled",
          one_of("sgd", "adamw"), T),
    Field("optimizer.momentum", 0.9, "of sgd", SHARE, T),
    Field("optimizer.weight_decay", 1e-4, "of kernels and biases, not of norms", FROM_0, T),
    Field("optimizer.decay_biases", True, "decay biases of convolutions too (Detectron2)", ANY, T),
    Field("optimizer.clip_norm", 0.0, "largest norm of the gradient; 0: no clipping", FROM_0, T),
    Field("optimizer.schedule", "step", "step, or cosine to zero at train.steps",
          one_of("step", "cosine"), T),
    Field("optimizer.decay_at", (60_000, 80_000), 'steps at which "step" multiplies by '
          "decay_factor", numbers(), T),
    Field("optimizer.decay_factor", 0.1, 'of "step"', SHARE, T),
    Field("optimizer.warmup_steps", 1000, "linear, from warmup_factor (peers)", FROM_0, T),
    Field("optimizer.warmup_factor", 0.001, "of the peak at step 0", SHARE, T),

    Field("train.steps", 90_000, "in all", ABOVE_0, T),
    Field("train.batch_size", 16, "images over all devices of all hosts", ABOVE_0, T),
    Field("train.precision", "bfloat16", "of the network's arithmetic; weights and losses are "
          "float32", one_of("float32", "bfloat16"), TS),
    Field("train.log_every", 20, "steps", ABOVE_0),
    Field("train.checkpoint_every", 1000, "steps", ABOVE_0),
    Field("train.keep_checkpoints", 2, "the latest, beside the best by AP", ABOVE_0),
    Field("train.on_nonfinite", "stop", "stop, or skip: leave the update out and continue",
          one_of("stop", "skip"), T),

    Field("eval.every", 10_000, "steps; 0: only at the end", FROM_0),
    Field("eval.batch_size", 16, "images over all devices of all hosts", ABOVE_0),
    Field("eval.checkpoint", "latest", "what evaluate reads: latest or best",
          one_of("latest", "best")),
    Field("eval.score_threshold", 0.05, "detections below it are dropped", SHARE, S),
    Field("eval.top_k", 1000, "candidates of a level before NMS", ABOVE_0, S),
    Field("eval.nms_iou", 0.5, "a box that overlaps a better one of its class more is dropped",
          SHARE, S),
    Field("eval.cut_boxes", "before_nms", "to the image: before_nms, or after_nms (Detectron2)",
          one_of("before_nms", "after_nms"), S),
    Field("eval.max_detections", 100, "of an image", ABOVE_0, S),
    Field("eval.limits", (1, 10, 100), "detections of a class and image that COCO's metrics count; "
          "AP takes the last", LIMITS, S),
    Field("eval.engine", "hotcoco", "hotcoco, or pycocotools, the arbiter",
          one_of("hotcoco", "pycocotools")),
    Field("eval.pictures", 12, "images drawn with ground truth beside detections; 0: none", FROM_0),
)
# fmt: on
BY_NAME = {field.name: field for field in FIELDS}


def default_config() -> ml_collections.ConfigDict:
    """RetinaNet as in the paper: ResNet-50-FPN at 800 px, batch 16, 90,000 steps; locked."""
    config = ml_collections.ConfigDict()
    for field in FIELDS:
        group, _, name = field.name.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict()
        (config[group] if group else config)[name] = field.default
    return config.lock()


def depending(dependent: str) -> tuple[str, ...]:
    """Names of the fields on which ``dependent``, of `DEPENDENTS`, depends."""
    return tuple(field.name for field in FIELDS if dependent in field.depends.split())
