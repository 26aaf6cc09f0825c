"""Draft."""
from retina_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = ""
    config.data.short_side, config.data.long_side = 256, 320
    config.data.buckets = ((256, 320),)
    config.data.max_boxes = 32

    config.model.backbone = "mobilenet_v2"
    config.model.init_from = "/work/shared/weights/mobilenet_v2-b0353104.pth"
    config.model.norm = "frozen"
    config.model.frozen_stages = 2
    config.model.head_norm = "group"
    config.model.fpn_channels = config.model.head_channels = 128
    config.model.head_convs = 2
    config.anchors.scale = 2.5

    config.loss.box = "giou"
    config.loss.box_weight = 2.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 10.0

    config.train.steps = 400
    config.train.batch_size = 8
    config.train.precision = "float32"
    config.train.log_every = 10
    config.train.checkpoint_every = 200
    config.eval.every = 0
    config.eval.batch_size = 8
    config.eval.report = False
    config.eval.pictures = 0
    return config
