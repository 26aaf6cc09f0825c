"""The comparison of an exported model with the run: what it pairs, excuses and refuses."""

import numpy as np
import pytest

from retina_jax.exporting.agreement import compare, noise
from retina_jax.types import Detections

THRESHOLD, IOU, TOLERANCE = 0.05, 0.5, 1e-3


def detections(*rows):
    """Rows of ``(x1, y1, x2, y2, score, label)``."""
    values = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(
        boxes=values[:, :4],
        scores=values[:, 4].astype(np.float32),
        labels=values[:, 5].astype(np.int32),
    )


FIRST, SECOND, LAST = (0, 0, 20, 20, 0.9, 0), (40, 0, 60, 30, 0.8, 1), (0, 50, 30, 70, 0.3, 0)


def compared(expected, ours):
    return compare([detections(*expected)], [detections(*ours)], IOU, THRESHOLD, TOLERANCE)


def test_pairs_are_found_by_class_and_place_whatever_their_order():
    ours = [(40, 0, 60, 30.05, 0.8005, 1), FIRST, LAST]
    found = compared([FIRST, SECOND, LAST], ours)
    assert (found.detections, found.undecided) == (3, 0)
    assert found.pixels == pytest.approx(0.05)
    assert found.score == pytest.approx(5e-4, rel=1e-3)
    assert "boxes differ by up to 0.05 px, scores by 0.0005" in found.text()


@pytest.mark.parametrize(
    "ours",
    [
        [FIRST, LAST],
        [FIRST, SECOND, (30, 30, 50, 50, 0.7, 0), LAST],
        [FIRST, (*SECOND[:5], 0), LAST],
        [FIRST, (40, 0, 66, 30, 0.8, 1), LAST],
    ],
    ids=["missing", "additional", "of another class", "elsewhere"],
)
def test_a_detection_of_one_side_only_is_refused(ours):
    assert compared([FIRST, SECOND, LAST], ours).undecided == -1


def test_nothing_is_compared_on_empty_images():
    found = compared([], [])
    assert (found.detections, found.undecided) == (0, 0)
    assert "none scores above eval.score_threshold" in found.text()


@pytest.mark.parametrize(
    "extra",
    [
        (80, 80, 90, 90, 0.0505, 0),  # at the threshold
        (80, 80, 90, 90, 0.2995, 0),  # at the score of the last one
        (0, 0, 20, 10.01, 0.7, 0),  # its IoU with FIRST is 0.5005
        (4, 0, 24, 20, 0.9003, 0),  # ties with FIRST, which may drop it or be dropped
    ],
    ids=["threshold", "last", "IoU", "tie"],
)
def test_what_rounding_decides_is_excused_and_counted(extra):
    found = compared([FIRST, SECOND, LAST], [FIRST, SECOND, LAST, extra])
    assert (found.detections, found.undecided) == (3, 1)
    assert "; 1 on one side only, at a threshold" in found.text()


def test_noise_has_images_of_several_sizes_and_padding():
    batch = noise((64, 96), np.uint8)
    assert batch.images.shape == (4, 64, 96, 3)
    assert len({tuple(size) for size in batch.sizes}) == 4
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        assert image[:height, :width].std() > 50
        assert not image[height:].any()
        assert not image[:, width:].any()
