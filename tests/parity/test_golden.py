"""Stage by stage against three other systems' RetinaNets. Needs ../shared/golden."""

from pathlib import Path

import jax
import numpy as np
import pytest
from stages import Stages, assert_near, experiment, unpaired
from torchvision_case import sample

from retina_jax.interop.weights import read_weights
from retina_jax.training import objective

SHARED = Path(__file__).resolve().parents[3] / "shared"
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


def targets_of(arrays, ours):
    anchors = ours.anchors(arrays["batch"].shape[1:3])
    images = [
        ours.targets(anchors, arrays[f"gt_boxes_resized_{i}"], arrays[f"gt_labels_{i}"])
        for i in range(2)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *images)


def test_preprocessing_within_one_level(case):
    arrays, ours = case
    from retina_jax.models.retinanet import normalize_images

    for i in range(2):
        image, boxes, size = ours.preprocess(arrays[f"image_{i}"], arrays[f"gt_boxes_{i}"])
        np.testing.assert_array_equal(size, arrays["image_sizes"][i])
        np.testing.assert_allclose(boxes, arrays[f"gt_boxes_resized_{i}"], atol=0.01)
        pixels = normalize_images(image[None], size[None].astype(np.int32), ours.config.data)[0]
        levels = np.abs(np.asarray(pixels) - arrays["batch"][i]) * ours.config.data.std
        assert levels.max() <= (0.01 if ours.config.data.float_pixels else 1.001)
        assert (np.asarray(pixels)[size[0] :] == 0).all()


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


def test_losses_and_gradients(case):
    arrays, ours = case
    classification, box, ema, gradients, norm = ours.losses_and_gradients(
        arrays["batch"], targets_of(arrays, ours)
    )
    assert classification == pytest.approx(float(arrays["loss_classification"]), rel=1e-5)
    assert box == pytest.approx(float(arrays["loss_box"]), rel=1e-5)
    if "loss_normalizer" in arrays:
        assert ema == pytest.approx(float(arrays["loss_normalizer"]), rel=1e-6)
    listed = [name for name in arrays if name.startswith("grad/")]
    assert len(listed) > 10
    for name in listed:
        assert_near(gradients[name.removeprefix("grad/")], arrays[name], 1e-3)
    assert norm == pytest.approx(float(arrays["grad_norm"]), rel=1e-3)


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


def test_detections_from_the_image_on(case):
    arrays, ours = case
    from retina_jax.models.retinanet import normalize_images

    prepared = [ours.preprocess(arrays[f"image_{i}"], arrays[f"gt_boxes_{i}"]) for i in range(2)]
    images = np.stack([p[0] for p in prepared])
    sizes = np.stack([p[2] for p in prepared]).astype(np.int32)
    logits, deltas = ours.outputs(normalize_images(images, sizes, ours.config.data))
    for i in range(2):
        found = ours.detections(logits[i], deltas[i], sizes[i], arrays[f"image_{i}"].shape[:2])
        assert unpaired(found, detections_of(arrays, i), 1.0, 0.01, above=0.1) == []


def test_uint8_pixels_cost_torchvisions_near_ties_alone(case):
    """What `data.float_pixels` is for: rounding decides which of two overlapping boxes stays.

    With these random weights 300 boxes stand within a few hundredths of each other's score.
    """
    arrays, ours = case
    if not ours.config.data.float_pixels:
        pytest.skip("rounds its own pixels")
    from retina_jax.models.retinanet import normalize_images

    rounded = ours.config.copy_and_resolve_references()
    rounded.data.float_pixels = False
    ours = Stages(ours.system, rounded, ours.tree, 3)
    image, boxes = arrays["image_0"], arrays["gt_boxes_0"]
    padded, _, size = ours.preprocess(image, boxes)
    assert padded.dtype == np.uint8
    sizes = size[None].astype(np.int32)
    pixels = normalize_images(padded[None], sizes, rounded.data)
    levels = np.abs(np.asarray(pixels[0]) - arrays["batch"][0]) * rounded.data.std
    assert 0.01 < levels.max() <= 1.001
    logits, deltas = ours.outputs(pixels)
    found = ours.detections(logits[0], deltas[0], size, image.shape[:2])
    theirs = detections_of(arrays, 0)
    both = (found[1] > 0.1).sum() + (theirs[1] > 0.1).sum()
    assert len(unpaired(found, theirs, 1.0, 0.01, above=0.1)) <= 0.05 * both


def test_detectron2_from_its_small_golden_file():
    """Anchors, matches, losses, the normaliser and detections; needs no other folder."""
    case = np.load(Path(__file__).parent / "golden" / "detectron2.npz")
    config = experiment("detectron2")
    height, width = (int(v) for v in case["batch_size"][1:3])
    config.data.buckets = ((height, width),)
    ours = Stages("detectron2", config, {}, 3)
    anchors = ours.anchors((height, width))
    np.testing.assert_array_equal(sample(anchors), case["anchors"])
    targets, outputs = [], []
    for i in range(2):
        found = ours.targets(anchors, case[f"gt_boxes_resized_{i}"], case[f"gt_labels_{i}"])
        background = np.where(found.ignore, -1, 3)
        np.testing.assert_array_equal(
            np.where(found.foreground, found.labels, background), case[f"anchor_label_{i}"]
        )
        deltas = np.zeros((len(anchors), 4), np.float32)
        deltas[case[f"kept_{i}"]] = case[f"box_regression_{i}"]
        targets.append(found)
        outputs.append((case["cls_logits"][i], deltas))
        boxes = ours.detections(*outputs[i], case["image_sizes"][i], case[f"image_size_{i}"])
        theirs = detections_of(case, i)
        assert len(boxes[0]) == len(theirs[0])
        assert unpaired(boxes, theirs, 0.05, 1e-4) == []
    logits, deltas = (np.stack(part) for part in zip(*outputs, strict=True))
    stacked = jax.tree.map(lambda *x: np.stack(x), *targets)
    sums = objective.image_losses(logits, deltas[:, :, None], stacked, anchors, config)
    initial = np.array(config.loss.ema_initial, np.float32)
    classification, box, ema = objective.normalize(sums, initial, lambda x: x, config.loss)
    assert float(classification) == pytest.approx(float(case["loss_classification"]), rel=1e-5)
    assert float(box) == pytest.approx(float(case["loss_box"]), rel=1e-5)
    assert float(ema) == pytest.approx(float(case["loss_normalizer"]), rel=1e-6)
