"""Generalized Focal Loss (GFL, arXiv:2006.04388) on COCO: ResNet-50-FPN, 1x, one anchor per cell.

    retina-jax train --config=experiments/coco_gfl.py --config.data.dir=DATA --workdir=DIR \\
        --config.model.init_from=torchvision:resnet50

ATSS matching, heads with group norm, scores trained to be the IoU of their boxes, and boxes whose
sides are distributions. The schedule is that of MMDetection, 12 epochs. Its batch norm has frozen
statistics but a trained scale and bias; here all of it is frozen. Hardware: 8 GPUs or TPU cores
with 16 GB, two images each. Expected: AP 40.2 on val2017 (MMDetection, configs/gfl/metafile.yml,
gfl_r50_fpn_1x_coco; the authors report 40.2 on minival and 40.3 on test-dev for GFL_R_50_FPN_1x,
github.com/implus/GFocal). Not trained with this program yet.
"""

from retina_jax.config import default_config

STEPS_PER_EPOCH = 117_266 / 16  # images with boxes / batch size


def get_config():
    config = default_config()
    config.data.drop_empty = True
    config.anchors.scale = 8.0
    config.anchors.octaves = (0.0,)
    config.anchors.ratios = (1.0,)
    config.matching.kind = "atss"
    config.model.frozen_stages = 2
    config.model.p6_from = "P5"
    config.model.head_norm = "group"
    config.model.box_scale_per_level = True
    config.loss.classification = "qfl"
    config.loss.box = "dfl"
    config.loss.box_weight = 2.0
    config.optimizer.warmup_steps = 500
    config.optimizer.decay_at = (round(8 * STEPS_PER_EPOCH), round(11 * STEPS_PER_EPOCH))
    config.train.steps = round(12 * STEPS_PER_EPOCH)
    config.eval.nms_iou = 0.6
    return config
