"""Against torchvision: itself where it can be imported, and what it once gave (golden/)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import Stages, assert_near, experiment, unpaired
from torchvision_case import CLASSES, INPUT, make_case, picture, sample, set_weights, weight
from torchvision_cpu import import_torchvision

from retina_jax.config.backbones import BACKBONES
from retina_jax.config.fields import BOX_LOSSES
from retina_jax.interop.export import export_weights, how_to_load
from retina_jax.interop.files import write_arrays
from retina_jax.interop.weights import import_arrays
from retina_jax.models.layers import make_norm
from retina_jax.models.retinanet import backbone_of
from retina_jax.ops import box_losses, losses

GOLDEN = Path(__file__).parent / "golden"
LARGE = ("batch", "feature_", "cls_logits", "box_regression", "grad/")
"""Stages of which the golden files keep a sample."""


@functools.cache
def ours_of(system):
    """This program by the system's experiment, with the weights of the formula."""
    on_mobilenet = system == "torchvision_mobilenet"
    config = experiment("torchvision_v1" if on_mobilenet else system)
    if on_mobilenet:
        config.model.backbone = "mobilenet_v2"
        config.model.norm_eps = 1e-5
    config.data.short_side, config.data.long_side = INPUT
    config.data.buckets = (INPUT,)
    config.model.norm = "batch"
    config.model.frozen_stages = 0
    stages = Stages(system, config, {}, CLASSES)
    images = jnp.zeros((1, *INPUT, 3))
    shapes = jax.eval_shape(lambda x: stages.model.init(jax.random.key(0), x, False), images)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), dict(shapes))
    names = export_weights(zeros, config, "torchvision")
    arrays = {name: weight(name, value.shape) for name, value in names.items() if value.ndim}
    stages.tree = import_arrays(arrays, "formula").tree
    return stages


def compare_preprocessing(stages, case, folder, near):
    """The loaded batch and its pixels; ``near(name, ours, bar)`` compares what the network sees."""
    loaded = stages.load(folder, *([part] for part in picture()))
    np.testing.assert_array_equal(loaded.sizes[0], case["image_size"])
    valid = loaded.ground_truth.valid[0]
    np.testing.assert_allclose(
        loaded.ground_truth.boxes[0][valid], case["boxes_resized"], atol=1e-3
    )
    pixels = np.asarray(stages.normalize(loaded))
    near("batch", pixels, 1e-5)
    return loaded, pixels


def compare_network(stages, case, batch, loaded, near):
    np.testing.assert_array_equal(stages.anchors(INPUT), case["anchors"])
    for i, feature in enumerate(stages.features(batch)):
        near(f"feature_{i}", feature, 1e-4)
    logits, deltas = stages.outputs(batch)
    near("cls_logits", logits, 1e-4)
    near("box_regression", deltas, 1e-4)
    labels, matched = picture()[2], case["matched"]
    targets = stages.targets(case["anchors"], case["boxes_resized"], labels)
    np.testing.assert_array_equal(
        np.where(targets.ignore, -2, targets.labels),
        np.where(matched >= 0, labels[np.maximum(matched, 0)], matched),
    )
    metrics, gradient, _ = stages.train(loaded, batch, [case["boxes_resized"]])
    for name in ("loss_classification", "loss_box"):
        assert float(metrics[name]) == pytest.approx(float(case[name]), rel=1e-5)
    named = stages.named(gradient)
    for name in case:
        if name.startswith("grad/"):
            near(name, named[name.removeprefix("grad/")], 1e-3)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(case["grad_norm"]), rel=1e-3)
    found, theirs = detections(stages, case, logits, deltas)
    assert len(found[0]) == len(theirs[0])
    assert unpaired(found, theirs, 0.05, 1e-4) == []


def detections(stages, case, logits, deltas):
    """Ours from those outputs, and theirs."""
    found = stages.detections(logits[0], deltas[0], case["image_size"], picture()[0].shape[:2])
    return found, tuple(case[f"det_{name}"] for name in ("boxes", "scores", "labels"))


