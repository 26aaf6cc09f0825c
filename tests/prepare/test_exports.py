"""Small exports as other programs write them: what each gives, or the line that says what to do."""

import json

import pytest
from made_trees import (
    HEIGHT,
    WIDTH,
    boxes_by_name,
    classes_by_name,
    encoded,
    picture,
    prepared,
    put,
)

from retina_jax.errors import UserError

PNG, JPEG = encoded(picture()), encoded(picture(), "JPEG")


def test_cvat_coco(tmp_path):
    """annotations/instances_default.json, images/default/; attributes, rotation, track ids."""
    root = tmp_path / "cvat"
    put(root / "images" / "default" / "frame_000000.PNG", PNG)
    put(root / "images" / "default" / "frame_000001.PNG", PNG)
    image = {"width": WIDTH, "height": HEIGHT, "license": 0, "flickr_url": "", "coco_url": "",
             "date_captured": 0}  # fmt: skip
    attributes = {"occluded": False, "rotation": 0.0, "track_id": 0, "keyframe": True}
    box = {"image_id": 1, "category_id": 1, "segmentation": [], "area": 720.0,
           "bbox": [10.0, 8.0, 30.0, 24.0], "iscrowd": 0}  # fmt: skip
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "",
                 "version": "", "year": ""},
        "categories": [{"id": 1, "name": "bolt", "supercategory": ""},
                       {"id": 2, "name": "nut", "supercategory": ""}],
        "images": [{"id": i, "file_name": f"frame_00000{i - 1}.PNG", **image} for i in (1, 2)],
        "annotations": [
            {"id": 1, **box, "attributes": attributes},
            {"id": 2, **box, "attributes": attributes | {"occluded": True, "rotation": 90.0}},
        ],
    }  # fmt: skip
    file = put(root / "annotations" / "instances_default.json", json.dumps(content))
    arguments = ["coco", "--images", root / "images" / "default", "--annotations"]
    with pytest.raises(UserError, match=r"val or test in the name; write train=.*default.json"):
        prepared(tmp_path, [*arguments, file])
    said, splits = prepared(tmp_path, [*arguments, f"train={file}"])
    assert boxes_by_name(splits["train"]) == {
        "frame_000000.PNG": [[10, 8, 40, 32], [13, 5, 37, 35]],
        "frame_000001.PNG": [],
    }
    assert "attributes of annotations with 'occluded', which is not used: 1" in said
    assert "attributes of annotations with 'keyframe', which is not used: 2" in said


def test_cvat_voc(tmp_path):
    """ImageSets/Main/default.txt, labelmap.txt; occluded and attributes of objects."""
    root = tmp_path / "cvat"
    xml = f"""<annotation>
  <folder></folder><filename>frame_000000.PNG</filename>
  <source><database>Unknown</database></source>
  <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth></depth></size>
  <segmented>0</segmented>
  <object><name>bolt</name><pose>Unspecified</pose><truncated>1</truncated>
    <difficult>0</difficult><occluded>0</occluded>
    <bndbox><xmin>11.0</xmin><ymin>9.0</ymin><xmax>40.0</xmax><ymax>32.0</ymax></bndbox>
    <attributes><attribute><name>rotation</name><value>0.0</value></attribute>
      <attribute><name>colour</name><value>red</value></attribute></attributes>
  </object></annotation>"""
    put(root / "Annotations" / "frame_000000.xml", xml)
    put(root / "JPEGImages" / "frame_000000.PNG", PNG)
    put(root / "ImageSets" / "Main" / "default.txt", "frame_000000\n")
    put(
        root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:1,2,3::\n"
    )
    said, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "train=default"])
    assert boxes_by_name(splits["train"]) == {"frame_000000.PNG": [[10, 8, 40, 32]]}
    assert "objects marked truncated, kept as they are: 1" in said
    assert "objects with attribute 'colour', which is not used: 1" in said


