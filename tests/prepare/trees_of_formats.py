"""The same data as COCO, VOC and YOLO trees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hotcoco
import numpy as np

REPOSITORY = next(p for p in Path(__file__).parents if (p / "setup.cfg").exists())


def prepare(*arguments, check=True):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/prepare.py", *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


def as_trees(folder, images, root):
    """A COCO folder of train.json and val.json as a VOC and as a YOLO tree."""
    voc, yolo = root / "voc", root / "yolo"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "JPEGImages").mkdir()
    for picture in images.iterdir():
        os.link(picture, voc / "JPEGImages" / picture.name)
    names = {}
    for split in ("train", "val"):
        coco = hotcoco.COCO(str(folder / f"{split}.json"))
        coco.to_voc(str(voc))
        stems = sorted(Path(i["file_name"]).stem for i in coco.dataset["images"])
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        coco.to_yolo(str(yolo / "labels" / split))
        (yolo / "labels" / split / "data.yaml").unlink()
        (yolo / "images" / split).mkdir(parents=True)
        for image in coco.dataset["images"]:
            source = images / image["file_name"]
            os.link(source, yolo / "images" / split / image["file_name"])
        categories = sorted(coco.dataset["categories"], key=lambda c: c["id"])
        names = {i: c["name"] for i, c in enumerate(categories)}
    settings = {"path": "../elsewhere", "train": "images/train", "val": "images/val"}
    (yolo / "data.yaml").write_text(json.dumps({**settings, "names": list(names.values())}))
    return voc, yolo


def assert_same(split, other, ids=True):
    assert len(split) == len(other)
    assert split.class_names == other.class_names
    order = np.argsort(split.file_names), np.argsort(other.file_names)
    for row, their in zip(*order, strict=True):
        ours, theirs = split[int(row)], other[int(their)]
        assert split.file_names[row] == other.file_names[their]
        assert ours.image == theirs.image
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.is_crowd.tolist() == theirs.is_crowd.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=2e-3)  # YOLO's six digits
