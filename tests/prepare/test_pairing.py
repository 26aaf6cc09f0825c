"""Pictures, annotations, index and records are joined by name or id, never by their order."""

import dataclasses
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trees import (
    boxes_by_name,
    classes_by_name,
    coco_content,
    coco_tree,
    encoded,
    picture,
    prepared,
    put,
    voc_object,
    voc_tree,
    yolo_tree,
)

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.data.records import Index
from retina_jax.errors import UserError
from retina_jax.evaluation import coco
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_tree import read_yolo

ODD = [
    ["0001", "0001-flip", "0002", "0002-flip"],
    ["img", "img.v2", "img-v2", "img v2", "img.v2.copy"],
    ["a", "a(1)", "a (1)", "a-1", "a.1", "a_1", "a1", "A"],
    ["x.jpg", "x", "x.xml", "x.txt"],
    ["ä", "z", "猫", "é", "a\u0301b"],
    ["[1]", "1", "*", "{0}", "%s", "&amp", "$x", "#1", "~"],
    ["-1", "0", "1", "x 1", "x -1", "x"],
]
ALPHABET = string.ascii_letters + string.digits + "-_ .()[]+=,;@#%&'é猫~"


def numbered(stems):
    """A box for each stem that tells its number: x1 = 2 × number."""
    return {stem: (2 * i, 4, 2 * i + 10, 24) for i, stem in enumerate(stems)}


@pytest.mark.parametrize("stems", ODD)
def test_a_voc_picture_has_the_boxes_of_its_own_file(tmp_path, stems):
    boxes = numbered(stems)
    files = {
        stem: [voc_object(f"class {i}", (x1 + 1, y1 + 1, x2, y2))]
        for i, (stem, (x1, y1, x2, y2)) in enumerate(boxes.items())
    }
    _, splits = prepared(tmp_path, voc_tree(tmp_path / "voc", files))
    assert boxes_by_name(splits["train"]) == {f"{s}.png": [list(b)] for s, b in boxes.items()}
    assert classes_by_name(splits["train"]) == {
        f"{stem}.png": [f"class {i}"] for i, stem in enumerate(stems)
    }


@pytest.mark.parametrize("stems", ODD)
def test_a_yolo_picture_has_the_boxes_of_its_own_file(tmp_path, stems):
    boxes = numbered(stems)
    labels = {
        stem: f"0 {(x1 + x2) / 2 / 96} {(y1 + y2) / 2 / 64} {(x2 - x1) / 96} {(y2 - y1) / 64}\n"
        for stem, (x1, y1, x2, y2) in boxes.items()
    }
    _, splits = prepared(tmp_path, yolo_tree(tmp_path / "yolo", labels))
    assert boxes_by_name(splits["train"]) == {f"{s}.png": [list(b)] for s, b in boxes.items()}


STEMS = st.lists(
    st.text(ALPHABET, min_size=1, max_size=8).filter(
        lambda s: s.strip() == s and s not in (".", "..")
    ),
    min_size=2,
    max_size=6,
    unique=True,
)


@given(stems=STEMS)
def test_any_voc_names_are_joined_by_name(tmp_path_factory, stems):
    root = tmp_path_factory.mktemp("voc") / "tree"
    boxes = numbered(stems)
    files = {
        stem: [voc_object("a", (x1 + 1, y1 + 1, x2, y2))]
        for stem, (x1, y1, x2, y2) in boxes.items()
    }
    voc_tree(root, files)
    found = read_voc(root, {"train": "train"})["train"][0]
    assert [image["file_name"] for image in found.images] == [f"{stem}.png" for stem in stems]
    for image, (x1, y1, x2, y2) in zip(found.images, boxes.values(), strict=True):
        ((box,),) = ([a["bbox"] for a in found.annotations[image["id"]]],)
        assert box == [x1, y1, x2 - x1, y2 - y1]


