"""The one place where a field is born: its default, its unit and its source.

Experiments are `default_config()` plus deltas; `validate` refuses what cannot work before
anything is compiled; `resolve` computes what follows from the fields. The defaults are the
paper's where it names a value (arXiv:1708.02002, section 4), else what Detectron2 does.
"""

from __future__ import annotations

import dataclasses
import math

import ml_collections

from retina_jax.errors import UserError

BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2"),
)

CLASSIFICATION_LOSSES = (
    "focal", "cross_entropy", "balanced_cross_entropy", "focal_star", "softmax_focal", "ohem"
)  # fmt: skip


def default_config() -> ml_collections.ConfigDict:
    """RetinaNet as in the paper: ResNet-50-FPN at 800 px, batch 16, 90,000 steps."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order and augmentation

    config.data = data = ml_collections.ConfigDict()
    data.dir = ""  # where TFDS keeps data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.name = "coco"  # data set under dir; empty: the only one there
    data.train_split = "train"
    data.eval_split = "validation"
    data.short_side = 800  # pixels; a picture is scaled until its short side has these ...
    data.long_side = 1333  # ... unless its long side would pass this
    data.buckets = ((800, 1344), (1344, 800))  # (height, width) of the input; a program each
    data.max_boxes = 100  # boxes kept for each image, crowds included (COCO's largest has 93)
    data.flip = True  # mirror half of the training images
    data.train_short_sides = ()  # training draws one in the place of short_side: (640, …, 800)
    data.scale_range = (1.0, 1.0)  # training scales by a further factor, and crops (LSJ: 0.1, 2.0)
    data.min_visible = 0.0  # a box goes when a crop leaves less than this share of its area
    data.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue: ± of each
    data.drop_empty = False  # leave training images without a box (crowds aside) out
    data.labels = "dense"  # 0, 1, …; or category_ids: a class slot for every id up to the largest
    data.float_pixels = False  # resize in floating point (torchvision): 4 times the bytes to move
    data.rounding = "nearest"  # of a resized picture's sides; or floor (torchvision)
    data.antialias = False  # shrink with Pillow's widened bilinear (Detectron2), not OpenCV's
    data.pixel_order = "RGB"  # or BGR: what the network is given
    data.mean = (123.675, 116.28, 103.53)  # 0 to 255, in pixel_order: ImageNet's
    data.std = (58.395, 57.12, 57.375)
    data.num_workers = 0  # processes that read and decode; 0: threads of this one

    config.model = model = ml_collections.ConfigDict()
    model.backbone = "resnet50"  # resnet, resnext or wide_resnet by torchvision's names
    model.width = 64  # channels of the stem; every stage follows
    model.stride_in_1x1 = False  # a bottleneck halves in its first 1x1 (Caffe's weights)
    model.frozen_stages = 0  # 1: the stem stays as given; 2: C2 too (peers); … 5
    model.remat = False  # compute blocks anew for the gradient: less memory, more time
    model.norm = "frozen"  # of the backbone: frozen, batch (over all devices) or group
    model.norm_eps = 1e-5  # 0 for torchvision's shipped RetinaNet v1
    model.norm_momentum = 0.9  # of batch statistics: weight of the past
    model.fpn_channels = 256
    model.p6_from = "C5"  # C5 (paper) or P5 (torchvision v1)
    model.head_convs = 4
    model.head_channels = 256
    model.head_norm = "none"  # none (paper), group (torchvision v2) or batch (each level's own)
    model.class_specific_boxes = False  # a box for each class instead of one for all (section 4)
    model.prior = 0.01  # probability of an object at step 0
    model.predictor_std = 0.01  # of the last convolution's first weights
    model.init_from = ""  # weights to start from: .safetensors, .pth, .pkl or a workdir

    config.anchors = anchors = ml_collections.ConfigDict()
    anchors.scale = 4.0  # smallest anchor of a level over its stride: 32 to 512 px on P3 to P7
    anchors.octaves = (0.0, 1 / 3, 2 / 3)  # sizes of a level: 2 to these powers
    anchors.ratios = (0.5, 1.0, 2.0)  # height over width
    anchors.offset = 0.0  # centres at (k + offset) · stride: 0 Detectron2, 0.5 TF Model Garden
    anchors.order = "size_major"  # or ratio_major (torchvision)
    anchors.rounded = False  # base anchors to whole pixels (torchvision)
    anchors.truncate_sizes = False  # whole sizes, as torchvision's int(x · 2^⅓)
    anchors.stride_from = "level"  # or grid: input size // grid (torchvision)

    config.matching = matching = ml_collections.ConfigDict()
    matching.foreground_iou = 0.5
    matching.background_iou = 0.4  # between the two an anchor is ignored
    matching.low_quality = True  # every box claims its nearest anchors (all peers)

    config.coder = coder = ml_collections.ConfigDict()
    coder.weights = (1.0, 1.0, 1.0, 1.0)  # of dx, dy, dw, dh
    coder.clamp = math.log(1000 / 16)  # largest log scale that is decoded (peers)

    config.loss = loss = ml_collections.ConfigDict()
    loss.classification = "focal"  # or one of losses.CLASSIFICATION, such as ohem
    loss.alpha = 0.25  # weight of the foreground; 1 - alpha of the background
    loss.gamma = 2.0  # focusing exponent; 0 is balanced cross entropy
    loss.beta = 1.0  # focal_star: shift of the logit (appendix A)
    loss.ohem_examples = 128  # ohem: anchors of an image that train
    loss.ohem_nms_iou = 0.5  # ohem: of two that overlap more the harder stays; 1: both
    loss.ohem_negatives = 0.0  # ohem: background for each foreground anchor; 3: "1:3"; 0: any
    loss.normalizer = "foreground"  # or per_image, foreground_plus_1, ema: objective.normalize
    loss.ema_initial = 100.0  # ema: foreground anchors of a batch before the first (Detectron2)
    loss.ema_momentum = 0.9  # ema: weight of the past
    loss.box = "smooth_l1"  # smooth_l1 (paper), l1 (v1, Detectron2), giou (v2), diou or ciou
    loss.smooth_l1_beta = 0.11  # Detectron's 1/9 to two digits
    loss.box_weight = 1.0  # of the box loss in the sum

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 0.01  # peak, for a batch of learning_rate_batch images
    optimizer.learning_rate_batch = 16  # other batches scale it linearly; 0: take it as it is
    optimizer.name = "sgd"  # or adamw (torchvision v2), whose decay is off the gradient
    optimizer.momentum = 0.9  # of sgd
    optimizer.weight_decay = 1e-4  # off norms
    optimizer.decay_biases = True  # biases of convolutions too (Detectron2)
    optimizer.clip_norm = 0.0  # largest norm of the gradient; 0: no clipping
    optimizer.schedule = "step"  # step or cosine (to zero at train.steps)
    optimizer.decay_at = (60_000, 80_000)  # steps at which "step" multiplies by decay_factor
    optimizer.decay_factor = 0.1
    optimizer.warmup_steps = 1000  # linear, from warmup_factor (peers)
    optimizer.warmup_factor = 0.001

    config.train = train = ml_collections.ConfigDict()
    train.steps = 90_000
    train.batch_size = 16  # images over all devices of all hosts
    train.precision = "bfloat16"  # of the network's arithmetic; weights and losses are float32
    train.log_every = 20  # steps
    train.checkpoint_every = 1000  # steps
    train.keep_checkpoints = 2  # the latest, beside the best by AP
    train.on_nonfinite = "stop"  # or skip: leave the update out and go on

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.every = 10_000  # steps; 0: at the end alone
    evaluation.batch_size = 16  # images over all devices
    evaluation.checkpoint = "latest"  # or best: what --mode=evaluate reads
    evaluation.score_threshold = 0.05
    evaluation.top_k = 1000  # candidates of a level before NMS
    evaluation.nms_iou = 0.5
    evaluation.cut_boxes = "before_nms"  # to the picture; or after_nms (Detectron2)
    evaluation.max_detections = 100  # of an image
    evaluation.engine = "hotcoco"  # or pycocotools, the arbiter
    evaluation.pictures = 12  # images drawn with ground truth beside detections; 0: none
    return config.lock()


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What follows from the fields."""

    learning_rate: float
    """Peak, for the batch at hand."""
    anchors_per_place: int


