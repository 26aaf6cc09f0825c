"""Names match by what they mean, or the message shows how they differ."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trees import (
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

from retina_jax.errors import UserError
from retina_jax.prepare import names
from retina_jax.prepare.build import named_splits
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_tree import read_yolo

NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
PNG = encoded(picture())
SPELT = "images whose file name is spelt differently in the annotations: 1"


@pytest.mark.parametrize(
    ("written", "there"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("\ufeffa.png", "a.png"),
        ("a.PNG", "a.png"),
        ("a.png", "a.PNG"),
        ("images\\a.png", "a.png"),
        ("images/a.png", "a.png"),
        ("sub\\a.png", "sub/a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        (f"sub\\{NFC}", f"sub/{NFD}"),
    ],
)
def test_a_picture_is_found_by_another_spelling(tmp_path, written, there):
    content = coco_content(1)
    content["images"][0]["file_name"] = written
    said, splits = prepared(tmp_path, coco_tree(tmp_path, content, {there: PNG}))
    assert len(splits["train"]) == 1
    assert SPELT in said
    assert "do not mention" not in said


def test_the_exact_name_comes_first(tmp_path):
    content = coco_content(2)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = NFC, NFD
    pictures = {NFC: PNG, NFD: encoded(picture(5))}
    said, splits = prepared(tmp_path, coco_tree(tmp_path, content, pictures))
    assert splits["train"][0].image == PNG
    assert splits["train"][1].image == pictures[NFD]
    assert "spelt" not in said


def test_a_name_that_can_mean_two_files_is_refused(tmp_path):
    content = coco_content(1)
    content["images"][0]["file_name"] = "a.PNG"
    arguments = coco_tree(tmp_path, content, {"a.png": PNG, "a.Png": PNG})
    with pytest.raises(UserError, match=r"image 1 \('a.PNG'\): matches 'a.Png' and 'a.png'"):
        prepared(tmp_path, arguments)


@pytest.mark.parametrize(
    ("written", "there", "shown"),
    [
        ("a\u200b.png", "a.png", r"'a\\u200b.png' \(did you mean 'a.png'\?\)"),
        ("a\u00a0b.png", "a b.png", r"'a\\xa0b.png' \(did you mean 'a b.png'\?\)"),
        ("\uff41.png", "a.png", r"'\\uff41.png' \(did you mean 'a.png'\?\)"),
        ("A.png", "a.png", r"'A.png' \(did you mean 'a.png'\?\)"),
        ("picture_01.png", "picture_1.png", r"\(did you mean 'picture_1.png'\?\)"),
        ("a.jpg", "a.png", r"'a.jpg'"),
    ],
)
def test_a_name_that_is_not_found_shows_the_difference(tmp_path, written, there, shown):
    content = coco_content(1)
    content["images"][0]["file_name"] = written
    arguments = coco_tree(tmp_path, content, {there: PNG})
    with pytest.raises(UserError, match=rf"missing from --images .*: image 1: .*{shown}"):
        prepared(tmp_path, arguments)


@pytest.mark.parametrize(
    "name", ["..\\secret.png", "C:\\data\\a.png", "\\data\\a.png", "sub\\..\\..\\a.png", "/a.png"]
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    put(tmp_path / "secret.png", PNG)
    content = coco_content(1)
    content["images"][0]["file_name"] = name
    with pytest.raises(UserError, match="lies outside the image folder"):
        prepared(tmp_path, coco_tree(tmp_path, content, {"a.png": PNG}))


OBJECT = [voc_object("x", (1, 1, 20, 20))]


@pytest.mark.parametrize(
    ("files", "listed", "stems"),
    [
        (["a", "b"], "a 1\nb -1\n", ["a", "b"]),
        (["a", "b"], "a  0\r\nb\t1\r\n", ["a", "b"]),
        (["a 1", "a"], "a 1\na\n", ["a 1", "a"]),
        (["a 1"], "a 1\n", ["a 1"]),
        (["a 1"], "a 1 -1\n", ["a 1"]),
        (["my picture (2)"], "my picture (2)\n", ["my picture (2)"]),
        (["a b"], "a b 1\n", ["a b"]),
        (["x"], "x.png\n", ["x"]),
        (["x"], "x.JPG -1\n", ["x"]),
        (["x.jpg", "x"], "x.jpg\n", ["x.jpg"]),
        (["sub/a"], "sub/a\n", ["sub/a"]),
        (["sub/a"], "sub\\a\n", ["sub/a"]),
        (["-1"], "-1\n", ["-1"]),
        (["a\x0bb", "c\u2028d"], "a\x0bb\nc\u2028d\n", ["a\x0bb", "c\u2028d"]),
        ([NFC[:-4]], NFD[:-4] + "\n", [NFC[:-4]]),
    ],
)
def test_lines_of_a_voc_list(tmp_path, files, listed, stems):
    xml = "<annotation><filename>-</filename>" + OBJECT[0] + "</annotation>"
    voc_tree(tmp_path / "voc", {stem: xml.encode() for stem in files}, listed)
    found = read_voc(tmp_path / "voc", {"train": "train"})["train"][0]
    assert [image["file_name"] for image in found.images] == [f"{stem}.png" for stem in stems]


def test_a_line_that_names_nothing_is_shown(tmp_path):
    voc_tree(tmp_path / "voc", {"a": OBJECT}, "a\u200b\n")
    with pytest.raises(UserError, match=r"no such file \('a\\u200b'\), but split 'train' lists it"):
        read_voc(tmp_path / "voc", {"train": "train"})


@pytest.mark.parametrize(("label", "image"), [(NFC, NFD), (NFD, NFC)])
def test_labels_and_pictures_of_yolo_match_in_any_form(tmp_path, label, image):
    root = tmp_path / "yolo"
    yolo_tree(root, {"x": None})
    put(root / "images" / "train" / image, PNG)
    put(root / "labels" / "train" / f"{label[:-4]}.txt", "1 0.5 0.5 0.5 0.5\n")
    found, _ = read_yolo(root)["train"]
    (image_id,) = (i["id"] for i in found.images if i["file_name"] == image)
    assert len(found.annotations[image_id]) == 1


def test_classes_of_two_files_match_in_any_form(tmp_path):
    content = coco_content(1)
    content["categories"][0]["name"] = NFC[:-4]
    arguments = coco_tree(tmp_path, content)
    text = (tmp_path / "train.json").read_text()
    put(tmp_path / "val.json", text.replace("caf\\u00e9", "cafe\\u0301"))
    _, splits = prepared(tmp_path, [*arguments, "--annotations", tmp_path / "val.json"])
    assert splits["validation"].class_names == (NFC[:-4], "nut")


@pytest.mark.parametrize(
    "path", ["a=b/train.json", "lr=0.1_train.json", "run=3/x=y/train.json", "=train.json"]
)
def test_a_path_may_hold_an_equals_sign(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = coco_tree(tmp_path, coco_content(1))
    put(tmp_path / path, (tmp_path / "train.json").read_text())
    for number, what in enumerate((path, f"train={path}", tmp_path / path)):
        _, splits = prepared(tmp_path, [*arguments[:-1], what], name=f"made{number}")
        assert list(splits) == ["train"]


def test_what_names_a_split():
    there = {"train=x.json", "data/train.json", "v=train.json", "train.json"}
    exists = there.__contains__
    assert named_splits("-", ["train=x.json"], exists) == {"train": "train=x.json"}
    assert named_splits("-", ["v=train.json"], exists) == {"v": "train.json"}
    assert named_splits("-", ["mine=data/train.json"], exists) == {"mine": "data/train.json"}
    assert named_splits("-", ["mine=gone.json"], exists) == {"mine": "gone.json"}
    assert named_splits("-", ["train/_annotations.coco.json"]) == {
        "train": "train/_annotations.coco.json"
    }
    with pytest.raises(UserError, match="'Train' is not a valid split name"):
        named_splits("-", ["Train=x.json"], exists)
    with pytest.raises(UserError, match="no train, val or test in the name; write train="):
        named_splits("-", ["instances_default.json"], exists)


@given(st.text(max_size=20))
def test_a_key_is_its_own_key(text):
    once = names.key(text)
    assert names.key(once) == once
    assert names.key(unicodedata.normalize("NFD", text)) == names.key(
        unicodedata.normalize("NFC", text)
    )
