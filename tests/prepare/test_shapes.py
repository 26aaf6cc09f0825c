"""The embedded data set: the same for ever, and as hard as it says."""

import numpy as np

from retina_jax.data.data_set import open_split
from retina_jax.data.images import decode_image
from retina_jax.prepare import shapes


def test_a_picture_is_a_function_of_its_row():
    first, again = shapes.draw_record("train", 7), shapes.draw_record("train", 7)
    assert first.image == again.image
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert shapes.draw_record("validation", 7).image != first.image


def test_the_mix_is_what_the_module_says():
    records = [shapes.draw_record("train", row) for row in range(200)]
    counts = np.array([len(r.boxes) for r in records])
    crowds = np.array([r.is_crowd.any() for r in records])
    assert 0.02 <= (counts == 0).mean() <= 0.12
    assert 0.01 <= crowds.mean() <= 0.12
    assert counts.max() <= 9
    boxes = np.concatenate([r.boxes for r in records])
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= shapes.SIDE
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    assert np.percentile(sides, 10) < 20
    assert np.percentile(sides, 90) > 45
    labels = np.concatenate([r.labels for r in records])
    assert (np.bincount(labels, minlength=5) > 0.1 * len(labels)).all()


def test_what_is_read_back_is_what_was_drawn(shapes_dir):
    split = open_split(shapes_dir / "shapes" / "1.0.0", "validation")
    assert split.class_names == shapes.CLASS_NAMES
    assert split.category_ids == shapes.CATEGORY_IDS
    assert len(split) == 10
    for row in range(10):
        drawn, read = shapes.draw_record("validation", row), split[row]
        assert read.image_id == drawn.image_id
        assert decode_image(read.image).shape == (shapes.SIDE, shapes.SIDE, 3)
        np.testing.assert_allclose(read.boxes, drawn.boxes, atol=1e-3)
        np.testing.assert_array_equal(read.labels, drawn.labels)
        np.testing.assert_array_equal(read.is_crowd, drawn.is_crowd)
        np.testing.assert_allclose(read.areas, drawn.areas, rtol=1e-6)