def test_cvat_ultralytics(tmp_path):
    """data.yaml with a .txt file of pictures, names by number; rows of turned boxes."""
    root = tmp_path / "cvat"
    put(root / "images" / "train" / "a.png", PNG)
    put(root / "images" / "train" / "b c.png", PNG)
    put(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    put(root / "labels" / "train" / "b c.txt", "1 .25 .25 .75 .25 .75 .75 .25 .75\n")
    put(root / "train.txt", "data/images/train/a.png\ndata/images/train/b c.png\n")
    put(root / "data.yaml", "names:\n  0: bolt\n  1: nut\npath: .\ntrain: train.txt\n")
    said, splits = prepared(tmp_path, ["yolo", "--tree", root])
    assert classes_by_name(splits["train"]) == {
        "images/train/a.png": ["bolt"], "images/train/b c.png": ["nut"]
    }  # fmt: skip
    assert "polygons or rotated boxes, stored as their axis-aligned bounding boxes: 1" in said


def test_cvat_yolo_of_darknet(tmp_path):
    """obj.data, obj.names and a list of images; no data.yaml."""
    root = tmp_path / "cvat"
    put(root / "obj.names", "bolt\nnut\n")
    put(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    put(root / "obj_train_data" / "a.png", PNG)
    put(root / "obj_train_data" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    put(root / "train.txt", "data/obj_train_data/a.png\n")
    _, splits = prepared(tmp_path, ["yolo", "--tree", root])
    assert classes_by_name(splits["train"]) == {"obj_train_data/a.png": ["bolt"]}


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_label_studio_coco(tmp_path, slash):
    """result.json, images/; ids from 0, the folder in the name, ignore and empty polygons."""
    root = tmp_path / "studio"
    put(root / "images" / "8f2e-a.jpg", JPEG)
    content = {
        "images": [
            {"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": f"images{slash}8f2e-a.jpg"}
        ],
        "categories": [{"id": 0, "name": "bolt"}, {"id": 1, "name": "nut"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [], "ignore": 0,
             "bbox": [10.0, 8.0, 30.0, 24.0], "iscrowd": 0, "area": 720.0},
        ],
        "info": {"year": 2024, "version": "1.0", "contributor": "Label Studio"},
    }  # fmt: skip
    file = put(root / "result.json", json.dumps(content))
    for folder in (root, root / "images"):
        arguments = ["coco", "--images", folder, "--annotations", f"train={file}"]
        _, splits = prepared(tmp_path, arguments, name=f"in_{folder.name}")
        assert list(boxes_by_name(splits["train"]).values()) == [[[10, 8, 40, 32]]]
        assert splits["train"].category_ids == (0, 1)


def test_label_studio_yolo(tmp_path):
    """classes.txt, notes.json, images/, labels/ and no data.yaml."""
    root = tmp_path / "studio"
    put(root / "images" / "8f2e-a.jpg", JPEG)
    put(root / "labels" / "8f2e-a.txt", "1 0.5 0.5 0.5 0.5\n")
    put(root / "classes.txt", "bolt\nnut\n")
    put(root / "notes.json", "{}")
    _, splits = prepared(tmp_path, ["yolo", "--tree", root])
    assert boxes_by_name(splits["train"]) == {"8f2e-a.jpg": [[24, 16, 72, 48]]}


def voc_object(box, difficult=0):
    sides = "".join(
        f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        "<object><name>bolt</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"
    )


def test_label_studio_voc(tmp_path):
    """Annotations/, images/ and no ImageSets: all of it is the one split."""
    root = tmp_path / "studio"
    xml = f"<annotation><filename>8f2e-a</filename>{voc_object((11, 9, 40, 32))}</annotation>"
    put(root / "Annotations" / "8f2e-a.xml", f"<?xml version='1.0' ?>\n{xml}")
    put(root / "images" / "8f2e-a.jpg", JPEG)
    said, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "train"])
    assert boxes_by_name(splits["train"]) == {"8f2e-a.jpg": [[10, 8, 40, 32]]}
    assert "annotation files: all in the folder, because there is no ImageSets/Main: 1" in said


def test_roboflow_coco(tmp_path):
    """train/_annotations.coco.json among its pictures; a heading as category 0."""
    root = tmp_path / "flow"
    for split in ("train", "valid", "test"):
        name = "a_jpg.rf.0123abcd.jpg"
        put(root / split / name, JPEG)
        content = {
            "info": {"year": "2024", "url": "https://public.roboflow.com"},
            "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
            "categories": [{"id": 0, "name": "parts", "supercategory": "none"},
                           {"id": 1, "name": "bolt", "supercategory": "parts"}],
            "images": [{"id": 0, "license": 1, "file_name": name, "height": HEIGHT, "width": WIDTH,
                        "date_captured": "2024-01-01", "extra": {"name": "a.jpg"}}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 8, 30, 24],
                             "area": 720, "segmentation": [], "iscrowd": 0}],
        }  # fmt: skip
        put(root / split / "_annotations.coco.json", json.dumps(content))
    arguments = ["coco"]
    for split in ("train", "valid", "test"):
        arguments += [
            "--images",
            root / split,
            "--annotations",
            root / split / "_annotations.coco.json",
        ]
    said, splits = prepared(tmp_path, arguments)
    assert list(splits) == ["train", "validation", "test"]
    assert said.count("classes without boxes: 1") == 3
    assert said.count("images with 'extra', which is not used: 1") == 3
    assert boxes_by_name(splits["test"]) == {"a_jpg.rf.0123abcd.jpg": [[10, 8, 40, 32]]}


