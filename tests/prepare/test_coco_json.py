"""Bad pictures and bad records: an error that names file and record, or mended and counted."""

import collections
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina_jax.data.data_set import open_split
from retina_jax.data.images import decode_image
from retina_jax.errors import UserError
from retina_jax.prepare.coco_json import read_coco
from retina_jax.prepare.reader import AnnotationReader

REPOSITORY = next(p for p in Path(__file__).parents if (p / "setup.cfg").exists())
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "owl"}]


def colours(height=40, width=60):
    """A picture that is red on the left and blue on the right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 :, 2] = 255
    return Image.fromarray(image)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


class Tree:
    """A folder of pictures and a COCO file about them."""

    def __init__(self, root):
        self.root = root
        self.images_dir = root / "images"
        self.images_dir.mkdir()
        self.content = {"images": [], "annotations": [], "categories": CATEGORIES}

    def add(self, name, data, size=(60, 40), boxes=((10, 5, 20, 20),), **fields):
        if data is not None:
            (self.images_dir / name).write_bytes(data)
        image_id = 10 * (len(self.content["images"]) + 1)
        image = {"id": image_id, "file_name": name}
        if size:
            image |= {"width": size[0], "height": size[1]}
        self.content["images"].append(image)
        for box in boxes:
            annotation = {
                "id": len(self.content["annotations"]) + 100,
                "image_id": image_id,
                "category_id": 3,
                "bbox": list(box),
            }
            self.content["annotations"].append(annotation | fields)
        return self

    def write(self, name="train.json"):
        path = self.root / name
        path.write_text(json.dumps(self.content))
        return path

    def read(self):
        annotations = read_coco(self.write())
        reader = AnnotationReader(annotations, self.images_dir, {1: 0, 3: 1, 7: 2})
        reader.check_files()
        records = [reader.read(row) for row in range(len(reader))]
        counts = sum((record.counts for record in records), collections.Counter())
        return records, {k: n for k, n in counts.items() if n}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_a_sound_picture_keeps_its_bytes(tree):
    data = encoded(colours(), "JPEG", quality=95)
    (record,), counts = tree.add("a.jpg", data).read()
    assert record.image == data
    assert (record.height, record.width, record.image_id) == (40, 60, 10)
    np.testing.assert_array_equal(record.boxes, [[10, 5, 30, 25]])
    np.testing.assert_array_equal(record.labels, [1])
    assert counts == {"images": 1, "boxes": 1}


def test_a_cut_jpeg_is_refused(tree):
    data = encoded(colours(400, 600), "JPEG")
    tree.add("cut.jpg", data[: len(data) // 2], size=(600, 400))
    with pytest.raises(UserError, match=r"train.json: image 10 \('cut.jpg'\): cannot be decoded"):
        tree.read()


def test_what_is_no_picture_is_refused(tree):
    tree.add("text.jpg", b"these are words")
    with pytest.raises(
        UserError, match=r"image 10 \('text.jpg'\): cannot be decoded: not an image"
    ):
        tree.read()


def test_a_missing_file_is_refused_with_its_record(tree):
    tree.add("gone.jpg", None)
    with pytest.raises(
        UserError, match=r"train.json: missing from --images .*: image 10: 'gone.jpg'"
    ):
        tree.read()


def test_a_file_outside_the_folder_is_refused(tree):
    (tree.root / "secret.png").write_bytes(encoded(colours()))
    tree.add("../secret.png", None)
    with pytest.raises(UserError, match="lies outside the image folder"):
        tree.read()


def test_a_wrong_size_is_refused(tree):
    tree.add("a.png", encoded(colours()), size=(61, 40))
    with pytest.raises(
        UserError, match=r"image 10 .*is 60×40 pixels, but the annotations say 61×40"
    ):
        tree.read()


def test_grey_is_read_as_rgb(tree):
    grey = Image.fromarray(np.full((40, 60), 90, np.uint8))
    (record,), counts = tree.add("grey.png", encoded(grey)).read()
    assert counts["grey images, read as RGB"] == 1
    assert (decode_image(record.image) == 90).all()


def test_cmyk_becomes_rgb(tree):
    data = encoded(colours().convert("CMYK"), "JPEG", quality=95)
    (record,), counts = tree.add("cmyk.jpg", data).read()
    assert counts["images of mode CMYK, written as 8-bit RGB"] == 1
    left, right = decode_image(record.image)[20, [5, 55]].astype(int)
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


def test_16_bits_become_8(tree):
    deep = Image.fromarray(np.full((40, 60), 200 * 256, np.uint16))
    (record,), counts = tree.add("deep.png", encoded(deep)).read()
    assert any("written as 8-bit RGB" in what for what in counts)
    assert (decode_image(record.image) == 200).all()


def with_orientation(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, "JPEG", quality=95, exif=exif)


def test_exif_rotated_pictures_are_turned_upright_with_their_boxes_frame(tree):
    # stored 60 × 40, shown 40 × 60; 6: turn 90° clockwise, so that red (left) comes on top
    data = with_orientation(colours(), 6)
    (record,), counts = tree.add("turned.jpg", data, size=(40, 60), boxes=[(0, 0, 40, 30)]).read()
    assert counts["EXIF-rotated images, turned upright"] == 1
    image = decode_image(record.image)
    assert image.shape == (60, 40, 3)
    assert image[5, 20, 0] > 200
    assert image[55, 20, 2] > 200


def test_exif_is_ignored_where_the_file_gives_the_stored_size(tree):
    (record,), counts = tree.add("raw.jpg", with_orientation(colours(), 6), size=(60, 40)).read()
    assert counts["EXIF-rotated images, left as stored to match their annotated size"] == 1
    image = decode_image(record.image)
    assert image.shape == (40, 60, 3)
    assert image[20, 5, 0] > 200
    assert Image.open(io.BytesIO(record.image)).getexif().get(0x0112, 1) == 1


def test_an_image_without_boxes_is_kept_as_background(tree):
    (record,), counts = tree.add("empty.png", encoded(colours()), boxes=[]).read()
    assert record.boxes.shape == (0, 4)
    assert counts["images without boxes, kept as background"] == 1


def test_boxes_of_no_area_are_dropped_and_counted(tree):
    boxes = [(5, 5, 0, 10), (5, 5, 10, -1), (1, 1, 4, 4)]
    (record,), counts = tree.add("a.png", encoded(colours()), boxes=boxes).read()
    np.testing.assert_array_equal(record.boxes, [[1, 1, 5, 5]])
    assert counts["boxes without area, dropped"] == 2


def test_boxes_outside_are_cut_or_dropped_and_counted(tree):
    boxes = [(50, 30, 20, 20), (100, 100, 5, 5), (0, 0, 60.3, 40)]
    (record,), counts = tree.add("a.png", encoded(colours()), boxes=boxes).read()
    np.testing.assert_array_equal(record.boxes, [[50, 30, 60, 40], [0, 0, 60, 40]])
    assert counts["boxes partly outside their image, clipped"] == 1  # 0.3 px is rounding
    assert counts["boxes outside their image, dropped"] == 1


def test_an_unknown_category_is_refused(tree):
    tree.add("a.png", encoded(colours()), category_id=4)
    with pytest.raises(
        UserError, match=r"annotation 100: unknown category_id 4; the known ids are 1, 3, 7"
    ):
        tree.read()


def test_crowds_and_areas_come_along(tree):
    (record,), counts = tree.add("a.png", encoded(colours()), iscrowd=1, area=123.5).read()
    assert record.is_crowd.tolist() == [True]
    assert record.areas.tolist() == [123.5]
    assert counts["crowd boxes"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c.update(categories=[]), "categories is empty"),
        (lambda c: c.update(images=[]), "images is empty"),
        (
            lambda c: c.update(categories=[*CATEGORIES, {"id": 9, "name": "cat"}]),
            "have the same name 'cat'",
        ),
        (
            lambda c: c.update(categories=[{"id": 9, "name": "a\nb"}]),
            "is empty or has extra spaces",
        ),
        (lambda c: c["images"][0].update(id=-1), "is negative or too large"),
        (lambda c: c["images"].append(dict(c["images"][0])), "duplicate id 10"),
        (lambda c: c["images"][0].pop("file_name"), "image 10: has no 'file_name'"),
        (lambda c: c["annotations"][0].update(image_id=11), "image_id 11 matches no image"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "is not four finite numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), "is not four finite numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "not four finite"),
        (lambda c: c["annotations"][0].update(category_id="3"), "is not an integer"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 100: has no 'bbox'"),
    ],
)
def test_malformed_records_are_named(tree, change, message):
    tree.add("a.png", encoded(colours()))
    change(tree.content)
    with pytest.raises(UserError, match=r"train\.json: ") as caught:
        tree.read()
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"images": [', "[1, 2]", "\x00\x01"])
def test_what_is_not_coco_json_is_refused(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"train.json: not COCO JSON"):
        read_coco(path)


def prepare(tree, *arguments):
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts/prepare.py", "coco", "--images", tree.images_dir,
         "--out", tree.root / "out", *arguments],
        capture_output=True,
        text=True,
    )  # fmt: skip


def test_the_command_writes_a_data_set_and_says_what_it_mended(tree):
    tree.add("a.png", encoded(colours()), boxes=[(0, 0, 10, 10), (3, 3, 0, 0)])
    tree.add("b.png", encoded(colours()), boxes=[])
    train, val = tree.write("instances_train.json"), tree.write("instances_val.json")
    done = prepare(tree, "--annotations", train, "--annotations", val)
    assert done.returncode == 0, done.stderr
    assert "train: 2 images, 1 box" in done.stderr
    assert "boxes without area, dropped: 1" in done.stderr
    split = open_split(tree.root / "out" / "coco" / "1.0.0", "validation")
    assert split.class_names == ("cat", "dog", "owl")
    assert split.category_ids == (1, 3, 7)
    assert split.image_ids.tolist() == [10, 20]
    np.testing.assert_array_equal(split[0].boxes, [[0, 0, 10, 10]])
    again = prepare(tree, "--annotations", train)
    assert again.returncode == 2
    assert "already exists" in again.stderr


def test_the_command_refuses_in_one_line_and_leaves_nothing(tree):
    tree.add("a.png", encoded(colours()))
    tree.add("b.png", encoded(colours())[:90])
    done = prepare(tree, "--annotations", tree.write())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "image 20 ('b.png'): cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tree.root / "out" / "coco" / "1.0.0").exists()