def resolve(config: ml_collections.ConfigDict) -> Resolved:
    """Derived values; call it after the flags are in."""
    optimizer = config.optimizer
    scale = 1.0
    if optimizer.learning_rate_batch:
        scale = config.train.batch_size / optimizer.learning_rate_batch
    return Resolved(
        learning_rate=optimizer.learning_rate * scale,
        anchors_per_place=len(config.anchors.octaves) * len(config.anchors.ratios),
    )


def leaves(config: ml_collections.ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """Every field of a config, or of its JSON, as ``{"train.steps": 90000, …}``."""
    found = {}
    for key, value in config.items():
        if isinstance(value, (ml_collections.ConfigDict, dict)):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


_POSITIVE = (
    "data.short_side data.long_side data.max_boxes model.width model.fpn_channels "
    "model.head_channels model.predictor_std coder.clamp loss.ohem_examples loss.ema_initial "
    "anchors.scale optimizer.learning_rate train.steps train.batch_size "
    "train.log_every train.checkpoint_every train.keep_checkpoints eval.batch_size eval.top_k "
    "eval.max_detections"
).split()
_NOT_NEGATIVE = (
    "seed data.num_workers model.head_convs model.norm_eps loss.ohem_negatives loss.gamma "
    "loss.smooth_l1_beta loss.box_weight "
    "optimizer.learning_rate_batch optimizer.weight_decay optimizer.clip_norm "
    "optimizer.warmup_steps eval.every eval.pictures"
).split()
_SHARES = (
    "data.min_visible model.norm_momentum loss.alpha loss.ohem_nms_iou loss.ema_momentum "
    "matching.foreground_iou matching.background_iou optimizer.momentum "
    "optimizer.warmup_factor optimizer.decay_factor eval.score_threshold eval.nms_iou "
    "anchors.offset"
).split()
_NUMBERS = (
    "data.mean data.std data.train_short_sides data.scale_range data.color_jitter "
    "anchors.octaves anchors.ratios coder.weights optimizer.decay_at"
).split()
_CHOICES = {
    "model.backbone": BACKBONES,
    "model.norm": ("frozen", "batch", "group"),
    "model.p6_from": ("C5", "P5"),
    "model.head_norm": ("none", "group", "batch"),
    "model.frozen_stages": (0, 1, 2, 3, 4, 5),
    "data.labels": ("dense", "category_ids"),
    "data.rounding": ("nearest", "floor"),
    "data.pixel_order": ("RGB", "BGR"),
    "anchors.order": ("size_major", "ratio_major"),
    "anchors.stride_from": ("level", "grid"),
    "loss.classification": CLASSIFICATION_LOSSES,
    "loss.normalizer": ("foreground", "foreground_plus_1", "per_image", "ema"),
    "loss.box": ("smooth_l1", "l1", "giou", "diou", "ciou"),
    "optimizer.name": ("sgd", "adamw"),
    "eval.cut_boxes": ("before_nms", "after_nms"),
    "optimizer.schedule": ("step", "cosine"),
    "train.precision": ("float32", "bfloat16"),
    "train.on_nonfinite": ("stop", "skip"),
    "eval.engine": ("hotcoco", "pycocotools"),
    "eval.checkpoint": ("latest", "best"),
}


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _refuse(name: str, value: object, rule: str, fix: object) -> None:
    raise UserError(f"config.{name}={value!r} {rule}; set --config.{name}={fix}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError`, naming the field, its value and the fix, for what cannot work."""
    default = leaves(default_config())
    given = leaves(config)
    if given.keys() != default.keys():
        odd = sorted(given.keys() ^ default.keys())[0]
        raise UserError(f"config.{odd} is not as in default_config(); build experiments from it")
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(name, value, "is not a finite number", default[name])
        if name in _NUMBERS and not all(_is_finite(v) for v in value):
            _refuse(name, value, "must hold finite numbers alone", f"'{default[name]}'")
    for name in _POSITIVE:
        if not given[name] > 0:
            _refuse(name, given[name], "must be above 0", default[name])
    for name in _NOT_NEGATIVE:
        if not given[name] >= 0:
            _refuse(name, given[name], "must be 0 or more", default[name])
    for name in _SHARES:
        if not 0 <= given[name] <= 1:
            _refuse(name, given[name], "must lie between 0 and 1", default[name])
    for name, choices in _CHOICES.items():
        if given[name] not in choices:
            _refuse(name, given[name], f"must be one of {', '.join(map(str, choices))}", choices[0])
    _validate_relations(config)


def _validate_relations(config: ml_collections.ConfigDict) -> None:
    if not 0 < config.model.prior < 1:
        _refuse("model.prior", config.model.prior, "must lie inside 0 and 1", 0.01)
    matching = config.matching
    if matching.background_iou > matching.foreground_iou:
        _refuse(
            "matching.background_iou",
            matching.background_iou,
            f"must not pass matching.foreground_iou={matching.foreground_iou}",
            matching.foreground_iou,
        )
    if config.data.long_side < config.data.short_side:
        _refuse(
            "data.long_side",
            config.data.long_side,
            f"must not be under data.short_side={config.data.short_side}",
            config.data.short_side,
        )
    given = leaves(config)
    for name, length in (("data.mean", 3), ("data.std", 3), ("coder.weights", 4)):
        value = given[name]
        if len(value) != length or (name != "data.mean" and not all(v > 0 for v in value)):
            fix = leaves(default_config())[name]
            _refuse(name, value, f"must be {length} numbers above 0", f"'{fix}'")
    low_high = given["data.scale_range"]
    if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
        _refuse("data.scale_range", low_high, "must be two factors, low and high", "'(1.0,1.0)'")
    if not all(side >= 1 for side in given["data.train_short_sides"]):
        sides = given["data.train_short_sides"]
        _refuse("data.train_short_sides", sides, "must be pixels, 1 or more", "'(640,800)'")
    jitter = given["data.color_jitter"]
    if len(jitter) != 4 or not all(0 <= v <= 1 for v in jitter) or jitter[3] > 0.5:
        rule = "must be four strengths of 0 to 1, the last (hue) 0.5 at most"
        _refuse("data.color_jitter", jitter, rule, "'(0.4,0.4,0.4,0.1)'")
    for name in ("octaves", "ratios"):
        value = config.anchors[name]
        if not value or (name == "ratios" and not all(v > 0 for v in value)):
            fix = leaves(default_config())[f"anchors.{name}"]
            _refuse(f"anchors.{name}", value, "must hold one number or more", f"'{fix}'")
    if config.data.float_pixels and config.data.antialias:
        rule = "resizes by OpenCV, which does not antialias"
        _refuse("data.float_pixels", True, rule, "False, or --config.data.antialias=False")
    if config.loss.classification == "focal_star" and not config.loss.gamma > 0:
        _refuse("loss.gamma", config.loss.gamma, "must be above 0 for focal_star", 2.0)
    if config.model.stride_in_1x1 and config.model.backbone in ("resnet18", "resnet34"):
        _refuse(
            "model.stride_in_1x1",
            True,
            f"has no 1x1 to halve in: {config.model.backbone} has basic blocks",
            False,
        )
    _validate_buckets(config.data.buckets)


def _validate_buckets(buckets: tuple) -> None:
    well_formed = isinstance(buckets, tuple) and buckets and all(
        isinstance(b, tuple) and len(b) == 2 and all(isinstance(v, int) for v in b)
        for b in buckets
    )  # fmt: skip
    if not well_formed:
        _refuse(
            "data.buckets", buckets, "must be pairs (height, width)", "'((800,1344),(1344,800))'"
        )
    for height, width in buckets:
        if height < 32 or width < 32 or height % 32 or width % 32:
            fix = tuple((max(32, -(-h // 32) * 32), max(32, -(-w // 32) * 32)) for h, w in buckets)
            _refuse("data.buckets", buckets, "must be multiples of 32 pixels", f"'{fix}'")
    if len(set(buckets)) != len(buckets):
        _refuse("data.buckets", buckets, "names a bucket twice", f"'{tuple(set(buckets))}'")


def notices(config: ml_collections.ConfigDict) -> list[str]:
    """What is allowed and yet worth a line before step 0."""
    found = []
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.warmup_steps >= steps:
        found.append(
            f"optimizer.warmup_steps={optimizer.warmup_steps} does not end within "
            f"train.steps={steps}: the learning rate never reaches its peak"
        )
    if optimizer.schedule == "step" and not any(at < steps for at in optimizer.decay_at):
        found.append(
            f"optimizer.decay_at={tuple(optimizer.decay_at)} lies beyond train.steps={steps}: "
            "the learning rate never decays"
        )
    if config.model.norm == "frozen" and not config.model.init_from:
        found.append(
            "model.norm=frozen without model.init_from: random weights are never normalised and "
            "learn badly; set --config.model.norm=batch to train from scratch"
        )
    if config.model.frozen_stages and not config.model.init_from:
        found.append(
            f"model.frozen_stages={config.model.frozen_stages} without model.init_from: random "
            "weights stay random there; set --config.model.frozen_stages=0 to train from scratch"
        )
    return found
