"""Small trees of every format, made by a test, and the command run on them in this process."""

import io
import json
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from rich.console import Console

from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.jobs import prepare as command
from retina_jax.progress import Reporter

WIDTH, HEIGHT = 96, 64


def picture(seed=0, width=WIDTH, height=HEIGHT):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def coco_content(count=2, first=1, **fields):
    """``count`` images of one box each, all with ``fields``."""
    numbers = range(first, first + count)
    return {
        "images": [
            {"id": i, "file_name": f"p{i}.png", "width": WIDTH, "height": HEIGHT} for i in numbers
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 8, 30, 24]} | fields
            for i in numbers
        ],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }


def coco_tree(root, content, pictures=None):
    """train.json and images/; without ``pictures``, one for each image."""
    if pictures is None:
        pictures = {i["file_name"]: encoded(picture(i["id"])) for i in content["images"]}
    (root / "images").mkdir(exist_ok=True)
    for name, data in pictures.items():
        put(root / "images" / name, data)
    put(root / "train.json", json.dumps(content))
    return ["coco", "--images", root / "images", "--annotations", root / "train.json"]


def voc_object(name, corners, more=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc_xml(filename, objects):
    return (
        f"<annotation><filename>{escape(filename)}</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def voc_tree(root, files, listed=None):
    """``files``: stem to the XML of its objects, or a whole file as bytes."""
    (root / "Annotations").mkdir(parents=True)
    for i, (stem, content) in enumerate(files.items()):
        put(root / "JPEGImages" / f"{stem}.png", encoded(picture(i)))
        if not isinstance(content, bytes):
            content = voc_xml(f"{stem}.png", content)
        put(root / "Annotations" / f"{stem}.xml", content)
    lines = "\n".join(files) + "\n" if listed is None else listed
    put(root / "ImageSets" / "Main" / "train.txt", lines)
    return ["voc", "--tree", root, "--split", "train"]


def yolo_tree(root, labels, settings="names: [bolt, nut]\ntrain: images/train\n"):
    """``labels``: stem to the text of its file; None: no file."""
    (root / "labels" / "train").mkdir(parents=True)
    for i, (stem, text) in enumerate(labels.items()):
        put(root / "images" / "train" / f"{stem}.png", encoded(picture(i)))
        if text is not None:
            put(root / "labels" / "train" / f"{stem}.txt", text)
    put(root / "data.yaml", settings)
    return ["yolo", "--tree", root]


def prepared(root, arguments, *flags, name="made"):
    """(what was said, splits by name) of ``prepare`` with these arguments."""
    said = io.StringIO()
    words = [*arguments, "--out", root / "out", "--name", name, *flags]
    options = command.parse(list(map(str, words)))
    done = command.run(options, Reporter(Console(file=said, width=1000)))
    directory = find_data_set(root / "out", name)
    return said.getvalue(), {split: open_split(directory, split) for split in done.splits}


def boxes_by_name(split):
    """File name to its boxes, as lists."""
    return {
        str(name): split[row].boxes.round(3).tolist() for row, name in enumerate(split.file_names)
    }


def classes_by_name(split):
    """File name to the names of its boxes' classes."""
    return {
        str(name): [split.class_names[label] for label in split[row].labels]
        for row, name in enumerate(split.file_names)
    }
