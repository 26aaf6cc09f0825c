"""RetinaNet fitted to your own data: image sizes, anchors and steps come from the data set.

    retina-jax train --data=DIR_OR_JSON --workdir=DIR     # --config=experiments/finetune.py

The values that were fitted are printed before step 0.
"""

from retina_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = ""  # the only data set under data.dir
    config.data.fit = True

    config.model.backbone = "resnet18"
    config.model.norm = "batch"
    config.model.head_norm = "group"

    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 10.0

    config.train.batch_size = 8
    config.train.precision = "float32"
    config.train.log_every = 10
    config.eval.batch_size = 8
    return config
