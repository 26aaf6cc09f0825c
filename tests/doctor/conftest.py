"""The config of the small data sets."""

import pytest

from retina_jax.config import default_config


@pytest.fixture
def config():
    config = default_config()
    config.data.short_side, config.data.long_side = 96, 160
    config.data.buckets = ((96, 160), (160, 96))
    config.train.batch_size = 4
    return config
