"""Where tools put annotations and images: `train --data` finds them without being told."""

import json
from pathlib import Path

import pytest
from made_trees import coco_content, encoded, picture, prepared, put, voc_object, voc_xml

from retina_jax.errors import UserError
from retina_jax.prepare.folders import split_in
from retina_jax.prepare.own_files import open_source, recognise

PNG = encoded(picture())
CLASSES = "bolt\nnut\n"
YAML = "train: images\nnames: [bolt, nut]\n"
NUT = "1 0.5 0.5 0.25 0.25\n"


def nut(name):
    return voc_xml(f"{name}.png", [voc_object("nut", (2, 3, 20, 30))])


def annotated(annotations, pictures=None, names="abcd"):
    """The files of a VOC data set; ``pictures``: their folder, else that of the XML files."""
    pictures = annotations if pictures is None else pictures
    return {f"{annotations}/{name}.xml": nut(name) for name in names} | {
        f"{pictures}/{name}.png": PNG for name in names
    }


def labelled(labels, pictures, names="abcd"):
    return {f"{labels}/{name}.txt": NUT for name in names} | {
        f"{pictures}/{name}.png": PNG for name in names
    }


TWO = {"train": 4, "validation": 2}
LAYOUTS = {
    "labelImg, two folders": (annotated("annotations", "images"), "annotations/*.xml", 4),
    "two folders of any name": (annotated("annots", "pictures"), "annots/*.xml", 4),
    "capital folder, other images": (annotated("Annotations", "img"), "Annotations/*.xml", 4),
    "labelImg, one folder": (annotated("."), "*.xml", 4),
    "one folder below": (annotated("photos"), "photos/*.xml", 4),
    "a folder for each class": (
        annotated("images/bolts", names="ab") | annotated("images/valves", names="abc"),
        "images/*.xml", 5),
    "images with copies elsewhere": (
        annotated("images") | {"thumbnails/a.png": PNG}, "images/*.xml", 4),
    "Roboflow VOC": (
        annotated("train") | annotated("valid", names="xy"), "train/*.xml, valid/*.xml", TWO),
    "TensorFlow's tutorials": (
        annotated("images/train") | annotated("images/test", names="ab")
        | {"training/labelmap.pbtxt": "", "images/train_labels.csv": ""},
        "images/train/*.xml, images/test/*.xml", {"train": 4, "test": 2}),
    "splits below annotations": (
        annotated("annotations/train", "images/train")
        | annotated("annotations/val", "images/val", "ab"),
        "annotations/train/*.xml, annotations/val/*.xml", TWO),
    "splits of annotations, one folder of images": (
        annotated("train_xml", "images") | annotated("val_xml", "images", "xy"),
        "train_xml/*.xml, val_xml/*.xml", TWO),
    "folders within splits": (
        annotated("train/ann", "train/img") | annotated("validation/ann", "validation/img", "ab"),
        "train/ann/*.xml, validation/ann/*.xml", TWO),
    "Label Studio VOC": (annotated("Annotations", "images"), "Annotations/*.xml", 4),
    "FiftyOne VOC": (annotated("labels", "data"), "labels/*.xml", 4),
    "CVAT VOC": (
        annotated("Annotations", "JPEGImages")
        | {"ImageSets/Main/default.txt": "a\nb\nc\n", "labelmap.txt": "bolt:1,2,3::\n"},
        "ImageSets/Main", 3),
    "Label Studio YOLO": (
        labelled("labels", "images") | {"classes.txt": CLASSES, "notes.json": "{}"},
        "classes.txt", 4),
    "labelImg YOLO": (labelled(".", ".") | {"classes.txt": CLASSES}, "classes.txt", 4),
    "labelImg YOLO, two folders": (
        labelled("labels", "images") | {"labels/classes.txt": CLASSES}, "labels/classes.txt", 4),
    "YOLO, folders of splits": (
        labelled("images/train", "images/train") | labelled("labels/train", "images/train")
        | labelled("labels/val", "images/val", "ab")
        | {"classes.txt": CLASSES, "labels/train/classes.txt": CLASSES}, "classes.txt", TWO),
    "YOLO, splits first": (
        labelled("train/labels", "train/images") | labelled("valid/labels", "valid/images", "ab")
        | {"classes.txt": CLASSES}, "classes.txt", TWO),
    "CVAT YOLO": (
        labelled("obj_train_data", "obj_train_data")
        | {"obj.names": CLASSES, "train.txt": "data/obj_train_data/a.png\n"
           "data/obj_train_data/b.png\n", "obj.data": "classes = 2\ntrain = data/train.txt\n"
           "names = data/obj.names\nbackup = backup/\n"}, "obj.names", 2),
    "Darknet, two lists": (
        labelled("obj", "obj", "abcdef")
        | {"obj.names": CLASSES, "train.txt": "".join(f"build/obj/{n}.png\n" for n in "abcd"),
           "test.txt": "obj/e.png\nobj/f.png\n",
           "obj.data": "train=data/train.txt\nvalid=data/test.txt\n"}, "obj.names", TWO),
    "lists beside classes.txt": (
        labelled("labels", "images", "abcdef")
        | {"classes.txt": CLASSES, "train.txt": "".join(f"./images/{n}.png\r\n" for n in "abcd"),
           "val.txt": "images/e.png\nimages/f.png"}, "classes.txt", TWO),
    "Darknet in a folder": (
        labelled("data/obj", "data/obj")
        | {"data/obj.names": CLASSES, "data/train.txt": "data/obj/a.png\ndata/obj/b.png\n",
           "data/obj.data": "train = data/train.txt\nvalid = data/train.txt\n"}, "obj.names", 2),
    "data.yaml below, beside other names": (
        labelled("set/labels", "set/images")
        | {"set/data.yaml": YAML, "set/classes.txt": "nut\nbolt\n"},
        "data.yaml", 4),
    "data.yml": (
        labelled("labels", "images") | {"data.yml": YAML},
        "data.yml", 4),
    "data.yaml, capital folders": (
        labelled("Labels", "Images") | {"data.yaml": "train: Images\nnames: [bolt, nut]\n"},
        "data.yaml", 4),
    "labelImg YOLO, saved among the images": (
        labelled("images", "images") | {"images/classes.txt": CLASSES, "images/README.txt": "me"},
        "images/classes.txt", 4),
    "labelImg YOLO, saved among the images of splits": (
        labelled("images/train", "images/train") | labelled("images/val", "images/val", "ab")
        | {"images/train/classes.txt": CLASSES}, "images/train/classes.txt", TWO),
    "YOLO, folders of a folder of splits": (
        labelled("train_val/labels/train", "train_val/images/train")
        | labelled("train_val/labels/val", "train_val/images/val", "ab")
        | {"train_val/classes.txt": CLASSES}, "train_val/classes.txt", TWO),
    "YOLO in capitals": (
        {f"Train/Labels/{name}.TXT": NUT for name in "ab"}
        | {f"Train/Images/{name}.PNG": PNG for name in "ab"} | {"classes.txt": CLASSES},
        "classes.txt", 2),
    "YOLO beside other pictures": (
        labelled("labels", "images") | {"classes.txt": CLASSES, "docs/images/logo.png": PNG},
        "classes.txt", 4),
    "splits within a folder of a split's name": (
        annotated("training/train") | annotated("training/val", names="ab"),
        "training/train/*.xml, training/val/*.xml", TWO),
    "splits within a folder of two splits' names": (
        annotated("train_test_split/train") | annotated("train_test_split/test", names="ab"),
        "train_test_split/train/*.xml, train_test_split/test/*.xml", {"train": 4, "test": 2}),
    "trainset and testset": (
        annotated("trainset") | annotated("testset", names="ab"),
        "trainset/*.xml, testset/*.xml", {"train": 4, "test": 2}),
    "batches": (
        annotated("batch1/annotations", "batch1/images")
        | annotated("batch2/annotations", "batch2/images", "xyz"), "*.xml", 7),
    "images in folders of any name": (
        annotated("annotations", "images/left", "abc")
        | annotated("annotations", "images/right", "x"),
        "annotations/*.xml", 4),
    "folders of annotations, one of images": (
        annotated("annotations/x", "images", "ab") | annotated("annotations/y", "images", "cd"),
        "annotations/*.xml", 4),
    "the kit, in a folder": (
        annotated("kit/Annotations", "kit/JPEGImages")
        | {"kit/ImageSets/Main/trainval.txt": "a\nb\n"},
        "ImageSets/Main", 2),
    "the kit, other names of lists": (
        annotated("Annotations", "JPEGImages", "abcdef")
        | {"ImageSets/Main/Train.txt": "a\nb\nc\nd\n", "ImageSets/Main/Validation.txt": "e\nf\n"},
        "ImageSets/Main", TWO),
    "the kit and outdated files": (
        annotated("Annotations", "JPEGImages") | annotated("old", "JPEGImages"),
        "Annotations/*.xml", 4),
    "the kit, converted to YOLO as well": (
        annotated("Annotations", "images") | labelled("labels", "images")
        | {"classes.txt": CLASSES},
        "Annotations/*.xml", 4),
    "data.yaml and the XML it was made from": (
        labelled("labels", "images") | {"data.yaml": YAML}
        | {f"xmls/{name}.xml": nut(name) for name in "abcd"}, "data.yaml", 4),
    "left behind by macOS and editors": (
        annotated("annotations", "images") | annotated("images/.ipynb_checkpoints", names="ef")
        | {f"__MACOSX/annotations/._{name}.xml": nut(name) for name in "ab"}
        | {"annotations/._a.xml": "\0", ".idea/workspace.xml": "<project/>"},
        "annotations/*.xml", 4),
    "XML of another kind": (
        labelled("labels", "images") | {"classes.txt": CLASSES}
        | {"annotations.xml": "<annotations/>"}, "classes.txt", 4),
    "FiftyOne COCO, splits": (
        {"train/labels.json": json.dumps(coco_content(4)),
         "validation/labels.json": json.dumps(coco_content(2))}
        | {f"train/data/p{i}.png": PNG for i in range(1, 5)}
        | {f"validation/data/p{i}.png": PNG for i in range(1, 3)}, "labels.json, labels.json", TWO),
    "CVAT COCO": (
        {"annotations/instances_default.json": json.dumps(coco_content(4))}
        | {f"images/default/p{i}.png": PNG for i in range(1, 5)}, "instances_default.json", 4),
}  # fmt: skip


