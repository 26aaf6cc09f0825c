"""A small RetinaNet on the embedded data set; trains in minutes on two CPU cores.

    retina-jax train --config=experiments/shapes.py --workdir=runs/shapes
    retina-jax train --config=experiments/shapes.py:gfl --workdir=runs/gfl     (the quickstart)

Append :gfl for one anchor per cell, ATSS and the Generalized Focal Loss (arXiv:2006.04388) on the
same network, with random colours. Expected on the validation split: AP 0.65 to 0.67; with :gfl,
0.74.
"""

from retina_jax.config import default_config

LOSSES = ("paper", "gfl")


def get_config(losses="paper"):
    if losses not in LOSSES:
        raise ValueError(f"experiments/shapes.py:{losses} must be :paper or :gfl")
    config = default_config()
    config.data.name = "shapes"
    config.data.short_side = config.data.long_side = 128
    config.data.buckets = ((128, 128),)
    config.data.max_boxes = 16

    config.model.width = 32
    config.model.backbone = "resnet18"
    config.model.norm = "batch"
    config.model.fpn_channels = config.model.head_channels = 64
    config.model.head_convs = 2
    config.model.head_norm = "group"  # else initial weights of std 0.01 shrink activations to 0
    config.anchors.scale = 2.0  # objects have 10 to 80 px: anchors of 16 px and up

    if losses == "gfl":
        config.data.augmentation = "light"
        config.anchors.octaves = (0.0,)
        config.anchors.ratios = (1.0,)
        config.anchors.scale = 4.0  # 32 px on P3; ATSS adapts to smaller objects
        config.matching.kind = "atss"
        config.loss.classification = "qfl"
        config.loss.box = "dfl"
        config.loss.box_weight = 2.0

    config.optimizer.learning_rate = 0.3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 300
    config.optimizer.weight_decay = 5e-4  # against overfitting: many epochs of 1,200 images
    config.optimizer.clip_norm = 10.0

    config.train.steps = 2000
    config.train.batch_size = 8
    config.train.precision = "float32"
    config.train.checkpoint_every = 500
    config.eval.every = 1000
    config.eval.batch_size = 16
    return config
