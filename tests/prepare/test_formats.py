"""COCO, VOC and YOLO give the same records; a bad tree is one line that names the file."""

import json
import os

import pytest
from trees_of_formats import as_trees, assert_same, prepare

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.yolo_tree import read_yolo


@pytest.mark.slow
def test_blood_cells_in_three_formats_are_the_same_records(bccd, tmp_path):
    images = tmp_path / "images"  # a copy, to be linked
    images.mkdir()
    for picture in (bccd / "images").iterdir():
        (images / picture.name).write_bytes(picture.read_bytes())
    voc, yolo = as_trees(bccd, images, tmp_path)
    out = tmp_path / "out"
    prepare("coco", "--images", images, "--annotations", bccd / "train.json",
            "--annotations", bccd / "val.json", "--out", out)  # fmt: skip
    said = prepare("voc", "--tree", voc, "--split", "train", "--split", "val", "--out", out).stderr
    assert "train: 205 images" in said
    prepare("yolo", "--tree", yolo, "--out", out)
    for split in ("train", "validation"):
        of = {name: open_split(find_data_set(out, name), split) for name in ("coco", "voc", "yolo")}
        assert_same(of["coco"], of["voc"])
        assert_same(of["coco"], of["yolo"])
    assert of["coco"].category_ids == (1, 3, 7)
    assert of["yolo"].category_ids == (0, 1, 2)  # YOLO's own numbers


@pytest.fixture
def small_trees(two_aspects, tmp_path):
    """VOC and YOLO trees of a folder with landscape and portrait pictures, and its COCO split."""
    root = two_aspects.parent
    for split in ("train", "val"):
        content = json.loads((root / f"instances_{split}.json").read_text())
        for annotation in content["annotations"]:
            annotation["bbox"] = [max(1, round(v)) for v in annotation["bbox"]]
            annotation["iscrowd"] = 0
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return as_trees(tmp_path, root / "images", tmp_path)


def test_pictures_of_both_aspects_in_three_formats(small_trees, two_aspects, tmp_path):
    voc, yolo = small_trees
    out = tmp_path / "out"
    prepare(
        "coco",
        "--images",
        two_aspects.parent / "images",
        "--annotations",
        tmp_path / "train.json",
        "--annotations",
        tmp_path / "val.json",
        "--out",
        out,
    )
    prepare("voc", "--tree", voc, "--split", "train", "--split", "val", "--out", out)
    prepare("yolo", "--tree", yolo, "--out", out)
    coco = open_split(find_data_set(out, "coco"), "train")
    assert_same(coco, open_split(find_data_set(out, "voc"), "train"))
    assert_same(coco, open_split(find_data_set(out, "yolo"), "train"))
    assert (coco.box_counts == 0).any()  # pictures without a label stay


def test_a_voc_picture_is_that_of_the_annotations_own_name(small_trees):
    """Whatever its <filename> says: the development kit goes by the list."""
    voc, _ = small_trees
    path = voc / "Annotations" / "train_001.xml"
    path.write_text(path.read_text().replace("train_001.jpg", "train_002.jpg"))
    found = read_voc(voc, {"train": "train"})["train"][0]
    assert [i["file_name"] for i in found.images][:3] == [
        "train_000.jpg", "train_001.jpg", "train_002.jpg"
    ]  # fmt: skip


def test_difficult_objects_of_voc_are_crowds(small_trees):
    voc, _ = small_trees
    path = next(p for p in sorted((voc / "Annotations").iterdir()) if "<object>" in p.read_text())
    text = path.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1)
    path.write_text(text)
    found = read_voc(voc, {"train": "train", "validation": "val"})
    crowds = [
        a.get("iscrowd") for part, _ in found.values() for b in part.annotations.values() for a in b
    ]
    assert sum(crowds) == 1


def break_voc(voc, path, text):
    (voc / path).write_text(text)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("Annotations/train_001.xml", "<annotation><filename>train_001.jpg</filename>", "not XML"),
        ("Annotations/train_001.xml", "", "not XML"),
        ("Annotations/train_001.xml", "<annotation></annotation>", "missing <filename>"),
        ("ImageSets/Main/train.txt", "train_001\ntrain_001\n", "lists 'train_001' twice"),
        ("ImageSets/Main/train.txt", "../../secret\n", "is not a valid annotation name"),
        ("ImageSets/Main/train.txt", "\n", "lists no images"),
        ("ImageSets/Main/train.txt", "nowhere\n", "no such file, but split 'train' lists it"),
    ],
)
def test_a_bad_voc_tree_is_named(small_trees, path, text, message):
    voc, _ = small_trees
    (voc / path).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_voc(voc, {"train": "train"})
    assert str(voc / path) in str(caught.value) or "secret" in text or "nowhere" in text
    assert "\n" not in str(caught.value)


