"""benchmark torchvision: the same network on both sides, and what it refuses."""

import pytest
from torchvision_cpu import import_torchvision

from retina_jax.benchmarks.peer import build_torchvision, check_comparable, time_beside_torchvision
from retina_jax.config import default_config
from retina_jax.errors import UserError
from retina_jax.models import retinanet
from retina_jax.training.step import variable_shapes


def whole_config():
    config = default_config()
    config.model.backbone = "resnet18"
    config.data.buckets = ((64, 64),)
    config.data.max_boxes = 10
    config.train.batch_size = 1
    config.train.precision = "float32"
    return config


@pytest.fixture
def torchvision():
    return import_torchvision()


def test_the_networks_have_the_same_number_of_parameters(torchvision):
    config = whole_config()
    net = build_torchvision(config, 7, "cpu")
    theirs = sum(p.numel() for p in net.parameters())
    variables = variable_shapes(retinanet.build(config, 7))
    ours = sum(
        leaf.size
        for path, leaf in _leaves(variables["params"])
        if "norm" not in path  # frozen statistics are no parameters of torchvision
    )
    assert ours == theirs


def _leaves(tree, prefix=""):
    for name, value in tree.items():
        path = f"{prefix}/{name}"
        if hasattr(value, "items"):
            yield from _leaves(value, path)
        else:
            yield path, value


def test_both_programs_are_timed(torchvision):
    ours, theirs = time_beside_torchvision(whole_config(), runs=1, steps=1, classes=3)
    assert (ours["program"], theirs["program"]) == ("retina_jax", "torchvision")
    ratio = theirs["step_seconds"][0] / ours["step_seconds"][0]
    assert theirs["speed_of_retina_jax"] == pytest.approx(ratio, rel=0.05, abs=0.01)


def test_what_torchvision_lacks_is_refused():
    config = whole_config()
    config.model.head_convs = 2
    with pytest.raises(UserError, match=r"model.head_convs=2 .*--config.model.head_convs=4"):
        check_comparable(config)
    config.model.backbone = "mobilenet_v2"
    with pytest.raises(UserError, match="mobilenet_v2"):
        check_comparable(config)
