"""benchmark depthwise: the layers it times are the network's."""

import jax
import jax.numpy as jnp
import pytest

from retina_jax.benchmarks.depthwise import layers_of, time_depthwise
from retina_jax.config import default_config
from retina_jax.errors import UserError
from retina_jax.models import depthwise, layers, retinanet


def config_of(backbone="mobilenet_v2"):
    config = default_config()
    config.model.backbone = backbone
    config.data.buckets = ((64, 96),)
    config.train.batch_size = 2
    config.train.precision = "float32"
    return config


def test_its_layers_are_those_of_the_network(monkeypatch):
    seen = []

    def noted(x, kernel, stride):
        seen.append((x.shape, stride))
        return depthwise.grouped_convolution(x, kernel, stride)

    monkeypatch.setattr(layers, "depthwise_conv_3x3", noted)
    config = config_of()
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    jax.eval_shape(lambda x: retinanet.build(config, 1).init(jax.random.key(0), x, False), images)
    assert layers_of(config) == list(dict.fromkeys(seen))


def test_figures_of_a_narrow_network():
    config = config_of()
    config.model.width = 8
    first = next(time_depthwise(config, runs=1))
    assert first["input"] == [2, 32, 48, 8]
    assert {n for n in first if n.endswith(("grouped", "chosen"))} == {
        f"{kind}_ms_{form}" for kind in ("forward", "gradients") for form in ("grouped", "chosen")
    }


def test_a_backbone_without_any_is_refused():
    with pytest.raises(UserError, match="resnet50 has no depthwise convolutions"):
        layers_of(config_of("resnet50"))
