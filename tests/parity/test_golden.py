"""Stage by stage against three other systems' RetinaNets. Needs ../shared/golden."""

from pathlib import Path

import jax
import numpy as np
import pytest
from stages import Stages, assert_near, experiment, relative_error, unpaired
from torchvision_case import sample

from retina_jax.interop.weights import read_weights

pytestmark = pytest.mark.optimized
SHARED = Path(__file__).resolve().parents[3] / "shared"
# In torchvision_v2 the input of one ReLU is zero up to rounding. Its sign, and with it 4 % of a
# gradient of the box head, depends on the release of JAX, and on a factor of 3e-7 on the pixels.
NEARBY = (1, 1 + 1e-6, 1 - 1e-6, 1 + 3e-7, 1 - 3e-7)
SYSTEMS = ("torchvision_v1", "torchvision_v2", "detectron2")


@pytest.fixture(scope="module", params=SYSTEMS)
def case(request, golden):
    """The arrays of a system, and this program on its weights and by its experiment."""
    arrays = dict(golden(request.param))
    config = experiment(request.param)
    config.model.width = 16
    config.model.fpn_channels = config.model.head_channels = 64
    config.data.short_side, config.data.long_side = 256, 448
    config.data.buckets = (tuple(int(v) for v in arrays["batch"].shape[1:3]),)
    if request.param == "detectron2":
        config.data.long_side = 341
    if request.param.startswith("torchvision"):
        config.model.frozen_stages = 0  # the cases train all
    weights = read_weights(SHARED / "golden" / request.param / "weights.safetensors")
    assert not weights.unknown
    return arrays, Stages(request.param, config, weights.tree, 3)


@pytest.fixture
def loaded(case, tmp_path):
    """The case's pictures and boxes, as the loader gives them."""
    arrays, ours = case
    images, boxes, labels = (
        [arrays[f"{name}_{i}"] for i in range(2)] for name in ("image", "gt_boxes", "gt_labels")
    )
    return ours.load(tmp_path, images, boxes, labels)


def targets_of(arrays, ours):
    anchors = ours.anchors(arrays["batch"].shape[1:3])
    images = [
        ours.targets(anchors, arrays[f"gt_boxes_resized_{i}"], arrays[f"gt_labels_{i}"])
        for i in range(2)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *images)


def test_preprocessing_within_one_level(case, loaded):
    arrays, ours = case
    np.testing.assert_array_equal(loaded.sizes, arrays["image_sizes"])
    pixels = np.asarray(ours.normalize(loaded))
    for i in range(2):
        boxes, labels = arrays[f"gt_boxes_resized_{i}"], arrays[f"gt_labels_{i}"]
        valid = loaded.ground_truth.valid[i]
        np.testing.assert_allclose(loaded.ground_truth.boxes[i][valid], boxes, atol=0.01)
        np.testing.assert_array_equal(loaded.ground_truth.labels[i][valid], labels)
        levels = np.abs(pixels[i] - arrays["batch"][i]) * ours.config.data.std
        assert levels.max() <= (0.01 if ours.config.data.float_pixels else 1.001)
        assert (pixels[i][loaded.sizes[i][0] :] == 0).all()


def test_anchors_and_matches_are_the_same(case):
    arrays, ours = case
    np.testing.assert_array_equal(ours.anchors(arrays["batch"].shape[1:3]), arrays["anchors"])
    targets = targets_of(arrays, ours)
    for i in range(2):
        if f"anchor_label_{i}" in arrays:
            theirs = arrays[f"anchor_label_{i}"]
            labels = np.where(targets.ignore[i], -1, np.where(targets.foreground[i],
                                                              targets.labels[i], 3))  # fmt: skip
        else:
            matched = arrays[f"matched_{i}"]
            names = arrays[f"gt_labels_{i}"][np.maximum(matched, 0)]
            theirs = np.where(matched >= 0, names, matched)
            labels = np.where(targets.ignore[i], -2, targets.labels[i])
        np.testing.assert_array_equal(labels, theirs)


def test_features_logits_and_deltas(case):
    arrays, ours = case
    for level, feature in enumerate(ours.features(arrays["batch"])):
        name = f"feature_p{level + 3}"
        if name not in arrays:
            name = f"feature_{level}"
        assert_near(feature, arrays[name], 1e-4)
    logits, deltas = ours.outputs(arrays["batch"])
    assert_near(logits, arrays["cls_logits"], 1e-4)
    assert_near(deltas, arrays["box_regression"], 1e-4)


def test_losses_and_gradients(case, loaded):
    arrays, ours = case
    boxes = [arrays[f"gt_boxes_resized_{i}"] for i in range(2)]
    listed = [name for name in arrays if name.startswith("grad/")]
    assert len(listed) > 10
    worst = {}
    for scale in NEARBY:
        pixels = np.float32(arrays["batch"].astype(np.float64) * scale)
        metrics, gradient, ema = ours.train(loaded, pixels, boxes)
        check_losses(metrics, ema, arrays)
        norm = pytest.approx(float(arrays["grad_norm"]), rel=1e-3)
        assert float(metrics["gradient_norm"]) == norm
        named = ours.named(gradient)
        worst[scale] = max(
            relative_error(named[name.removeprefix("grad/")], arrays[name]) for name in listed
        )
        if worst[scale] <= 1e-3:
            return
    pytest.fail(f"relative error of the gradient by scale of the pixels: {worst}")