def made(root, files):
    for name, content in files.items():
        put(root / name, content)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_found_as_tools_write_them(layout, tmp_path):
    files, why, expected = LAYOUTS[layout]
    found = recognise(made(tmp_path, files))
    assert found.why == why
    source, line = open_source(found)
    rows = {split: len(rows) for split, rows in source.rows.items()}
    if isinstance(expected, dict):
        assert rows == expected
    else:
        assert line.startswith("one split; held out "), line
        assert sum(rows.values()) == expected
    for rows in source.rows.values():
        for row in range(len(rows)):
            record = rows.read(row)
            assert [source.class_names[label] for label in record.labels] == ["bolt"] * (
                found.kind == "coco"
            ) + ["nut"] * (found.kind != "coco")
            assert record.image is None or len(record.image)


MISTAKES = {
    "a split and no split": (
        annotated("images/train") | annotated("annotations"),
        "contains annotations in images/train/ and in annotations/, which belongs to no split"),
    "two folders of the same images": (
        annotated("annotations", "a") | annotated("annotations", "b"),
        r"a/ and b/ both contain the images of annotations/\*.xml; move one away"),
    "only a test split": (annotated("test"), r"contains test/\*.xml, none for training"),
    "splits in two places": (
        annotated("a/train") | annotated("b/train") | annotated("a/test"),
        r"annotations for train are in several folders \(a/train/\*.xml, b/train/\*.xml\)"),
    "names that differ": (
        labelled("labels", "images") | {"classes.txt": CLASSES, "labels/classes.txt": "nut\nbolt"},
        "classes.txt differ; delete the outdated one"),
    "no images": (
        {f"annotations/{name}.xml": nut(name) for name in "abc"}, r"annotations.*a\.png"),
    "COCO without images": (
        {"train.json": json.dumps(coco_content(2)), "images/other.png": PNG},
        "its images, such as 'p1.png', are not in .*; move them to images/ beside the file"),
    "COCO with masks of the same names": (
        {"annotations/train.json": json.dumps(coco_content(2))}
        | {f"{folder}/p{i}.png": PNG for folder in ("img", "a_masks") for i in (1, 2)},
        "both contain its images; move one away"),
    "COCO with images twice": (
        {"annotations/train.json": json.dumps(coco_content(2))}
        | {f"{folder}/{half}/p{i}.png": PNG for folder in "ab" for half in "cd" for i in (1, 2)},
        "both contain its images; move one away"),
    "only a test split of YOLO": (
        labelled("test/labels", "test/images") | {"classes.txt": CLASSES},
        "contains test/images, none for training"),
    "several data sets": (
        {f"{name}/data.yaml": "names: [bolt]\ntrain: images\n" for name in ("first", "second")},
        r"contains several data sets \(first/, second/\); choose one"),
    "splits of the images alone": (
        annotated("annotations", "images/train", "ab")
        | annotated("annotations", "images/val", "cd"),
        r"images of annotations/\*.xml are in images/train/ and images/val/; move the XML"),
    "a line without a name": (
        labelled("labels", "images") | {"classes.txt": "bolt\n\nnut\n"},
        "classes.txt: line 2 is empty; write the name of its class"),
    "a class that is not listed": (
        labelled("labels", "images") | {"classes.txt": "bolt\n"},
        "out of range: there are 1 class"),
    "XML of something else": (
        {"a.xml": "<project/>", "a.png": PNG}, "is no data set; looked for"),
    "classes.txt of something else": (
        {"classes.txt": CLASSES, "images/a.png": PNG}, "is no data set; looked for"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_unclear_is_told_in_one_line(mistake, tmp_path):
    files, words = MISTAKES[mistake]
    made(tmp_path, files)
    with pytest.raises(UserError, match=words) as told:
        open_source(recognise(tmp_path))
    assert "\n" not in str(told.value)


def test_prepare_takes_the_splits_of_folders(tmp_path):
    made(tmp_path / "tree", annotated("images/train") | annotated("images/test", names="ab"))
    arguments = ["voc", "--tree", tmp_path / "tree", "--split", "train", "--split"]
    said, splits = prepared(tmp_path, [*arguments, "validation=test"])
    assert {name: len(split) for name, split in splits.items()} == TWO
    assert "all in the folder, because there is no ImageSets/Main: 4" in said
    with pytest.raises(UserError, match=r"annotations for --split val; --split can be train, test"):
        prepared(tmp_path, [*arguments, "val"], name="again")


def test_equal_names_in_two_splits_are_two_images(tmp_path):
    made(tmp_path, annotated("train", names="ab") | annotated("val", names="ab"))
    source, _ = open_source(recognise(tmp_path))
    ids = {split: {rows.read(row).image_id for row in range(2)}
           for split, rows in source.rows.items()}  # fmt: skip
    assert not ids["train"] & ids["validation"]


def test_a_linked_folder_is_read_only_within_the_data_set(tmp_path):
    made(tmp_path / "elsewhere", annotated("."))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"link that leads outside .*; if .* --follow-links"):
        open_source(recognise(tmp_path / "tree"))


def file_names(source, split="train"):
    return {image["file_name"] for image in source.rows[split].annotations.images}


@pytest.mark.parametrize("image", ["pictures", "data"])
def test_masks_are_not_taken_for_the_images(image, tmp_path):
    """They have the same stems, and may be more; <filename> tells."""
    made(tmp_path, annotated("annotations", image))
    made(tmp_path, {f"masks/{name}.jpg": encoded(picture(), "JPEG") for name in "abcd"})
    source, _ = open_source(recognise(tmp_path))
    assert {Path(name).suffix for split in source.rows for name in file_names(source, split)} == {
        ".png"
    }
    (tmp_path / image / "d.png").unlink()
    with pytest.raises(UserError, match=r"d\.png"):
        open_source(recognise(tmp_path))


@pytest.mark.parametrize(
    ("folders", "json_at"),
    [
        (("train2017", "val2017"), "annotations/instances_{}2017.json"),
        (("images/Train", "images/Validation"), "annotations/instances_{}.json"),
    ],
)
def test_numbered_alike_each_split_has_its_own_images(folders, json_at, tmp_path):
    wide = encoded(picture(1))
    for folder, word, content in zip(folders, ("train", "val"), (PNG, wide), strict=True):
        made(tmp_path, {f"{folder}/p{i}.png": content for i in (1, 2)})
        made(tmp_path, {json_at.format(word): json.dumps(coco_content(2))})
    source, _ = open_source(recognise(tmp_path))
    for split, content in (("train", PNG), ("validation", wide)):
        assert {source.rows[split].read(row).image for row in range(2)} == {content}


def test_images_that_are_left_out_are_counted(tmp_path):
    made(tmp_path, annotated("positive") | {"negative/x.png": PNG, "negative/y.png": PNG})
    source, _ = open_source(recognise(tmp_path))
    assert source.found == {"images in other folders, such as negative/, left out": 2}


def test_a_link_within_the_data_set_shows_nothing_twice(tmp_path):
    made(tmp_path, labelled("v1/labels", "v1/images") | {"classes.txt": CLASSES})
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    source, _ = open_source(recognise(tmp_path))
    assert sum(map(len, source.rows.values())) == 4


def test_prepare_does_not_take_another_split(tmp_path):
    made(tmp_path / "tree", annotated("test"))
    arguments = ["voc", "--tree", tmp_path / "tree", "--split"]
    with pytest.raises(UserError, match=r"annotations for --split train; --split can be test"):
        prepared(tmp_path, [*arguments, "train"])
    _, splits = prepared(tmp_path, [*arguments, "train=test"])
    assert len(splits["train"]) == 4


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("trainval", "train"), ("train_zip", "train"),
        ("train2017", "train"), ("obj_train_data", "train"), ("valid", "validation"),
        ("val", "validation"), ("Validation-set", "validation"), ("dev", "validation"),
        ("testing", "test"), ("images_test", "test"), ("valves", None), ("contest", None),
        ("train_test", None), ("trainer", None), ("images", None),
    ],
)  # fmt: skip
def test_the_split_that_a_name_tells(name, split):
    assert split_in(name) == split
