"""Objects that a TFDS data set marks as not to be learnt are crowds, however it is opened."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from retina_jax.data.data_set import open_split
from retina_jax.data.images import decode_image
from retina_jax.data.records import Index
from retina_jax.errors import UserError
from retina_jax.jobs import prepare as command
from retina_jax.progress import Reporter

HEIGHT, WIDTH = 64, 96
ROWS = 6


def written(root, marks, dtype=np.uint8, ids=None, most=255):
    """A data set as TFDS writes one; ``marks``: field to the rows whose object has it."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), dtype=dtype, encoding_format="png"),
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["bolt", "nut"]),
                **dict.fromkeys(marks, np.bool_),
            }
        ),
    }
    if ids:
        features["image/id"] = np.int64 if isinstance(ids[0], int) else tfds.features.Text()

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for row in range(ROWS):
                rng = np.random.default_rng(row)
                pixels = rng.integers(0, most + 1, (HEIGHT, WIDTH, 3))
                image = cv2.imencode(".png", pixels.astype(dtype)[..., ::-1])[1].tobytes()
                thing = {
                    "bbox": tfds.features.BBox(8 / 64, 10 / 96, 32 / 64, 40 / 96),
                    "label": row % 2,
                    **{field: row in rows for field, rows in marks.items()},
                }
                yield (
                    row,
                    {"image": image, "objects": [thing], **({"image/id": ids[row]} if ids else {})},
                )

    Made.name = "made"
    builder = Made(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return root / "made" / "1.0.0"


def prepared(root, directory, *flags):
    said = io.StringIO()
    words = ["tfds", "--directory", directory, "--out", root / "out", *flags]
    done = command.run(
        command.parse(list(map(str, words))), Reporter(Console(file=said, width=999))
    )
    return said.getvalue(), open_split(done.directory, "train")


MARKS = {
    "is_difficult": {3},
    "is_crowd": {1},
    "is_group_of": {5},
    "is_truncated": {0, 2},
}


def test_opened_as_it_is_and_prepared_it_has_the_same_crowds(tmp_path):
    directory = written(tmp_path / "tfds", MARKS)
    direct = open_split(directory, "train")
    said, ours = prepared(tmp_path, directory)
    expected = [row in (1, 3, 5) for row in range(ROWS)]
    for split in (direct, ours):
        assert [bool(split[row].is_crowd[0]) for row in range(ROWS)] == expected
        assert [bool(split.annotations(row).is_crowd[0]) for row in range(ROWS)] == expected
    assert "  boxes marked difficult, kept as crowds: 1" in said
    assert "  boxes marked as a group, kept as crowds: 1" in said
    assert "  objects with 'is_truncated', which is not used: 2" in said
    assert "  crowd boxes: 3" in said


@pytest.mark.parametrize("field", ["is_difficult", "is_group_of"])
def test_an_index_of_an_earlier_version_is_made_anew(tmp_path, field):
    directory = written(tmp_path / "tfds", {field: {3}})
    open_split(directory, "train")
    index = Index.load(directory, "train")
    assert index.is_crowd.tolist() == [row == 3 for row in range(ROWS)]
    old = dataclasses.replace(index, is_crowd=np.zeros(ROWS, bool), version=0)
    old.save(directory, "train")
    split = open_split(directory, "train")
    assert [bool(split.annotations(row).is_crowd[0]) for row in range(ROWS)] == [
        row == 3 for row in range(ROWS)
    ]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 5, 9, 3, 1, 2], [7, 5, 9, 3, 1, 2]),
        (["07", "5", "9", "3", "1", "2"], [7, 5, 9, 3, 1, 2]),
        (["x", "y", "0", "z", "1", "2"], [0, 1, 2, 3, 4, 5]),  # 0 and 1 are rows too
        ([4, 4, 4, 4, 4, 4], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_ids_are_the_records_own_or_rows(tmp_path, ids, expected):
    directory = written(tmp_path / "tfds", {}, ids=ids)
    direct = open_split(directory, "train")
    _, ours = prepared(tmp_path, directory)
    for split in (direct, ours):
        assert split.image_ids.tolist() == expected
        assert [split[row].image_id for row in range(ROWS)] == expected


def test_16_bits_are_scaled_by_prepare_and_not_opened_as_they_are(tmp_path):
    directory = written(tmp_path / "tfds", {}, dtype=np.uint16, most=4095)
    with pytest.raises(UserError, match=r"has uint16 images.*convert them with: .*prepare tfds"):
        open_split(directory, "train")
    said, split = prepared(tmp_path, directory)
    assert split.pixel_scale == (0.0, 4095.0)
    expected = np.random.default_rng(2).integers(0, 4096, (HEIGHT, WIDTH, 3)) // 16
    np.testing.assert_array_equal(decode_image(split[2].image), expected)
    assert "values 0 to 4095 of 16-bit" in said
    _, copy = prepared(tmp_path / "copy", split.directory)
    assert copy.pixel_scale == (0.0, 4095.0)
    assert copy[2].image == split[2].image
