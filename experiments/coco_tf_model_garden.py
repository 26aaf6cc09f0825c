"""TF Model Garden's retinanet_resnetfpn_coco: 640 × 640, batch 256, 72 epochs on COCO.

    retina-jax train --config=experiments/coco_tf_model_garden.py \\
        --config.data.dir=DATA --workdir=DIR --config.model.init_from=torchvision:resnet50

Weights: torchvision's ImageNet ResNet-50, because TF Model Garden's format cannot be read.
Hardware: 32 TPU cores or 16 large GPUs. Expected: AP 36.8 on val2017 (TF Model Garden, R50-FPN,
640, 72 epochs).

TF Model Garden uses a Huber loss with δ = 0.1, averaged over the four box deltas and weighted by
50. This equals smooth L1 with β = 0.1 and weight 50 · 0.1 / 4. Its normaliser counts the foreground
anchors of each replica; here it counts those of the global batch.
"""

from retina_jax.config import default_config

STEPS_PER_EPOCH = 118_287 // 256


def get_config():
    config = default_config()
    config.data.labels = "category_ids"
    config.data.short_side = config.data.long_side = 640
    config.data.buckets = ((640, 640),)
    config.data.scale_range = (0.8, 1.2)

    config.anchors.ratios = (2.0, 1.0, 0.5)  # theirs are width over height
    config.anchors.offset = 0.5
    config.matching.background_iou = 0.5
    config.coder.clamp = 88.0  # no effect: exp(88) is near the float32 limit

    config.model.p6_from = "P5"
    config.model.norm = config.model.head_norm = "batch"
    config.model.norm_momentum, config.model.norm_eps = 0.99, 1e-3
    config.model.predictor_std = 1e-5

    config.loss.gamma = 1.5
    config.loss.normalizer = "foreground_plus_1"
    config.loss.smooth_l1_beta = 0.1
    config.loss.box_weight = 1.25

    config.optimizer.learning_rate, config.optimizer.learning_rate_batch = 0.32, 256
    config.optimizer.decay_biases = False
    config.optimizer.warmup_steps = 500
    config.optimizer.warmup_factor = 0.0067 / 0.32
    config.optimizer.decay_at = (57 * STEPS_PER_EPOCH, 67 * STEPS_PER_EPOCH)
    config.train.batch_size = 256
    config.train.steps = 72 * STEPS_PER_EPOCH
    config.eval.top_k = 5000
    return config
