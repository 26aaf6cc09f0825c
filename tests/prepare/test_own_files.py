"""A user's files are recognised, and a single split is divided."""

import json

import pytest
from made_trees import coco_tree, voc_object, voc_tree, yolo_tree

from retina_jax.errors import UserError
from retina_jax.prepare.annotations import check
from retina_jax.prepare.own_files import digest_of, hold_out, open_source, recognise


def content_of(count, first=0):
    images = [
        {"id": i, "file_name": f"p{i}.png", "width": 96, "height": 64}
        for i in range(first, first + count)
    ]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]}
        for i in range(first, first + count)
    ]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bolt"}]}


def made_coco(root):
    coco_tree(root, content_of(6))
    return root


def made_voc(root):
    voc_tree(root, {f"v{i}": voc_object("bolt", (2, 3, 20, 30)) for i in range(6)})
    return root


def made_yolo(root):
    yolo_tree(root, {f"y{i}": "0 0.5 0.5 0.4 0.4\n" for i in range(6)})
    return root


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (made_coco, "coco", "train.json"),
        (lambda root: made_coco(root) / "train.json", "coco", "train.json"),
        (made_voc, "voc", "ImageSets/Main"),
        (made_yolo, "yolo", "data.yaml"),
    ],
)
def test_one_split_of_each_kind_is_divided(make, kind, why, tmp_path):
    found = recognise(make(tmp_path))
    assert (found.kind, found.why) == (kind, why)
    source, line = open_source(found)
    assert set(source.rows) == {"train", "validation"}
    assert sum(map(len, source.rows.values())) == 6
    assert min(map(len, source.rows.values())) >= 1
    assert line.startswith("one split; held out ")
    for rows in source.rows.values():
        for row in range(len(rows)):
            assert len(rows.read(row).boxes) == 1


def test_two_coco_files_are_two_splits(tmp_path):
    made_coco(tmp_path)
    folder = tmp_path / "annotations"
    folder.mkdir()
    (tmp_path / "train.json").rename(folder / "instances_train.json")
    (folder / "instances_val.json").write_text(json.dumps(content_of(2)))
    (folder / "results.json").write_text("[]")
    source, line = open_source(recognise(tmp_path))
    assert {split: len(rows) for split, rows in source.rows.items()} == {
        "train": 6,
        "validation": 2,
    }
    assert line == "splits: train, validation"


def nothing(root):
    (root / "photo.txt").write_text("")
    return root


def two_kinds(root):
    made_coco(root)
    return made_yolo(root)


def unnamed(root):
    made_coco(root)
    (root / "train.json").rename(root / "a.json")
    (root / "b.json").write_text((root / "a.json").read_text())
    return root


def without_pictures(root):
    made_coco(root)
    (root / "images").rename(root / "elsewhere_entirely")
    (root / "elsewhere_entirely").rename(root.parent.parent / "gone")
    return root


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "is no data set; looked for a COCO .json file"),
        (two_kinds, r"could be yolo \(data.yaml\), coco \(train.json\)"),
        (unnamed, "contains 2 COCO files"),
        (lambda root: root / "absent", "does not exist"),
        (lambda root: nothing(root) / "photo.txt", "is not a .json file"),
        (without_pictures, "its images, such as 'p0.png', are not in"),
    ],
)
def test_what_is_no_data_set_is_told_in_one_line(make, words, tmp_path):
    root = tmp_path / "own" / "files"
    root.mkdir(parents=True)
    with pytest.raises(UserError, match=words) as told:
        open_source(recognise(make(root)))
    assert "\n" not in str(told.value)


def split_names(count):
    parts = hold_out(check("file", content_of(count)))
    return [{image["file_name"] for image in part.images} for part in parts]


def test_an_image_keeps_its_part_when_others_are_added():
    few, many = split_names(60), split_names(90)
    assert few[0] <= many[0]
    assert few[1] <= many[1]
    assert 8 <= len(many[1]) <= 28


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_part_has_an_image(count):
    train, held = split_names(count)
    assert train
    assert held
    assert not train & held


def test_one_image_is_too_few():
    with pytest.raises(UserError, match="one image is too few"):
        split_names(1)


def test_the_digest_changes_with_annotations_and_images(tmp_path):
    made_coco(tmp_path)
    first = digest_of(open_source(recognise(tmp_path))[0])
    assert digest_of(open_source(recognise(tmp_path))[0]) == first
    (tmp_path / "images" / "p0.png").write_bytes(b"shorter")
    changed = digest_of(open_source(recognise(tmp_path))[0])
    assert changed != first
    content = content_of(6)
    content["annotations"][0]["bbox"] = [1, 1, 5, 5]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert digest_of(open_source(recognise(tmp_path))[0]) != changed