def test_roboflow_yolo(tmp_path):
    """data.yaml that points one folder up; names with dots; polygons among boxes."""
    root = tmp_path / "flow"
    for split in ("train", "valid"):
        put(root / split / "images" / "a_jpg.rf.01.jpg", JPEG)
        put(root / split / "images" / "a_jpg.rf.02.jpg", JPEG)
        put(
            root / split / "labels" / "a_jpg.rf.01.txt",
            "0 0.5 0.5 0.5 0.5\n0 .25 .25 .75 .25 .5 .75",
        )
        put(root / split / "labels" / "a_jpg.rf.02.txt", "")
    settings = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\n"
    more = "names: ['bolt']\n\nroboflow:\n  workspace: w\n  version: 1\n"
    put(root / "data.yaml", settings + more)
    said, splits = prepared(tmp_path, ["yolo", "--tree", root])
    assert list(splits) == ["train", "validation"]
    assert "splits in data.yaml that the tree does not contain (test), left out: 1" in said
    put(root / "data.yaml", settings.replace("../valid", "../val") + more)
    with pytest.raises(UserError, match=r"val: '../val/images' is not a folder inside --tree"):
        prepared(tmp_path, ["yolo", "--tree", root], name="again")
    boxes = {"a_jpg.rf.01.jpg": [[24, 16, 72, 48]] * 2, "a_jpg.rf.02.jpg": []}
    assert boxes_by_name(splits["validation"]) == boxes


def test_roboflow_voc(tmp_path):
    """XML files among the images, as labelImg writes them, too."""
    root = tmp_path / "flow"
    xml = f"<annotation><filename>a.jpg</filename>{voc_object((11, 9, 40, 32))}</annotation>"
    put(root / "train" / "a.xml", xml)
    put(root / "train" / "a.jpg", JPEG)
    _, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "train"])
    assert boxes_by_name(splits["train"]) == {"a.jpg": [[10, 8, 40, 32]]}


def test_labelimg(tmp_path):
    """Absolute Windows paths inside, verified, tabs; the list is the person's own."""
    root = tmp_path / "mine"
    xml = (
        '<annotation verified="yes">\n\t<folder>JPEGImages</folder>\n\t<filename>a b.JPG</filename>'
        "\n\t<path>C:\\Users\\me\\JPEGImages\\a b.JPG</path><source><database>Unknown</database>"
        f"</source>\n\t<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{voc_object((11, 9, 40, 32), 1)}</annotation>"
    )
    put(root / "Annotations" / "a b.xml", xml)
    put(root / "JPEGImages" / "a b.JPG", JPEG)
    put(root / "ImageSets" / "Main" / "train.txt", "a b\r\n")
    _, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "train"])
    assert boxes_by_name(splits["train"]) == {"a b.JPG": [[10, 8, 40, 32]]}
    assert splits["train"][0].is_crowd.tolist() == [True]


def test_vott_voc(tmp_path):
    """Lists of one class with names of files and -1 or 1."""
    root = tmp_path / "vott"
    for name in ("a 1.jpg", "b.jpg"):
        stem = name.removesuffix(".jpg")
        xml = f"<annotation verified='yes'><folder>Annotation</folder><filename>{name}</filename>"
        put(
            root / "Annotations" / f"{stem}.xml", f"{xml}{voc_object((11, 9, 40, 32))}</annotation>"
        )
        put(root / "JPEGImages" / name, JPEG)
    put(root / "ImageSets" / "Main" / "bolt_train.txt", "a 1.jpg 1\nb.jpg -1\n")
    _, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "bolt_train"])
    assert splits["train"].file_names.tolist() == ["a 1.jpg", "b.jpg"]


