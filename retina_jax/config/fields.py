"""The single definition of every config field, one row per field.

A row holds the default, the meaning, the allowed values and what depends on the field. The rows
define `default_config`, validation, the help, the note in weight files and the comparison of two
runs. Defaults follow the paper where it states a value (arXiv:1708.02002, section 4), and
Detectron2 elsewhere.
"""

from __future__ import annotations

import dataclasses
import math

import ml_collections

from retina_jax.config.allowed import (
    ABOVE_0,
    ANY,
    DECAY,
    FACTORS,
    FROM_0,
    INSIDE,
    JITTER,
    LIMITS,
    PRESET,
    SHARE,
    SIDES,
    SOME,
    SOME_POSITIVE,
    THREE,
    Allowed,
    numbers,
    one_of,
    positive,
)
from retina_jax.config.backbones import BACKBONES
from retina_jax.config.recording import RecordingConfig

CLASSIFICATION_LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "focal": ("sigmoid_focal_loss", ("alpha", "gamma")),
    "cross_entropy": ("sigmoid_cross_entropy", ()),
    "balanced_cross_entropy": ("balanced_cross_entropy", ("alpha",)),
    "focal_star": ("focal_star_loss", ("alpha", "gamma", "beta")),
    "softmax_focal": ("softmax_focal_loss", ("alpha", "gamma")),
    "ohem": ("sigmoid_cross_entropy", ()),  # on the anchors that `ops.losses` selects
    "qfl": ("quality_focal_loss", ("gamma",)),  # and the IoU of each anchor's predicted box
}
"""Values of loss.classification: the function in `ops.losses`, and the loss fields it takes."""

BOX_LOSSES: dict[str, tuple[str, str]] = {
    "smooth_l1": ("smooth_l1", "deltas"),
    "l1": ("smooth_l1", "deltas"),  # with a beta of 0
    "giou": ("giou_loss", "boxes"),
    "diou": ("diou_loss", "boxes"),
    "ciou": ("ciou_loss", "boxes"),
    "dfl": ("giou_loss", "boxes"),  # and the distribution focal loss, a term of its own
}
"""Values of loss.box: the function in `ops.box_losses`, and what it compares."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One config field."""

    name: str
    default: object
    meaning: str
    """Shown in the help; with unit and source."""
    allowed: Allowed = ANY
    depends: str = ""
    """What the value affects, as words of `DEPENDENTS`; "": only speed or output files."""


DEPENDENTS = ("weights", "trajectory", "scores")
"""weights: how a checkpoint's arrays are interpreted; trajectory: the course of training; scores:
the metrics that given weights reach."""
W, T, S, TS = "weights", "trajectory", "scores", "trajectory scores"

