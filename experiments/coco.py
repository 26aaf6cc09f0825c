"""The paper's RetinaNet on COCO: ResNet-50-FPN, 800 px, batch 16, 90,000 steps.

    retina-jax prepare coco --out DATA \\
        --images train2017 --annotations annotations/instances_train2017.json \\
        --images val2017 --annotations annotations/instances_val2017.json
    retina-jax train --config=experiments/coco.py --config.data.dir=DATA --workdir=DIR \\
        --config.model.init_from=torchvision:resnet50

Weights: torchvision's ImageNet ResNet-50 (`resnet50-0676ba61.pth`), fetched once.
The stem and C2 stay frozen, as in the paper's code. Hardware: 8 TPU cores or 8 GPUs with 16 GB, two
images each. Expected: AP 35.7 on test-dev (arXiv:1708.02002, Table 1e, ResNet-50 at 800 px).
"""

from retina_jax.config import default_config


def get_config():
    config = default_config()  # the defaults are the paper's
    config.model.frozen_stages = 2
    return config
