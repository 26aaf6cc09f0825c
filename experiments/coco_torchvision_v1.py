"""torchvision's retinanet_resnet50_fpn on COCO: its differences from the paper.

    retina-jax train --config=experiments/coco_torchvision_v1.py \\
        --config.data.dir=DATA --workdir=DIR --config.model.init_from=torchvision:resnet50

Weights: torchvision's ImageNet ResNet-50. To evaluate torchvision's published detector instead:

    retina-jax import-weights --config=experiments/coco_torchvision_v1.py \\
        --config.model.norm_eps=0 --config.data.dir=DATA \\
        --weights=torchvision:retinanet_resnet50_fpn --out=DIR
    retina-jax evaluate --config=experiments/coco_torchvision_v1.py \\
        --config.model.norm_eps=0 --config.data.dir=DATA --workdir=DIR

Hardware: 8 GPUs or TPU cores, two images each. Expected: AP 36.4 on val2017 (torchvision's model
page, RetinaNet_ResNet50_FPN_Weights.COCO_V1).
"""

from retina_jax.config import default_config

STEPS_PER_EPOCH = 117_266 / 16  # images with boxes / batch size


def get_config():
    config = default_config()
    config.data.labels = "category_ids"
    config.data.rounding = "floor"
    config.data.float_pixels = True
    config.data.drop_empty = True
    config.anchors.order = "ratio_major"
    config.anchors.rounded = config.anchors.truncate_sizes = True
    config.anchors.stride_from = "grid"
    config.model.frozen_stages = 2
    config.model.p6_from = "P5"
    config.loss.normalizer = "per_image"
    config.loss.box = "l1"
    config.optimizer.decay_at = (round(16 * STEPS_PER_EPOCH), round(22 * STEPS_PER_EPOCH))
    config.train.steps = round(26 * STEPS_PER_EPOCH)
    config.eval.max_detections = 300
    return config