def check_losses(metrics, ema, arrays):
    for name in ("loss_classification", "loss_box"):
        assert float(metrics[name]) == pytest.approx(float(arrays[name]), rel=1e-5)
    if "loss_normalizer" in arrays:
        assert ema == pytest.approx(float(arrays["loss_normalizer"]), rel=1e-6)


def detections_of(arrays, i):
    return tuple(arrays[f"det_{name}_{i}"] for name in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("start", ["their logits", "batch"])
def test_detections_are_the_same_set(case, start):
    arrays, ours = case
    logits, deltas = arrays["cls_logits"], arrays["box_regression"]
    if start == "batch":
        logits, deltas = ours.outputs(arrays["batch"])
    for i in range(2):
        found = ours.detections(
            logits[i], deltas[i], arrays["image_sizes"][i], arrays[f"image_{i}"].shape[:2]
        )
        theirs = detections_of(arrays, i)
        assert len(found[0]) == len(theirs[0])
        assert unpaired(found, theirs, 0.05, 1e-4) == []


def test_detections_from_the_image_on(case, loaded):
    arrays, ours = case
    logits, deltas = ours.outputs(ours.normalize(loaded))
    for i in range(2):
        original = arrays[f"image_{i}"].shape[:2]
        found = ours.detections(logits[i], deltas[i], loaded.sizes[i], original)
        assert unpaired(found, detections_of(arrays, i), 1.0, 0.01, above=0.1) == []


def test_uint8_pixels_cost_torchvisions_near_ties_alone(case, tmp_path):
    """What `data.float_pixels` is for: rounding decides which of two overlapping boxes stays.

    With these random weights 300 boxes stand within a few hundredths of each other's score.
    """
    arrays, ours = case
    if not ours.config.data.float_pixels:
        pytest.skip("rounds its own pixels")
    rounded = ours.config.copy_and_resolve_references()
    rounded.data.float_pixels = False
    ours = Stages(ours.system, rounded, ours.tree, 3)
    image, boxes, labels = (arrays[f"{name}_0"] for name in ("image", "gt_boxes", "gt_labels"))
    batch = ours.load(tmp_path, [image], [boxes], [labels])
    assert batch.images.dtype == np.uint8
    pixels = ours.normalize(batch)
    levels = np.abs(np.asarray(pixels[0]) - arrays["batch"][0]) * rounded.data.std
    assert 0.01 < levels.max() <= 1.001
    logits, deltas = ours.outputs(pixels)
    found = ours.detections(logits[0], deltas[0], batch.sizes[0], image.shape[:2])
    theirs = detections_of(arrays, 0)
    both = (found[1] > 0.1).sum() + (theirs[1] > 0.1).sum()
    assert len(unpaired(found, theirs, 1.0, 0.01, above=0.1)) <= 0.05 * both


def test_detectron2_from_its_small_golden_file(tmp_path):
    """Anchors, matches, losses, the normaliser and detections; needs no other folder."""
    case = np.load(Path(__file__).parent / "golden" / "detectron2.npz")
    config = experiment("detectron2")
    height, width = (int(v) for v in case["batch_size"][1:3])
    config.data.buckets = ((height, width),)
    ours = Stages("detectron2", config, {}, 3)
    anchors = ours.anchors((height, width))
    np.testing.assert_array_equal(sample(anchors), case["anchors"])
    boxes, labels, deltas = [], [], np.zeros((2, len(anchors), 4), np.float32)
    for i in range(2):
        boxes.append(case[f"gt_boxes_resized_{i}"])
        labels.append(case[f"gt_labels_{i}"])
        found = ours.targets(anchors, boxes[i], labels[i])
        background = np.where(found.ignore, -1, 3)
        np.testing.assert_array_equal(
            np.where(found.foreground, found.labels, background), case[f"anchor_label_{i}"]
        )
        deltas[i][case[f"kept_{i}"]] = case[f"box_regression_{i}"]
        outputs = case["cls_logits"][i], deltas[i]
        kept = ours.detections(*outputs, case["image_sizes"][i], case[f"image_size_{i}"])
        theirs = detections_of(case, i)
        assert len(kept[0]) == len(theirs[0])
        assert unpaired(kept, theirs, 0.05, 1e-4) == []
    black = [np.zeros((*size, 3), np.uint8) for size in case["image_sizes"]]
    inside = [
        np.minimum(own, np.tile(image.shape[1::-1], 2))
        for own, image in zip(boxes, black, strict=True)
    ]  # rounding lets one stick out
    batch = ours.load(tmp_path, black, inside, labels)
    outputs = (case["cls_logits"], deltas)
    metrics, _, ema = ours.train(batch, np.zeros(case["batch_size"]), boxes, outputs)
    check_losses(metrics, ema, case)
