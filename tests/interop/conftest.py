"""Weights to move: other systems' own, and random ones of this project."""

from pathlib import Path

import jax
import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.config.backbones import BACKBONES
from retina_jax.models import retinanet

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def golden_weights():
    """The file of another system's weights; skips only where the folder is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared/golden")
    return lambda system: SHARED / "golden" / system / "weights.safetensors"


@pytest.fixture(scope="session")
def shared_weights():
    """The folder of published ImageNet weights; skips only where it is absent."""
    if not (SHARED / "weights").is_dir():
        pytest.skip("needs ../shared/weights")
    return SHARED / "weights"


@pytest.fixture(scope="session")
def config_of():
    """A config of a narrow network, with fields of ``model`` as given."""

    def make(**model):
        config = default_config()
        config.train.precision = "float32"
        narrow = {"width": 16, "fpn_channels": 32, "head_channels": 32}
        config.model.update({**narrow, **model})
        return config

    return make


@pytest.fixture(scope="session")
def random_weights():
    """Values without meaning, none twice, in the shapes of the network of a config."""

    traced = {}

    def shapes_of(config, classes):
        key = config.to_json(), classes, repr(BACKBONES[config.model.backbone])
        if key not in traced:
            model = retinanet.build(config, classes)
            images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
            traced[key] = jax.eval_shape(
                lambda k, x: model.init(k, x, False), jax.random.key(0), images
            )
        return dict(traced[key])

    def make(config, classes=3, seed=0):
        rng = np.random.default_rng(seed)
        shapes = shapes_of(config, classes)
        return {
            "batch_stats": {},
            **jax.tree.map(lambda s: rng.uniform(0.5, 1, s.shape).astype(np.float32), shapes),
        }

    return make
