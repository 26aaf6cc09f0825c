"""RetinaNet with ResNet-18, from scratch, on your own data; classes come from the data set.

    retina-jax prepare coco --images DIR --annotations train.json --annotations val.json \\
        --out DATA
    retina-jax train --config=experiments/custom.py --config.data.dir=DATA --workdir=DIR

Tuned for a few hundred images without pretrained weights: batch norm in the backbone and group norm
in the heads allow a high learning rate.
"""

from retina_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = ""  # the only data set under data.dir
    config.data.short_side, config.data.long_side = 256, 320

    config.model.backbone = "resnet18"
    config.model.norm = "batch"
    config.model.head_norm = "group"

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