# fmt: off
FIELDS = (
    Field("seed", 0, "random seed of initial weights, image order and augmentation", FROM_0, T),

    Field("data.dir", "", "folder that contains data sets, or gs://BUCKET/FOLDER; empty: "
          "$TFDS_DATA_DIR or ~/tensorflow_datasets",
          ANY, TS),
    Field("data.name", "coco", "name of the data set in data.dir; empty: the only one there",
          ANY, TS),
    Field("data.seed", -1, "random seed of image order and augmentation alone; -1: that of seed",
          Allowed("must be -1 or more", lambda v: v >= -1, -1), T),
    Field("data.train_split", "train", "split to train on", ANY, T),
    Field("data.eval_split", "validation", "split to evaluate", ANY, S),
    Field("data.fit", False, "before step 0, fit image sizes, buckets, anchors, max_boxes and the "
          "number of steps to the data set; keeps every field that the experiment or a flag sets"),
    Field("data.pixel_budget", 81_920, "fit: largest number of pixels of a network input "
          "(81,920 is 256×320); time and memory of a step are proportional to it",
          Allowed("must be 1,024 (32×32) or more", lambda v: v >= 1024)),
    Field("data.short_side", 800, "short side of an image after scaling, pixels", ABOVE_0, TS),
    Field("data.long_side", 1333, "upper limit of the long side after scaling, pixels; an image "
          "that would exceed it is scaled down further", ABOVE_0, TS),
    Field("data.buckets", (), "input shapes, called buckets: (height, width) in pixels; the "
          "training and prediction steps are compiled once per bucket; empty: one landscape and "
          "one portrait shape, from short_side and long_side", ANY, TS),
    Field("data.max_boxes", 100, "maximum number of boxes per image, crowds included (COCO has at "
          "most 93)", ABOVE_0),
    Field("data.augmentation", "", "preset for the fields flip, turn, scale_range, min_visible and "
          "color_jitter: light, detection, or aerial (no direction is up); keeps those that the "
          "experiment or a flag sets; empty: no preset", PRESET, T),
    Field("data.flip", True, "flip half of the training images horizontally", ANY, T),
    Field("data.turn", False, "turn each training image by 0°, 90°, 180° or 270° at random, for "
          "images in which no direction is up (aerial, microscopy); after 90° and 270°, the image "
          "is scaled to fit the same bucket", ANY, T),
    Field("data.train_short_sides", (), "short sides, pixels, from which one is drawn for "
          "each training image, instead of short_side; Detectron2: (640, 672, …, 800)", SIDES, T),
    Field("data.scale_range", (1.0, 1.0), "range of an additional random scale factor in training; "
          "an image that exceeds its bucket is cropped at random (large-scale jitter: 0.1, 2.0)",
          FACTORS, T),
    Field("data.min_visible", 0.0, "smallest fraction of a box's area that must remain visible "
          "after cropping; boxes below it are dropped", SHARE, T),
    Field("data.color_jitter", (0.0, 0.0, 0.0, 0.0), "strength (±) of random brightness, contrast, "
          "saturation and hue changes", JITTER, T),
    Field("data.drop_empty", False, "exclude training images without a box (crowds do not count)",
          ANY, T),
    Field("data.repeat_rare", 0.0, "repeat images of classes in less than this share of the "
          "training images (LVIS: 0.001): a class in a share f of them is shown √(repeat_rare / f) "
          "times per epoch (arXiv:1908.03195); 0: no repeats", SHARE, T),
    Field("data.allow_changes", False, "resume although images or annotations have changed since "
          "the last checkpoint"),
    Field("data.labels", "dense", "numbering of the classes; dense: 0, 1, …; category_ids: "
          "the category ids are the labels, with a class for every id from 0 to the largest",
          one_of("dense", "category_ids"), W),
    Field("data.float_pixels", False, "resize in floating point (torchvision) and send float32 to "
          "the device: four times the bytes", ANY, TS),
    Field("data.rounding", "nearest", "rounding of a resized image's sides: nearest, or floor "
          "(torchvision)", one_of("nearest", "floor"), TS),
    Field("data.antialias", False, "resize with Pillow's antialiased bilinear filter (Detectron2) "
          "instead of OpenCV's", ANY, TS),
    Field("data.pixel_order", "RGB", "channel order of the network's input: RGB or BGR",
          one_of("RGB", "BGR"), W),
    Field("data.mean", (123.675, 116.28, 103.53), "mean of each channel, 0 to 255, in pixel_order "
          "(ImageNet's)", THREE, W),
    Field("data.std", (58.395, 57.12, 57.375), "standard deviation of each channel, 0 to 255, in "
          "pixel_order", positive(3), W),
    Field("data.num_workers", 0, "number of processes that read and decode images; 0: threads of "
          "the main process", FROM_0),

    Field("model.backbone", "resnet50", "ResNet, ResNeXt, Wide ResNet or MobileNetV2, by its "
          "torchvision name", one_of(*BACKBONES), W),
    Field("model.width", 64, "width of the backbone: the channels of a ResNet's stem, to which its "
          "other channels are proportional; 64: the published width, also of MobileNetV2",
          ABOVE_0, W),
    Field("model.stride_in_1x1", False, "put the stride of a bottleneck in its first 1x1 "
          "convolution (as in Caffe2 weights) instead of the 3x3", ANY, W),
    Field("model.frozen_stages", 0, "number of frozen stages; 1: the stem; 2: the stem and C2 "
          "(torchvision, Detectron2); … 5", one_of(0, 1, 2, 3, 4, 5), T),
    Field("model.remat", False, "recompute backbone blocks in the backward pass: less memory, more "
          "time"),
    Field("model.norm", "frozen", "norm of the backbone: frozen (batch norm with fixed "
          "statistics), batch (synchronised over all devices) or group",
          one_of("frozen", "batch", "group"), W),
    Field("model.norm_eps", 1e-5, "eps of the norms; 0 for torchvision's published RetinaNet v1",
          FROM_0, W),
    Field("model.norm_momentum", 0.9,
          "weight of the old value when the running statistics are updated",
          SHARE, T),
    Field("model.fpn_channels", 256, "channels of every pyramid level, P3 to P7", ABOVE_0, W),
    Field("model.p6_from", "C5", "input of P6: C5 (paper) or P5 (torchvision v1)",
          one_of("C5", "P5"), W),
    Field("model.head_convs", 4, "number of convolutions in each head before the final one",
          FROM_0, W),
    Field("model.head_channels", 256, "channels of the heads", ABOVE_0, W),
    Field("model.head_norm", "none", "norm of the heads: none (paper), group (torchvision v2) or "
          "batch (per level)", one_of("none", "group", "batch"), W),
    Field("model.class_specific_boxes", False, "predict one box per class instead of one box for "
          "all classes (section 4)", ANY, W),
    Field("model.centerness", False, "also predict how central each anchor is in its box "
          "(arXiv:1912.02424): a detection's score is √(class probability · centerness), and the "
          "box losses are weighted by the centerness to be predicted, which is 0 for a centre "
          "outside its box", ANY, W),
    Field("model.box_scale_per_level", False, "multiply the outputs of the box head by a learned "
          "scalar for each level, 1 at first (arXiv:1904.01355, arXiv:1912.02424)", ANY, W),
    Field("model.prior", 0.01, "predicted foreground probability at step 0 (section 3.3)",
          INSIDE, T),
    Field("model.predictor_std", 0.01, "standard deviation of the initial weights of each "
          "head's final convolution", ABOVE_0, T),
    Field("model.init_from", "", "initial weights: a name such as torchvision:resnet50 "
          "(import-weights --list prints all), a .safetensors, .pth or .pkl file, or a workdir",
          ANY, T),

    Field("anchors.scale", 4.0, "smallest anchor size of a level, divided by its stride; 4: 32 px "
          "on P3 to 512 px on P7", ABOVE_0, W),
    Field("anchors.octaves", (0.0, 1 / 3, 2 / 3), "anchor sizes of a level: the smallest size "
          "times 2 to the power of each value", SOME, W),
    Field("anchors.ratios", (0.5, 1.0, 2.0), "aspect ratios, height / width", SOME_POSITIVE, W),
    Field("anchors.offset", 0.0, "anchor centres at (k + offset) · stride; 0: Detectron2, 0.5: TF "
          "Model Garden", SHARE, W),
    Field("anchors.order", "size_major", "order of the anchors in a cell: size_major, or "
          "ratio_major (torchvision)", one_of("size_major", "ratio_major"), W),
    Field("anchors.rounded", False, "round base anchors to whole pixels (torchvision)", ANY, W),
    Field("anchors.truncate_sizes", False, "truncate anchor sizes to whole pixels, like "
          "torchvision's int(x · 2^⅓)", ANY, W),
    Field("anchors.stride_from", "level", "anchor stride: level (2^level), or grid: input size // "
          "grid size (torchvision)", one_of("level", "grid"), W),

    Field("matching.kind", "iou", "rule that matches anchors to boxes: iou (section 4), or atss "
          "(arXiv:1912.02424): the anchors nearest to the centre of a box whose IoU reaches the "
          "mean plus the standard deviation of theirs, and whose centres lie inside the box",
          one_of("iou", "atss"), T),
    Field("matching.foreground_iou", 0.5,
          "iou: smallest IoU with a box for which an anchor is foreground", SHARE, T),
    Field("matching.background_iou", 0.4, "iou: IoU below which an anchor is background; from here "
          "up to foreground_iou, it is ignored; iou and atss: share of a background anchor from "
          "which a crowd that covers it makes it ignored", SHARE, T),
    Field("matching.low_quality", True, "iou: also match each box to its best anchors, at any IoU "
          "above 0 (torchvision, Detectron2)", ANY, T),
    Field("matching.atss_candidates", 9, "atss: number of places per level, those nearest to the "
          "centre of a box, whose anchors are its candidates", ABOVE_0, T),

    Field("coder.weights", (1.0, 1.0, 1.0, 1.0),
          "factors that multiply dx, dy, dw and dh in encoding", positive(4), W),
    Field("coder.clamp", math.log(1000 / 16), "upper limit of dw and dh in decoding (torchvision, "
          "Detectron2)", ABOVE_0, TS),

    Field("loss.classification", "focal", "classification loss: "
          + ", ".join(CLASSIFICATION_LOSSES) + "; qfl (arXiv:2006.04388) trains the score of a "
          "class to be the IoU of the box, and weights the box loss with it",
          one_of(*CLASSIFICATION_LOSSES), TS),
    Field("loss.alpha", 0.25, "weight of the foreground; the weight of the background is "
          "1 - alpha", SHARE, T),
    Field("loss.gamma", 2.0, "focusing exponent (qfl: beta); 0: balanced cross entropy", FROM_0, T),
    Field("loss.beta", 1.0, "focal_star: shift of the logit (appendix A)", ANY, T),
    Field("loss.ohem_examples", 128, "ohem: anchors selected per image", ABOVE_0, T),
    Field("loss.ohem_nms_iou", 0.5,
          "ohem: IoU above which NMS drops the anchor with the lower loss; "
          "1: no NMS", SHARE, T),
    Field("loss.ohem_negatives", 0.0,
          "ohem: background anchors per foreground anchor; 3 gives the paper's 1:3; "
          "0: no fixed ratio", FROM_0, T),
    Field("loss.normalizer", "foreground", "divisor of the losses: foreground, foreground_plus_1, "
          "per_image or ema", one_of("foreground", "foreground_plus_1", "per_image", "ema"), T),
    Field("loss.ema_initial", 100.0, "ema: initial number of foreground anchors per batch "
          "(Detectron2)", ABOVE_0, T),
    Field("loss.ema_momentum", 0.9, "ema: weight of the old value when the average is updated",
          SHARE, T),
    Field("loss.box", "smooth_l1", "box loss: smooth_l1 (paper), l1 (torchvision v1, Detectron2), "
          "giou (torchvision v2), diou, ciou, or dfl: giou of boxes whose sides are predicted as "
          "distributions, and the distribution focal loss (arXiv:2006.04388)",
          one_of(*BOX_LOSSES), TS),
    Field("loss.dfl_weight", 0.25, "dfl: weight of the distribution focal loss in the total loss",
          FROM_0, T),
    Field("loss.dfl_bins", 16, "dfl: the largest distance from an anchor's centre to a side of its "
          "box, in strides of the level", ABOVE_0, W),
    Field("loss.smooth_l1_beta", 0.11, "beta of smooth L1 (Detectron's 1/9, to two digits)",
          FROM_0, T),
    Field("loss.box_weight", 1.0, "weight of the box loss in the total loss", FROM_0, T),

    Field("optimizer.learning_rate", 0.01, "peak learning rate at a batch size of "
          "learning_rate_batch", ABOVE_0, T),
    Field("optimizer.learning_rate_batch", 16, "batch size, images, for which learning_rate is "
          "given; the learning rate is scaled linearly to train.batch_size; 0: no scaling",
          FROM_0, T),
    Field("optimizer.name", "sgd", "sgd, or adamw (torchvision v2), with decoupled weight decay",
          one_of("sgd", "adamw"), T),
    Field("optimizer.momentum", 0.9, "momentum of sgd", SHARE, T),
    Field("optimizer.weight_decay", 1e-4, "weight decay of kernels, and of biases if decay_biases",
          FROM_0, T),
    Field("optimizer.decay_biases", True, "also decay biases of convolutions (Detectron2)", ANY, T),
    Field("optimizer.clip_norm", 0.0, "gradients with a larger global norm are scaled down to this "
          "norm; 0: no clipping", FROM_0, T),
    Field("optimizer.schedule", "step", "learning-rate schedule: step; cosine, which reaches 0 "
          "at train.steps; or plateau, which decays when AP no longer improves",
          one_of("step", "cosine", "plateau"), T),
    Field("optimizer.decay_at", (60_000, 80_000), "steps at which the step schedule multiplies "
          "the learning rate by decay_factor", numbers(), T),
    Field("optimizer.decay_factor", 0.1, "factor by which the step and plateau schedules multiply "
          "the learning rate at each decay", SHARE, T),
    Field("optimizer.plateau_patience", 2, "plateau: number of consecutive evaluations (every "
          "eval.every steps) without a new best AP after which the learning rate decays; counts "
          "from the first AP above 0, and anew after each decay", ABOVE_0, T),
    Field("optimizer.warmup_steps", 1000, "steps of linear warm-up, starting at warmup_factor",
          FROM_0, T),
    Field("optimizer.warmup_factor", 0.001,
          "learning rate at step 0, as a fraction of the peak", SHARE, T),

    Field("train.steps", 90_000, "total number of steps", ABOVE_0, T),
    Field("train.patience", 0, "number of consecutive evaluations (every eval.every steps) without "
          "a new best AP after which training ends; counts from the first AP above 0; 0: train "
          "for all steps", FROM_0, T),
    Field("train.batch_size", 16, "global batch size: images per step on all devices of all hosts",
          ABOVE_0, T),
    Field("train.accumulate", 1, "number of micro-batches per step; a device holds the "
          "activations of one micro-batch at a time; the update is the same up to rounding, except "
          "that batch norm uses the statistics of each micro-batch", ABOVE_0, T),
    Field("train.ema", 0.0, "decay of a moving average of the weights, such as 0.9998; evaluation "
          "and export use the average; early steps use at most (1 + step) / (10 + step), as in "
          "TensorFlow; 0: no average", DECAY, T),
    Field("train.precision", "bfloat16", "precision of the network's arithmetic; weights and "
          "losses are float32", one_of("float32", "bfloat16"), TS),
    Field("train.log_every", 20, "steps between log entries", ABOVE_0),
    Field("train.checkpoint_every", 1000, "steps between checkpoints", ABOVE_0),
    Field("train.keep_checkpoints", 2,
          "number of most recent checkpoints to keep; the best by AP is "
          "always kept, too", ABOVE_0),
    Field("train.on_nonfinite", "stop", "reaction to a non-finite loss or gradient: stop; skip "
          "(discard the update); or rollback (return to the last checkpoint, and leave out that "
          "step)",
          one_of("stop", "skip", "rollback"), T),
    Field("train.watchdog", 1800.0, "seconds without progress, not counting compilation, after "
          "which the run prints the stacks of all threads and exits with code 1; 0: never", FROM_0),
    Field("train.compilation_cache", True, "store compiled programs in $RETINA_JAX_CACHE (or next "
          "to a gs:// workdir, or in the user's cache folder), so that a restart does not compile "
          "them again"),
    Field("train.max_skipped", 20, "number of consecutive skipped or left-out steps after which "
          "training ends; 0: no limit", FROM_0),

    Field("eval.every", 10_000, "steps between evaluations; 0: only at the end", FROM_0),
    Field("eval.batch_size", 16, "global batch size: images per step on all devices of all hosts",
          ABOVE_0),
    Field("eval.checkpoint", "latest", "checkpoint that evaluate reads: latest or best",
          one_of("latest", "best")),
    Field("eval.score_threshold", 0.05, "detections with this score or a lower one are dropped",
          SHARE, S),
    Field("eval.top_k", 1000, "maximum number of candidates per level before NMS", ABOVE_0, S),
    Field("eval.nms_iou", 0.5, "IoU above which NMS drops the lower-scoring of two boxes of a "
          "class", SHARE, S),
    Field("eval.nms_device", "host", "where NMS runs, with the same result: host (in threads), "
          "or device (only hard NMS within each class)", one_of("host", "device")),
    Field("eval.nms", "hard", "what NMS does to overlapping boxes: hard drops them, soft lowers "
          "their scores (arXiv:1704.04503)", one_of("hard", "soft"), S),
    Field("eval.soft_nms", "gaussian", "soft: factor that multiplies a score; gaussian: "
          "exp(-IoU² / soft_sigma); linear: 1 - IoU if the IoU exceeds nms_iou",
          one_of("gaussian", "linear"), S),
    Field("eval.soft_sigma", 0.5, "soft: sigma of the gaussian factor", ABOVE_0, S),
    Field("eval.class_agnostic", False, "apply NMS across classes instead of within each "
          "class", ANY, S),
    Field("eval.cut_boxes", "before_nms", "when to clip boxes to the image: before_nms, or "
          "after_nms (Detectron2)", one_of("before_nms", "after_nms"), S),
    Field("eval.max_detections", 100, "maximum number of detections per image", ABOVE_0, S),
    Field("eval.limits", (1, 10, 100), "maximum numbers of detections per class and image that the "
          "COCO metrics count (maxDets); AP uses the last", LIMITS, S),
    Field("eval.engine", "hotcoco", "hotcoco, or pycocotools, the reference implementation",
          one_of("hotcoco", "pycocotools")),
    Field("eval.pictures", 12, "number of images to draw with ground truth next to "
          "detections; 0: none",
          FROM_0),
    Field("eval.report", True, "after each evaluation, write report.html: one page with tables, "
          "curves, kinds of error and images"),
)
# fmt: on
BY_NAME = {field.name: field for field in FIELDS}


def default_config() -> ml_collections.ConfigDict:
    """The paper's RetinaNet: ResNet-50-FPN, 800 px, batch size 16, 90,000 steps; locked."""
    config = RecordingConfig()
    for field in FIELDS:
        group, _, name = field.name.rpartition(".")
        if group and group not in config:
            config[group] = RecordingConfig()
        (config[group] if group else config)[name] = field.default
    return config.forget().lock()


def depending(dependent: str) -> tuple[str, ...]:
    """Names of the fields that affect ``dependent``, one of `DEPENDENTS`."""
    return tuple(field.name for field in FIELDS if dependent in field.depends.split())