def test_fiftyone_coco(tmp_path):
    """data/ and labels.json; fields of its own on annotations."""
    root = tmp_path / "fifty"
    put(root / "data" / "a.jpg", JPEG)
    content = {
        "info": {}, "licenses": [],
        "categories": [{"id": 0, "name": "bolt", "supercategory": None}],
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH,
                    "license": None, "coco_url": None}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [10, 8, 30, 24],
                         "area": 720, "iscrowd": 0, "supercategory": "x", "confidence": 0.9}],
    }  # fmt: skip
    file = put(root / "labels.json", json.dumps(content))
    arguments = ["coco", "--images", root / "data", "--annotations", f"train={file}"]
    said, splits = prepared(tmp_path, arguments)
    assert boxes_by_name(splits["train"]) == {"a.jpg": [[10, 8, 40, 32]]}
    assert "annotations with 'confidence', which is not used: 1" in said


def test_fiftyone_voc_and_yolo(tmp_path):
    """data/ and labels/; dataset.yaml with ./images/train/."""
    root = tmp_path / "fifty"
    put(root / "data" / "a.jpg", JPEG)
    xml = (
        f"<annotation><filename>a.jpg</filename><path>/x/a.jpg</path>{voc_object((11, 9, 40, 32))}"
    )
    put(root / "labels" / "a.xml", xml + "</annotation>")
    _, splits = prepared(tmp_path, ["voc", "--tree", root, "--split", "train"])
    assert boxes_by_name(splits["train"]) == {"a.jpg": [[10, 8, 40, 32]]}
    root = tmp_path / "fifty5"
    put(root / "images" / "train" / "a.jpg", JPEG)
    put(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.5 0.5 0.93\n")
    put(root / "dataset.yaml", "names:\n  0: bolt\npath: .\ntrain: ./images/train/\n")
    said, splits = prepared(tmp_path, ["yolo", "--tree", root], name="five")
    assert boxes_by_name(splits["train"]) == {"a.jpg": [[24, 16, 72, 48]]}
    assert "boxes with a score, which is not used: 1" in said


def test_supervisely(tmp_path):
    """Its COCO, with polygons as floats and categories from 0; its VOC, with lists of classes."""
    root = tmp_path / "super"
    put(root / "ds0" / "images" / "a.jpeg", JPEG)
    content = {
        "info": {"description": None, "year": 2024}, "licenses": [{"url": None, "id": 0}],
        "images": [{"license": None, "file_name": "a.jpeg", "url": "https://x", "height": HEIGHT,
                    "width": WIDTH, "date_captured": "2024", "id": 11}],
        "type": "instances",
        "annotations": [{"segmentation": [[10.0, 8.0, 40.0, 8.0, 40.0, 32.0]], "area": 360.0,
                         "iscrowd": 0, "image_id": 11, "bbox": [10.0, 8.0, 30.0, 24.0],
                         "category_id": 1, "id": 12}],
        "categories": [{"supercategory": "bolt", "id": 1, "name": "bolt"}],
    }  # fmt: skip
    file = put(root / "ds0" / "annotations" / "instances.json", json.dumps(content))
    arguments = ["coco", "--images", root / "ds0" / "images", "--annotations", f"train={file}"]
    said, splits = prepared(tmp_path, arguments)
    assert splits["train"][0].areas.tolist() == [360]
    assert "annotations with 'segmentation', which is not used: 1" in said
    voc = tmp_path / "super_voc"
    xml = (
        f"<annotation><folder>VOC</folder><filename>a.jpeg</filename>{voc_object((11, 9, 40, 32))}"
    )
    put(voc / "Annotations" / "a.xml", xml + "</annotation>")
    put(voc / "JPEGImages" / "a.jpeg", JPEG)
    put(voc / "ImageSets" / "Main" / "trainval.txt", "a\n")
    put(voc / "ImageSets" / "Main" / "bolt_train.txt", "a  1\n")
    for listed in ("trainval", "bolt_train"):
        _, splits = prepared(tmp_path, ["voc", "--tree", voc, "--split", listed], name=listed)
        assert boxes_by_name(splits["train"]) == {"a.jpeg": [[10, 8, 40, 32]]}
