"""Detectron2's RetinaNet R_50_FPN on COCO; append :1x or :3x to choose the schedule.

    retina-jax train --config=experiments/coco_detectron2.py:3x \\
        --config.data.dir=DATA --workdir=DIR \\
        --config.model.init_from=detectron2:MSRA/R-50 --trust

The default is 1x. Weights: Detectron2's ImageNetPretrained/MSRA/R-50.pkl, for which no hash is
published (--trust). To evaluate a detector from its model zoo:

    retina-jax import-weights --config=experiments/coco_detectron2.py \\
        --config.data.dir=DATA --weights=detectron2:retinanet_R_50_FPN_1x --out=DIR
    retina-jax evaluate --config=experiments/coco_detectron2.py \\
        --config.data.dir=DATA --workdir=DIR

Hardware: 8 GPUs or TPU cores, two images each. Expected on val2017: AP 37.4 (1x), 38.7 (3x)
(Detectron2's model zoo). The loss normaliser differs: Detectron2 averages the foreground anchors
of one GPU (two of sixteen images), this program those of the global batch. The moving average
therefore starts further from its final value, and reaches it within the warm-up.
"""

from retina_jax.config import default_config

SCHEDULES = {"1x": (90_000, (60_000, 80_000)), "3x": (270_000, (210_000, 250_000))}


def get_config(schedule="1x"):
    if schedule not in SCHEDULES:
        raise ValueError(f"experiments/coco_detectron2.py:{schedule} must be :1x or :3x")
    config = default_config()
    config.data.drop_empty = True
    config.data.train_short_sides = (640, 672, 704, 736, 768, 800)
    config.data.antialias = True
    config.data.pixel_order = "BGR"
    config.data.mean = (103.53, 116.28, 123.675)
    config.data.std = (1.0, 1.0, 1.0)
    config.model.stride_in_1x1 = True
    config.model.frozen_stages = 2
    config.loss.normalizer = "ema"
    config.loss.box = "l1"
    config.train.steps, config.optimizer.decay_at = SCHEDULES[schedule]
    config.eval.cut_boxes = "after_nms"
    return config
