"""Weighted AP: COCO's with weights of 1, and that of copied images with others."""

import copy

import numpy as np
import pytest
from test_coco import random_case

from retina_jax.evaluation import coco
from retina_jax.evaluation.matching import AREAS, average_precisions, match


def of_all_classes(truth, detections, weights, limit=100):
    matches = match(truth, detections, limit)
    classes = range(len(truth["categories"]))
    return np.stack([average_precisions(matches, weights, k) for k in classes], 1)


def precisions(truth, detections, limit=100):
    """Those of the arbiter: ``[classes, areas, IoUs]``, NaN without objects."""
    evaluation = coco.evaluate_boxes(truth, detections, "hotcoco", (1, 2, limit))
    values = np.asarray(evaluation.eval["precision"])[..., -1]
    values = np.where(values < 0, np.nan, values)
    return values.mean(1).transpose(1, 2, 0)


@pytest.mark.parametrize(("seed", "limit"), [(0, 100), (1, 100), (2, 3)])
def test_weights_of_one_give_the_ap_of_coco(seed, limit):
    truth, detections = random_case(seed)
    detections = detections * (2 if limit == 3 else 1)
    ours = of_all_classes(truth, detections, np.ones((1, len(truth["images"])), int), limit)
    assert ours.shape == (1, 4, len(AREAS), 10)
    np.testing.assert_allclose(ours[0], precisions(truth, detections, limit), atol=1e-12)


def test_weights_are_copies_of_images():
    """An image with weight 2 counts as two images, one with weight 0 as none."""
    truth, detections = random_case(3)
    for i, detection in enumerate(detections):
        detection["score"] = (detection["score"] + i / 1e4) / 2  # COCO orders ties by image
    weights = np.random.default_rng(0).multinomial(len(truth["images"]), np.full(40, 1 / 40))
    copied = {**truth, "images": [], "annotations": []}
    found = []
    for image, weight in zip(truth["images"], weights, strict=True):
        for k in range(weight):
            number = image["id"] + 1000 * k
            copied["images"].append(image | {"id": number})
            for source, target in ((truth["annotations"], copied["annotations"]),
                                   (detections, found)):  # fmt: skip
                for entry in source:
                    if entry["image_id"] == image["id"]:
                        target.append(copy.deepcopy(entry) | {"image_id": number})
    for number, annotation in enumerate(copied["annotations"], 1):
        annotation["id"] = number
    ours = of_all_classes(truth, detections, weights[None])
    np.testing.assert_allclose(ours[0], precisions(copied, found), atol=1e-9)


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    truth, _ = random_case(0)
    ours = of_all_classes(truth, [], np.ones((1, len(truth["images"])), int))
    assert (ours[0, :3, 0] == 0).all()
    assert np.isnan(ours[0, 3]).all()  # the class without objects
