"""A small RetinaNet on the embedded data set; trains in minutes on two CPU cores.

    retina-jax train --config=experiments/shapes.py --workdir=runs/shapes

Expected: AP 0.65 to 0.67 on its validation split.
"""

from retina_jax.config import default_config


def get_config():
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
