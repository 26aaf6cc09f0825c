"""RetinaNet on MobileNetV2, fine-tuned from ImageNet weights and fitted to your data.

    retina-jax train --data=DIR_OR_JSON --workdir=DIR
    retina-jax train --config=experiments/finetune.py --config.data.dir=DATA --workdir=DIR

For data sets of a few hundred to some thousands of images. `data.fit` chooses image sizes and the
number of steps from the data set, and prints them before step 0. The other values were chosen by
measurement (experiments/results/finetuning.md). There is one anchor per cell: ATSS matches it, and
the Generalized Focal Loss (arXiv:2006.04388) trains it, whatever the sizes of the objects. Append
:focal for the paper's focal loss and several anchors, which `data.fit` chooses as well.
"""

from retina_jax.config import default_config

LOSSES = ("gfl", "focal")


def get_config(losses="gfl"):
    if losses not in LOSSES:
        raise ValueError(f"experiments/finetune.py:{losses} must be :gfl or :focal")
    config = default_config()
    config.data.name = ""  # the only data set under data.dir
    config.data.fit = True
    config.data.augmentation = "light"

    config.model.backbone = "mobilenet_v2"
    config.model.init_from = "torchvision:mobilenet_v2"
    config.model.norm = "batch"
    config.model.frozen_stages = 1
    config.model.fpn_channels = config.model.head_channels = 128
    config.model.head_convs = 2
    config.model.head_norm = "group"

    config.loss.box_weight = 2.0
    if losses == "gfl":
        config.anchors.octaves = (0.0,)
        config.anchors.ratios = (1.0,)
        config.matching.kind = "atss"
        config.loss.classification = "qfl"
        config.loss.box = "dfl"
    else:
        config.loss.box = "giou"

    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 10.0

    config.train.batch_size = 8
    config.train.precision = "float32"
    config.train.log_every = 10
    config.eval.batch_size = 8
    return config