# one as users compile it; test_golden.py has all of its systems so
@pytest.mark.parametrize(
    "system",
    [
        "torchvision_v1",
        pytest.param("torchvision_v2", marks=pytest.mark.optimized),
        "torchvision_mobilenet",
    ],
)
@pytest.mark.parametrize("source", ["golden", "itself"])
def test_every_stage(system, source, tmp_path):
    if source == "itself":
        case = make_case(import_torchvision(), system)
        batch = case["batch"]
    else:
        case = dict(np.load(GOLDEN / f"{system}.npz"))
        batch = np.load(GOLDEN / "batch.npy")

    def near(name, ours, bar):
        ours = np.asarray(ours)
        if source == "golden":  # a sample, and the largest value of the whole
            assert_near(sample(ours), case[name], bar, float(case[f"largest/{name}"]))
        else:
            assert_near(ours, case[name], bar)

    stages = ours_of(system)
    loaded, pixels = compare_preprocessing(stages, case, tmp_path, near)
    compare_network(stages, case, batch, loaded, near)
    from_image = detections(stages, case, *stages.outputs(pixels))
    assert unpaired(*from_image, 1.0, 0.01, above=0.1) == []


@pytest.fixture(scope="module")
def torchvision():
    return import_torchvision()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_forward(torchvision, backbone):
    import torch

    module = getattr(torchvision.models, backbone)(weights=None)
    set_weights(module)
    module.eval()
    image = np.random.RandomState(0).uniform(-2, 2, (1, 64, 96, 3)).astype(np.float32)
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    theirs = []
    with torch.no_grad():
        if hasattr(module, "features"):
            stages = (module.features[:7], module.features[7:14], module.features[14:18])
        else:
            stem = (module.conv1, module.bn1, module.relu, module.maxpool, module.layer1)
            stages = (
                torch.nn.Sequential(*stem, module.layer2), module.layer3, module.layer4
            )  # fmt: skip
        for stage in stages:
            x = stage(x)
            theirs.append(x.permute(0, 2, 3, 1).numpy())
    arrays = {name: value.numpy() for name, value in module.state_dict().items()}
    tree = import_arrays(arrays, backbone).tree
    norm = make_norm("frozen", False, 1e-5, jnp.float32, None)
    made = backbone_of(backbone)(backbone, 64, norm, norm, jnp.float32)
    ours = made.apply({name: part["backbone"] for name, part in tree.items()}, image)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 1e-4)


def test_the_printed_code_loads_a_mobilenet_in_torchvision(torchvision, tmp_path):
    """Its logits are this program's."""
    import torch

    stages = ours_of("torchvision_mobilenet")
    path = str(tmp_path / "theirs.safetensors")
    write_arrays(path, export_weights(stages.tree, stages.config, "torchvision"))
    names: dict = {}
    exec("\n".join(how_to_load(stages.tree, stages.config, "torchvision", path)), names)
    image = np.random.default_rng(0).normal(0, 1, (1, *INPUT, 3)).astype(np.float32)
    with torch.no_grad():
        model = names["model"].eval()
        features = model.backbone(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        theirs = model.head(list(features.values()))["cls_logits"].numpy()
    assert_near(stages.outputs(image)[0], theirs, 1e-4)


def test_losses_of_boxes(torchvision):
    import torch

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (2, 200, 2))
    a, b = np.concatenate([corner, corner + rng.uniform(1, 60, (2, 200, 2))], -1).astype(np.float32)
    theirs = {
        "giou": torchvision.ops.generalized_box_iou_loss,
        "diou": torchvision.ops.distance_box_iou_loss,
        "ciou": torchvision.ops.complete_box_iou_loss,
    }
    for name, function in theirs.items():
        boxes = torch.from_numpy(a).requires_grad_()
        loss = function(boxes, torch.from_numpy(b))
        loss.sum().backward()
        ours = getattr(box_losses, BOX_LOSSES[name][0])
        assert_near(ours(a, b), loss.detach().numpy(), 1e-5)
        gradient = jax.grad(lambda x, f=ours: f(x, b).sum())(jnp.asarray(a))
        assert_near(gradient, boxes.grad.numpy(), 1e-3)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss(torchvision, gamma):
    import torch

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (300, 5)).astype(np.float32)
    labels = rng.integers(-1, 5, 300)
    targets = (labels[:, None] == np.arange(5)).astype(np.float32)
    theirs_in = torch.from_numpy(logits).requires_grad_()
    theirs = torchvision.ops.sigmoid_focal_loss(
        theirs_in, torch.from_numpy(targets), 0.25, gamma, reduction="sum"
    )
    theirs.backward()
    ours, gradient = jax.value_and_grad(
        lambda x: losses.sigmoid_focal_loss(x, labels, 0.25, gamma).sum()
    )(jnp.asarray(logits))
    assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert_near(gradient, theirs_in.grad.numpy(), 1e-4)
