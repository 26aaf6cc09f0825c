"""ATSS with ResNet-50-FPN on COCO, one anchor at each place, 1x (arXiv:1912.02424).

    retina-jax train --config=experiments/coco_atss.py \\
        --config.data.dir=DATA --workdir=DIR \\
        --config.model.init_from=detectron2:MSRA/R-50 --trust

RetinaNet's network with another rule of matching (matching.kind=atss), one square anchor instead of
nine, group norm in the heads, GIoU, centerness and a learned scale for each level. Weights:
Detectron2's ImageNetPretrained/MSRA/R-50.pkl, for which no hash is published (--trust): the authors
start from the same Caffe2 weights. Hardware: 8 GPUs or TPU cores, two images each.

Expected: AP 39.3 on val2017 (ATSS_R_50_FPN_1x in the table of https://github.com/sfzhang15/ATSS; AP
39.3 on test-dev as well). This program has not been trained on COCO. It differs from the authors'
code, given in parentheses, in a few details: boxes are half-open (widths count one pixel more), the
warm-up is linear over 1,000 steps (500 steps at a third of the learning rate), a convolution before
a norm has no bias (it has one), and eval.score_threshold is compared with the final score (with the
class probability alone).
"""

from retina_jax.config import default_config


def get_config():
    config = default_config()
    config.data.pixel_order = "BGR"
    config.data.mean = (103.53, 116.28, 123.675)
    config.data.std = (1.0, 1.0, 1.0)
    config.model.stride_in_1x1 = True
    config.model.frozen_stages = 2
    config.model.p6_from = "P5"
    config.model.head_norm = "group"
    config.model.centerness = True
    config.model.box_scale_per_level = True
    config.anchors.scale = 8.0
    config.anchors.octaves = (0.0,)
    config.anchors.ratios = (1.0,)
    config.matching.kind = "atss"
    config.coder.weights = (10.0, 10.0, 5.0, 5.0)
    config.loss.box = "giou"
    config.loss.box_weight = 2.0
    config.eval.nms_iou = 0.6
    return config
