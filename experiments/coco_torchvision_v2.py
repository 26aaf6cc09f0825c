"""torchvision's retinanet_resnet50_fpn_v2 on COCO: v1 with GroupNorm heads, GIoU and AdamW.

    retina-jax train --config=experiments/coco_torchvision_v2.py \\
        --config.data.dir=DATA --workdir=DIR --config.model.init_from=torchvision:resnet50

Weights: torchvision's ImageNet ResNet-50; batch norm is trained above the frozen stages. To
evaluate torchvision's published detector (torchvision:retinanet_resnet50_fpn_v2), follow v1.
Hardware: 8 GPUs or TPU cores, two images each. Expected: AP 41.5 on val2017 (torchvision's model
page, RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1).
"""

from retina_jax.config import default_config

STEPS_PER_EPOCH = 117_266 / 16  # images with boxes / batch size


def get_config():
    config = default_config()
    config.data.labels = "category_ids"
    config.data.rounding = "floor"
    config.data.float_pixels = True
    config.data.drop_empty = True
    config.data.train_short_sides = tuple(range(480, 801, 32))
    config.anchors.order = "ratio_major"
    config.anchors.rounded = config.anchors.truncate_sizes = True
    config.anchors.stride_from = "grid"
    config.model.norm = "batch"
    config.model.head_norm = "group"
    config.model.frozen_stages = 2
    config.loss.normalizer = "per_image"
    config.loss.box = "giou"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_at = (round(16 * STEPS_PER_EPOCH), round(22 * STEPS_PER_EPOCH))
    config.train.steps = round(26 * STEPS_PER_EPOCH)
    config.eval.max_detections = 300
    return config