@given(stems=STEMS)
def test_any_yolo_names_are_joined_by_name(tmp_path_factory, stems):
    root = tmp_path_factory.mktemp("yolo") / "tree"
    labels = {stem: f"0 0.5 0.5 0.{i + 1} 0.5\n" for i, stem in enumerate(stems)}
    yolo_tree(root, labels)
    found, _ = read_yolo(root)["train"]
    widths = {
        image["file_name"]: found.annotations[image["id"]][0]["bbox"][2] for image in found.images
    }
    expected = {f"{stem}.png": 96 * (i + 1) / 10 for i, stem in enumerate(stems)}
    assert widths == pytest.approx(expected)


def test_ids_out_of_order_keep_their_boxes(tmp_path):
    content = coco_content(5)
    for annotation in content["annotations"]:
        annotation["bbox"] = [annotation["image_id"], 5, 20, 20]
    content["images"] = content["images"][::-1]
    content["annotations"] = content["annotations"][2:] + content["annotations"][:2]
    _, splits = prepared(tmp_path, coco_tree(tmp_path, content))
    split = splits["train"]
    assert split.image_ids.tolist() == [5, 4, 3, 2, 1]
    assert [split[row].boxes[0, 0] for row in range(5)] == [5, 4, 3, 2, 1]
    assert [split.annotations(row).boxes[0, 0] for row in range(5)] == [5, 4, 3, 2, 1]


def test_an_index_of_other_records_is_refused(tmp_path):
    _, splits = prepared(tmp_path, coco_tree(tmp_path, coco_content(4)))
    directory = splits["train"].directory
    index = Index.load(directory, "train")
    other = dataclasses.replace(
        index, image_ids=index.image_ids[::-1] + 100, file_names=index.file_names[::-1]
    )
    other.save(directory, "train")
    split = open_split(directory, "train")
    with pytest.raises(
        UserError, match=r"row 1 of .* is image 2 \('p2.png'\), but .* says image 103"
    ):
        split[1]


def test_two_records_of_one_file_are_refused_by_whatever_name(tmp_path):
    content = coco_content(2)
    content["images"][1]["file_name"] = "images\\p1.png"
    arguments = coco_tree(tmp_path, content, {"p1.png": encoded(picture())})
    with pytest.raises(UserError, match=r"image 1 .*uses the same file 'p1.png' as image 2; merge"):
        prepared(tmp_path, arguments)


def test_pictures_of_one_stem_are_told_apart_by_what_the_file_names(tmp_path):
    arguments = voc_tree(tmp_path / "voc", {"a": [voc_object("x", (1, 1, 9, 9))]})
    put(tmp_path / "voc" / "JPEGImages" / "a.jpg", encoded(picture(9), "JPEG"))
    _, splits = prepared(tmp_path, arguments)
    assert splits["train"].file_names.tolist() == ["a.png"]
    xml = tmp_path / "voc" / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("a.png", "b.png"))
    with pytest.raises(UserError, match=r"a.xml: matches images 'a.jpg' and 'a.png'"):
        prepared(tmp_path, arguments, name="again")


def test_ids_that_repeat_become_rows(shapes_dir):
    index = Index.load(find_data_set(shapes_dir, "shapes"), "validation")
    repeated = dataclasses.replace(index, image_ids=np.zeros(len(index), np.int64))
    assert repeated.with_unique_ids().image_ids.tolist() == list(range(len(index)))
    assert index.with_unique_ids() is index


@given(
    ids=st.lists(st.integers(0, 2**53), min_size=4, max_size=4, unique=True),
    order=st.permutations(range(4)),
)
def test_results_and_truth_are_joined_by_image_id(ids, order):
    """One box an image, each elsewhere: a result scores only in its own image."""
    images = [{"id": i, "width": 96, "height": 64} for i in ids]
    boxes = [[20 * n, 10, 12, 30] for n in range(4)]
    annotations = [
        {"id": n + 1, "image_id": i, "category_id": 1, "bbox": box, "area": 360, "iscrowd": 0}
        for n, (i, box) in enumerate(zip(ids, boxes, strict=True))
    ]
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "bolt"}],
    }
    found = [{"image_id": ids[n], "category_id": 1, "bbox": boxes[n], "score": 0.9} for n in order]
    assert coco.score(truth, found)["AP"] == pytest.approx(1)
    moved = [dict(result, bbox=boxes[n - 1]) for result, n in zip(found, order, strict=True)]
    assert coco.score(truth, moved)["AP"] == 0
