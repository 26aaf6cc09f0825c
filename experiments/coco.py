"""RetinaNet of the paper on COCO: ResNet-50-FPN, 800 px, batch 16, 90,000 steps.

    python scripts/prepare.py coco --out DATA \\
        --images train2017 --annotations annotations/instances_train2017.json \\
        --images val2017 --annotations annotations/instances_val2017.json
    python -m retina_jax.main --config=experiments/coco.py --config.data.dir=DATA --workdir=DIR \\
        --config.model.init_from=WORKDIR

Hardware: 8 TPU cores or 8 GPUs of 16 GB, two images each. Expected with an ImageNet backbone:
AP 35.7 on minival (arXiv:1708.02002, table 1e, ResNet-50 at 800 px).
"""

from retina_jax.config import default_config


def get_config():
    return default_config()  # the defaults are the paper's
