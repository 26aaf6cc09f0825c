"""Fields that bear meaning are used, and what is not used is counted."""

import numpy as np
import pytest
from made_trees import (
    boxes_by_name,
    coco_content,
    coco_tree,
    prepared,
    put,
    voc_object,
    voc_tree,
    yolo_tree,
)

from retina_jax.errors import UserError

BOX = (11, 9, 40, 32)


def crowds(split):
    return {str(n): split[row].is_crowd.tolist() for row, n in enumerate(split.file_names)}


def test_boxes_marked_ignore_are_crowds(tmp_path):
    content = coco_content(4)
    marks = [{"ignore": 1}, {"ignore": True}, {"ignore": 0}, {"ignore": None}]
    for annotation, mark in zip(content["annotations"], marks, strict=True):
        annotation |= mark
    said, splits = prepared(tmp_path, coco_tree(tmp_path, content))
    expected = {"p1.png": [True], "p2.png": [True], "p3.png": [False], "p4.png": [False]}
    assert crowds(splits["train"]) == expected
    assert "  boxes marked ignore, kept as crowds: 2" in said
    assert "  crowd boxes: 2" in said


@pytest.mark.parametrize("value", ["1", 2, 0.5, [1], -1])
def test_ignore_is_0_or_1(tmp_path, value):
    arguments = coco_tree(tmp_path, coco_content(1, ignore=value))
    with pytest.raises(UserError, match=r"annotation 1: ignore .* is neither 0 nor 1"):
        prepared(tmp_path, arguments)


@pytest.mark.parametrize(
    ("degrees", "box"),
    [
        (90, [13, 5, 37, 35]),  # 30 × 24 about (25, 20)
        (-90, [13, 5, 37, 35]),
        (180, [10, 8, 40, 32]),
        (360, [10, 8, 40, 32]),
        (0, [10, 8, 40, 32]),
        # half of (30 + 24) / √2 = 19.092 either way
        (45, [5.908, 0.908, 44.092, 39.092]),
        (135.0, [5.908, 0.908, 44.092, 39.092]),
    ],
)
def test_a_turned_box_of_cvat_is_its_hull(tmp_path, degrees, box):
    content = coco_content(1, attributes={"occluded": False, "rotation": degrees})
    said, splits = prepared(tmp_path, coco_tree(tmp_path, content))
    np.testing.assert_allclose(splits["train"][0].boxes, [box], atol=1e-3)
    assert ("rotated boxes, stored as their axis-aligned" in said) == (degrees % 360 != 0)
    if degrees % 360:
        assert splits["train"][0].areas.tolist() == [30 * 24]


def test_a_rotation_that_is_no_number_is_refused(tmp_path):
    arguments = coco_tree(tmp_path, coco_content(1, attributes={"rotation": "left"}))
    with pytest.raises(
        UserError, match=r"annotation 1: attributes.rotation 'left' is not a finite"
    ):
        prepared(tmp_path, arguments)


def test_fields_of_coco_that_are_not_used_are_counted_once(tmp_path):
    content = coco_content(
        3, segmentation=[[1, 2, 3, 4, 5, 6]], keypoints=[1, 2, 2], score=0.5, iscrowd=0,
        attributes={"occluded": True, "colour": "red", "type": ""}, extra={}, note=None,
    )  # fmt: skip
    content["images"][0]["not_exhaustive_category_ids"] = [1]
    said, _ = prepared(tmp_path, coco_tree(tmp_path, content))
    for field in ("segmentation", "keypoints", "score"):
        assert said.count(f"annotations with {field!r}, which is not used: 3") == 1
    for attribute in ("occluded", "colour"):
        assert f"attributes of annotations with {attribute!r}, which is not used: 3" in said
    assert "images with 'not_exhaustive_category_ids', which is not used: 1" in said
    assert "classes without boxes: 1" in said
    assert not any(word in said for word in ("'extra'", "'note'", "'type'", "'iscrowd'"))


def test_difficult_truncated_and_occluded_of_voc(tmp_path):
    objects = [
        voc_object("a", BOX, "<difficult>1</difficult><truncated>1</truncated>"),
        voc_object("a", BOX, "<difficult>0</difficult><occluded>1</occluded>"),
        voc_object("a", BOX, "<pose>Left</pose><truncated>1</truncated>"),
    ]  # fmt: skip
    said, splits = prepared(tmp_path, voc_tree(tmp_path / "voc", {"x": objects}))
    assert crowds(splits["train"]) == {"x.png": [True, False, False]}
    assert "  boxes marked difficult, kept as crowds: 1" in said
    assert "  objects marked truncated, kept as they are: 2" in said
    assert "  objects marked occluded, kept as they are: 1" in said


