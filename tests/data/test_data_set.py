"""Finding data sets: what is there, what is not, and what to do about it."""

import dataclasses

import numpy as np
import pytest

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.data.records import Index, index_path
from retina_jax.errors import UserError


def test_a_folder_that_is_not_there_says_how_to_prepare(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder; prepare a data set with: .* coco"):
        find_data_set(tmp_path / "nowhere", "coco")


def test_a_data_set_that_is_not_there_names_those_that_are(shapes_dir):
    with pytest.raises(UserError, match=r"no data set 'coco'.*one of: shapes"):
        find_data_set(shapes_dir, "coco")


def test_an_empty_name_takes_the_only_one(shapes_dir):
    assert find_data_set(shapes_dir, "") == shapes_dir / "shapes" / "1.0.0"


def test_an_unknown_split_names_those_that_are(shapes_dir):
    with pytest.raises(UserError, match=r"no split 'test'; it has train, validation"):
        open_split(shapes_dir / "shapes" / "1.0.0", "test")


def test_a_data_set_without_an_index_is_measured(shapes_dir):
    directory = shapes_dir / "shapes" / "1.0.0"
    written = Index.load(directory, "validation")
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"PK nonsense")):
        spoil(index_path(directory, "validation"))
        open_split(directory, "validation")
        measured = Index.load(directory, "validation")
        for field in dataclasses.fields(Index):
            np.testing.assert_array_equal(
                getattr(measured, field.name), getattr(written, field.name)
            )


def test_labels_may_be_category_ids_with_a_class_for_every_id(two_aspects):
    """Categories 1, 3 and 7: eight slots, as torchvision counts COCO's 91."""
    directory = find_data_set(two_aspects, "")
    dense, slots = open_split(directory, "train"), open_split(directory, "train", "category_ids")
    assert slots.category_ids == tuple(range(8))
    assert len(slots.class_names) == 8
    assert [slots.class_names[i] for i in (1, 3, 7)] == list(dense.class_names)
    for row in range(len(dense)):
        expected = [dense.category_ids[label] for label in dense[row].labels]
        assert slots[row].labels.tolist() == expected
