"""RetinaNet with ResNet-18, from scratch, on your own data; classes come from the data set.

    retina-jax prepare coco --images DIR --annotations train.json --annotations val.json \\
        --out DATA
    retina-jax train --config=experiments/custom.py --config.data.dir=DATA --workdir=DIR

Chosen on a few hundred images without pretrained weights. Batch norm in the backbone and group norm
in the heads allow a high learning rate. One anchor per cell, ATSS and the Generalized Focal Loss
(arXiv:2006.04388), in heads of half the width, reach a higher AP than the paper's heads, anchors
and losses, with a step that takes 0.4 of the time: AP 0.497 instead of 0.396 on blood cells after
400 steps (experiments/results/README.md). Append :paper for the paper's.
"""

from retina_jax.config import default_config

LOSSES = ("gfl", "paper")


def get_config(losses="gfl"):
    if losses not in LOSSES:
        raise ValueError(f"experiments/custom.py:{losses} must be :gfl or :paper")
    config = default_config()
    config.data.name = ""  # the only data set under data.dir
    config.data.short_side, config.data.long_side = 256, 320

    config.model.backbone = "resnet18"
    config.model.norm = "batch"
    config.model.head_norm = "group"

    if losses == "gfl":
        config.data.augmentation = "light"
        config.model.fpn_channels = config.model.head_channels = 128
        config.model.head_convs = 2
        config.anchors.octaves = (0.0,)
        config.anchors.ratios = (1.0,)
        config.matching.kind = "atss"
        config.loss.classification = "qfl"
        config.loss.box = "dfl"
        config.loss.box_weight = 2.0

    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 10.0

    config.train.steps = 2000
    config.train.batch_size = 8
    config.train.precision = "float32"
    config.train.log_every = 10
    config.train.checkpoint_every = 100
    config.eval.every = 500
    config.eval.batch_size = 8
    return config
