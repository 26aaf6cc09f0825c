"""Annotations by the index: the same as by the records, and no image is read."""

import dataclasses
import shutil

import numpy as np
import pytest

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.data.records import Index, index_path
from retina_jax.evaluation import coco


class Unread:
    """Records that must not be touched."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, row):
        raise AssertionError(f"row {row} was read")


@pytest.mark.parametrize("labels", ["dense", "category_ids"])
def test_the_index_has_what_the_records_have(two_aspects, labels):
    split = open_split(find_data_set(two_aspects, ""), "train", labels)
    unread = dataclasses.replace(split, _records=Unread(len(split)))
    for row in range(len(split)):
        record, indexed = split[row], unread.annotations(row)
        assert record.image
        assert indexed.image == b""
        for field in ("image_id", "boxes", "labels", "is_crowd", "areas"):
            np.testing.assert_array_equal(getattr(indexed, field), getattr(record, field))
            assert (
                np.asarray(getattr(indexed, field)).dtype
                == np.asarray(getattr(record, field)).dtype
            )
    assert coco.ground_truth(unread) == coco.ground_truth(split)


def test_an_index_of_an_earlier_version_still_serves(two_aspects, tmp_path):
    """It has no annotations: they are read from the records."""
    source = find_data_set(two_aspects, "")
    directory = tmp_path / "coco" / "1.0.0"
    shutil.copytree(source, directory)
    with np.load(index_path(source, "train")) as arrays:
        old = {n: arrays[n] for n in ("image_ids", "sizes", "box_counts", "file_names")}
    np.savez_compressed(index_path(directory, "train"), **old)
    assert Index.load(directory, "train").boxes is None
    before, now = open_split(source, "train"), open_split(directory, "train")
    assert coco.ground_truth(now) == coco.ground_truth(before)


def test_an_index_whose_parts_disagree_is_not_believed(two_aspects, tmp_path):
    source = find_data_set(two_aspects, "")
    index = Index.load(source, "train")
    short = dataclasses.replace(index, labels=index.labels[:-1])
    short.save(tmp_path, "train")
    assert Index.load(tmp_path, "train").boxes is None
