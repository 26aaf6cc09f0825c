"""Pictures that open, with boxes where they belong."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from retina_jax.data.data_set import open_split
from retina_jax.draw import colour, draw_boxes
from retina_jax.evaluation.pictures import draw_pairs, write_sheet


@pytest.fixture
def split(shapes_dir):
    return open_split(shapes_dir / "shapes" / "1.0.0", "validation")


def test_a_box_is_drawn_in_its_colour_and_scaled_place():
    picture = draw_boxes(
        np.zeros((40, 60, 3), np.uint8), np.array([[10.0, 5, 30, 25]]), [1], [""], 2.0
    )
    assert picture.size == (120, 80)
    lit = np.argwhere(np.asarray(picture).any(axis=2))
    assert lit.min(axis=0).tolist() == [10, 20]  # y, x
    assert lit.max(axis=0).tolist() == [49, 59]
    drawn = "#{:02x}{:02x}{:02x}".format(*np.asarray(picture)[10, 20])
    assert drawn == colour(1)


@pytest.mark.parametrize("count", [1, 3, 99])
def test_sheets_without_detections_open(split, tmp_path, count):
    pairs = draw_pairs(split, [], count)
    write_sheet(pairs, split.class_names, tmp_path / "sheet.png")
    assert len(pairs) == min(count, len(split))
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 600
    assert height > 300


def test_detections_change_the_sheet_and_weak_ones_do_not(split, tmp_path):
    def sheet(score):
        found = {
            "image_id": int(split.image_ids[0]),
            "category_id": split.category_ids[0],
            "bbox": [20.0, 20.0, 60.0, 60.0],
            "score": score,
        }
        ((image_id, picture),) = draw_pairs(split, [found], 1)
        assert image_id == split.image_ids[0]
        return np.asarray(picture)

    assert not np.array_equal(sheet(0.9), sheet(0.1))


@pytest.mark.parametrize("content", [b"no image", b""])
def test_an_image_that_cannot_be_read_is_named_and_left_out(split, tmp_path, content):
    class Damaged:
        def __getattr__(self, name):
            return getattr(split, name)

        def __len__(self):
            return len(split)

        def __getitem__(self, row):
            return split[row] if row else dataclasses.replace(split[0], image=content)

    notes = []
    pairs = draw_pairs(Damaged(), [], 2, note=notes.append)
    assert [image_id for image_id, _ in pairs] == [split.image_ids[-1]]
    (note,) = notes
    assert note.startswith(f"image {split.image_ids[0]} is not drawn: ")
    with pytest.raises(Exception, match=r"."):
        draw_pairs(Damaged(), [], 1)
    write_sheet([], split.class_names, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