def test_a_voc_list_that_is_not_there_names_those_that_are(small_trees):
    with pytest.raises(
        UserError, match=r"trainval.txt: cannot be read .*; --split can be train, val"
    ):
        read_voc(small_trees[0], {"train": "trainval"})
    with pytest.raises(UserError, match="has no Annotations folder"):
        read_voc(small_trees[1], {"train": "train"})


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("labels/train/train_001.txt", "0 0.5 0.5 0.2\n", "line 1: expected 5 fields"),
        ("labels/train/train_001.txt", "9 0.5 0.5 0.2 0.2\n", r"class_idx 9 is out of range"),
        ("labels/train/train_001.txt", "-1 0.5 0.5 0.2 0.2\n", "invalid class_idx"),
        ("labels/train/train_001.txt", "0 nan 0.5 0.2 0.2\n", r"train_001.txt: box 1 is not four"),
        ("labels/train/train_001.txt", "0 80 60 20 20\n", r"train_001.txt: box 1 is outside 0 to"),
        ("data.yaml", "names: [a, a]\ntrain: images/train\n", "data.yaml: name 1 .*a duplicate"),
        ("labels/train/stray.txt", "0 0.5 0.5 0.2 0.2\n", "no image with this name"),
        ("images/train/train_001.png", "", "both use train_001.txt"),
        ("images/train/zz.jpg", "words", "cannot be decoded: not an image"),
        ("data.yaml", "train: images/train\n", "no list 'names'"),
        ("data.yaml", "names: [a]\ntrain: /etc\n", "is not a folder inside --tree"),
        ("data.yaml", "names: [a]\ntrain: ../../..\n", "contains no images"),
        ("data.yaml", "names: {0: a, 2: b}\ntrain: images/train\n", "must number the classes"),
        ("data.yaml", "names: [a\n", "not YAML"),
        ("data.yaml", "names: [a]\n", "names no folder for train"),
        ("data.yaml", "!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_bad_yolo_tree_is_named(small_trees, path, text, message):
    _, yolo = small_trees
    (yolo / path).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yolo(yolo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["images/train/zz.jpg", "labels/train/train_001.txt"])
def test_links_out_of_a_yolo_tree_are_read_only_if_asked(small_trees, tmp_path, path):
    _, yolo = small_trees
    secret = tmp_path / "secret"
    secret.write_bytes((yolo / "images/train/train_001.jpg").read_bytes() if "jpg" in path else b"")
    (yolo / path).unlink(missing_ok=True)
    (yolo / path).symlink_to(secret)
    with pytest.raises(UserError, match=r"link that leads outside .*; if .* --follow-links"):
        read_yolo(yolo)
    read_yolo(yolo, follow_links=True)


def test_links_out_of_a_voc_tree_are_read_only_if_asked(small_trees, tmp_path):
    voc, _ = small_trees
    path = voc / "Annotations" / "train_001.xml"
    path.rename(tmp_path / "secret.xml")
    path.symlink_to(tmp_path / "secret.xml")
    with pytest.raises(UserError, match=r"link that leads outside .*; if .* --follow-links"):
        read_voc(voc, {"train": "train"})
    read_voc(voc, {"train": "train"}, follow_links=True)


@pytest.mark.parametrize("path", ["labels.txt", "ImageSets/Main/train.txt", "JPEGImages"])
def test_nothing_else_of_a_voc_tree_leads_out_of_it(small_trees, tmp_path, path):
    voc, _ = small_trees
    if (voc / path).exists():
        (voc / path).rename(tmp_path / "secret")
    else:
        (tmp_path / "secret").write_text("secret\n")
    (voc / path).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"link that leads outside .*; if .* --follow-links"):
        read_voc(voc, {"train": "train"})


def test_special_files_in_a_tree_do_not_hang(small_trees):
    voc, yolo = small_trees
    os.mkfifo(yolo / "images/train/zz.jpg")
    assert len(read_yolo(yolo)["train"][0].images) == 16
    for tree, path, read in (
        (yolo, "labels/train/train_001.txt", read_yolo),
        (yolo, "data.yaml", read_yolo),
        (voc, "ImageSets/Main/train.txt", lambda tree: read_voc(tree, {"train": "train"})),
    ):
        (tree / path).unlink()
        os.mkfifo(tree / path)
        with pytest.raises(UserError, match="not a regular file"):
            read(tree)


def test_yolo_labels_are_never_lost_in_silence(small_trees):
    _, yolo = small_trees
    label = yolo / "labels/train/train_001.txt"
    boxes = read_yolo(yolo)["train"][0].annotations
    label.rename(label.with_suffix(".TXT"))
    assert read_yolo(yolo)["train"][0].annotations == boxes
    label.symlink_to("gone.txt")
    label.with_suffix(".TXT").unlink()
    with pytest.raises(UserError, match=r"train_001.txt: not a regular file, or a broken link"):
        read_yolo(yolo)


def test_a_yolo_tree_below_a_folder_named_images(small_trees, tmp_path):
    _, yolo = small_trees
    (tmp_path / "images_").mkdir()
    moved = tmp_path / "images_" / "images"
    yolo.rename(moved)
    flat = moved / "all"
    flat.mkdir()
    for path in (*(moved / "images/train").iterdir(), *(moved / "labels/train").iterdir()):
        path.rename(flat / path.name)
    (moved / "data.yaml").write_text("names: [a, b, c]\ntrain: all\n")
    assert len(read_yolo(moved)["train"][0].images) == 16


def test_yolo_names_may_be_odd(small_trees):
    _, yolo = small_trees
    text = 'names:\n- cat\n- "dog: big, [x]"\n- 3\ntrain: images/train\n'
    (yolo / "data.yaml").write_text(text)
    annotations, _ = read_yolo(yolo)["train"]
    assert annotations.categories == {0: "cat", 1: "dog: big, [x]", 2: "3"}