def test_attributes_of_voc_are_read_or_counted(tmp_path):
    def attributes(**values):
        pairs = (f"<name>{n}</name><value>{v}</value>" for n, v in values.items())
        inside = "".join(f"<attribute>{pair}</attribute>" for pair in pairs)
        return f"<attributes>{inside}</attributes>"

    objects = [
        voc_object("a", BOX, attributes(rotation="90.0", colour="red")),
        voc_object("a", BOX, attributes(rotation="0.0", track_id="7") + "<polygon/>"),
    ]
    said, splits = prepared(tmp_path, voc_tree(tmp_path / "voc", {"x": objects}))
    assert boxes_by_name(splits["train"]) == {"x.png": [[13, 5, 37, 35], [10, 8, 40, 32]]}
    assert "rotated boxes, stored as their axis-aligned bounding boxes: 1" in said
    assert "objects with attribute 'colour', which is not used: 1" in said
    assert "objects with 'polygon', which is not used: 1" in said


def yolo_boxes(root, text, more=""):
    settings = f"names: [bolt, nut]\ntrain: images/train\n{more}"
    said, splits = prepared(root, yolo_tree(root / "yolo", {"a": text}, settings))
    return said, boxes_by_name(splits["train"])["a.png"]


WHOLE = [24, 16, 72, 48]  # 0.25 to 0.75 of 96 × 64


@pytest.mark.parametrize(
    ("row", "box", "counted"),
    [
        ("0 0.5 0.5 0.5 0.5", WHOLE, None),
        ("0 0.5 0.5 0.5 0.5 0.93", WHOLE, "boxes with a score, which is not used: 1"),
        ("0.0 0.5 0.5 0.5 0.5", WHOLE, None),
        ("0 .25 .25 .75 .25 .75 .75 .25 .75", WHOLE, "polygons or rotated boxes"),
        ("0 .5 .25 .75 .5 .5 .75 .25 .5", WHOLE, "polygons or rotated boxes"),
        ("0 .5 .25 .75 .75 .25 .5", WHOLE, "polygons or rotated boxes"),
        ("0 .5 .25 .75 .75 .25 .5 0.8", WHOLE, "boxes with a score"),
        ("0 .25 .25 .75 .25 .75 .75 .25 .75 0.8", WHOLE, "polygons or rotated boxes"),
    ],
)
def test_rows_of_yolo(tmp_path, row, box, counted):
    said, boxes = yolo_boxes(tmp_path, row + "\n")
    assert boxes == [box]
    assert counted is None or counted in said


@pytest.mark.parametrize("numbers", [6, 7])
def test_keypoints_behind_a_box_are_not_a_polygon(tmp_path, numbers):
    points = " 0.9 0.9 2" * 2
    score = " 0.7" if numbers == 7 else ""
    said, boxes = yolo_boxes(tmp_path, f"0 0.5 0.5 0.5 0.5{points}{score}\n", "kpt_shape: [2, 3]\n")
    assert boxes == [WHOLE]
    assert "boxes with keypoints, which are not used: 1" in said


def test_a_row_that_is_not_of_the_keypoints_shape_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.txt: line 1: expected 11 fields .* found 9"):
        yolo_boxes(tmp_path, "0 .5 .5 .5 .5 .1 .1 2 .2\n", "kpt_shape: [2, 3]\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.5", "line 1: expected 5 fields"),
        ("0 0,5 0,5 0,5 0,5", "line 1: '0,5' is not a number"),
        ("bolt 0.5 0.5 0.5 0.5", "line 1: invalid class_idx 'bolt'"),
        ("0.5 0.5 0.5 0.5 0.5", "line 1: invalid class_idx '0.5'"),
        ("2 0.5 0.5 0.5 0.5", "line 1: class_idx 2 is out of range"),
        ("0 0.5 0.5 0.5 0.5 inf", "box 1 is not four finite numbers"),
        ("0 10 10 50 10 50 40", "box 1 is outside 0 to 1"),
        ("٠ 0.5 0.5 0.5 0.5", "invalid class_idx"),
    ],
)
def test_rows_of_yolo_that_are_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        yolo_boxes(tmp_path, row)
    assert "a.txt" in str(caught.value)


def test_a_picture_of_a_format_that_is_not_read_is_named(tmp_path):
    arguments = yolo_tree(tmp_path / "yolo", {"a": "", "b": ""})
    folder = tmp_path / "yolo" / "images" / "train"
    (folder / "b.png").rename(folder / "b.heic")
    with pytest.raises(
        UserError, match=r"b.txt: no image with this name .*convert 'b.heic' to PNG"
    ):
        prepared(tmp_path, arguments)
    put(folder / "b.png", b"\0\0\0\x18ftypheic\0\0\0\0" + b"\0" * 200)
    with pytest.raises(
        UserError, match=r"b.png: .* HEIC is not supported; convert it to PNG or JPEG"
    ):
        prepared(tmp_path, arguments)
