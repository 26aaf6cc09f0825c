"""Fuzzed annotations and pictures: each ends in one line that names file and record, or is counted.

Every case goes through the command's own code, in this process: a traceback would fail the test.
"""

import collections
import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from retina_jax.data.data_set import open_split
from retina_jax.data.images import PictureError, decode_image, upright_rgb
from retina_jax.errors import UserError
from retina_jax.jobs import prepare as command
from retina_jax.progress import Reporter


def picture(width=60, height=40, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def content():
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 10]}],
        "categories": [{"id": 3, "name": "cat"}],
    }


def options_for(root, *flags):
    return command.parse(["coco", "--images", str(root / "images"),
                          "--annotations", str(root / "train.json"),
                          "--out", str(root / "out"), *flags])  # fmt: skip


def run(root, annotations, pictures, *flags):
    """Prepares; returns (what was said, the split or None)."""
    (root / "images").mkdir()
    for name, data in pictures.items():
        path = root / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    text = annotations if isinstance(annotations, (str, bytes)) else json.dumps(annotations)
    path = root / "train.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    said = io.StringIO()
    directory = command.run(
        options_for(root, *flags), Reporter(Console(file=said, width=300))
    ).directory
    return said.getvalue(), open_split(directory, "train")


def refused(root, annotations, pictures, *flags):
    """The one line that refuses it."""
    with pytest.raises(UserError) as caught:
        run(root, annotations, pictures, *flags)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600
    assert not (root / "out" / "coco" / "1.0.0").exists()
    return line


def changed(change):
    found = content()
    change(found)
    return found


GOOD = {"a.png": encoded(picture())}
IMAGE, BOX, CLASS = ("images", 0), ("annotations", 0), ("categories", 0)


def put(place, **fields):
    def change(found):
        found[place[0]][place[1]].update(fields)

    return changed(change)


ANNOTATIONS = {
    "cut JSON": (json.dumps(content())[:90], "train.json: not COCO JSON"),
    "not UTF-8": (b"\xff\xfe\x00{", "train.json: not COCO JSON"),
    "deep JSON": ("[" * 200_000, "train.json: not COCO JSON"),
    "a number": ("3", "not COCO JSON (a int"),
    "null": ("null", "not COCO JSON (a NoneType"),
    "images an object": (changed(lambda c: c.update(images={})), "no list 'images'"),
    "an image that is a list": (changed(lambda c: c.update(images=[[]])), "images[0]: has no 'id'"),
    "id a string": (put(IMAGE, id="1"), "images[0]: id '1' is not an integer"),
    "id a float": (put(IMAGE, id=1.0), "images[0]: id 1.0 is not an integer"),
    "id true": (put(IMAGE, id=True), "images[0]: id True is not an integer"),
    "id huge": (put(IMAGE, id=2**80), "is negative or too large"),
    "file_name a number": (put(IMAGE, file_name=5), "image 1: file_name 5 is not a string"),
    "file_name a list": (put(IMAGE, file_name=["a.png"]), "file_name ['a.png'] is not a string"),
    "file_name empty": (put(IMAGE, file_name=""), "image 1: file_name '' is not a valid"),
    "file_name with NUL": (put(IMAGE, file_name="a\0.png"), "is not a valid file name"),
    "file_name too long": (put(IMAGE, file_name="a" * 5000), "image 1 ("),
    "file_name half a pair": ('{"images":[{"id":1,"file_name":"\\ud800.png"}],"annotations":[],'
                              '"categories":[{"id":1,"name":"a"}]}', "is not valid Unicode"),
    "file_name upwards": (put(IMAGE, file_name="../../etc/passwd"), "outside the image folder"),
    "file_name absolute": (put(IMAGE, file_name="/etc/passwd"), "lies outside the image folder"),
    "file_name a folder": (put(IMAGE, file_name="."), "missing from --images"),
    "the same file twice": (
        changed(lambda c: c["images"].append({"id": 2, "file_name": "a.png"})),
        "image 2: has the same file_name 'a.png' as image 1",
    ),
    "width a string": (put(IMAGE, width="60"), "image 1: width '60' is not an integer"),
    "width 0": (put(IMAGE, width=0), "image 1: width is 0"),
    "width wrong": (put(IMAGE, width=61), "is 60×40 pixels, but the annotations say 61×40"),
    "an id of two lines": (put(BOX, id="7\n8", bbox=[1]), "annotation '7\\n8': bbox [1] is not"),
    "the same file by another name": (
        changed(lambda c: c["images"].append({"id": 2, "file_name": "./a.png"})),
        "image 2: has the same file_name './a.png' as image 1",
    ),
    "box NaN": (json.dumps(put(BOX, bbox=[float("nan"), 1, 2, 3])), "annotation 7: bbox"),
    "box infinite": ('{"images":[{"id":1,"file_name":"a.png"}],"annotations":[{"id":7,"image_id":1,'
                     '"category_id":3,"bbox":[1e999,1,2,3]}],"categories":[{"id":3,"name":"c"}]}',
                     "annotation 7: bbox"),
    "box beyond floats": (json.dumps(put(BOX, bbox=[10**400, 1, 2, 3])), "annotation 7: bbox"),
    "box of text": (put(BOX, bbox=["1", 1, 2, 3]), "annotation 7: bbox ['1', 1, 2, 3] is not four"),
    "box of three": (put(BOX, bbox=[1, 2, 3]), "annotation 7: bbox [1, 2, 3] is not four"),
    "box an object": (put(BOX, bbox={"x": 1}), "annotation 7: bbox {'x': 1} is not four"),
    "box null": (put(BOX, bbox=None), "annotation 7: bbox None is not four"),
    "a very long box": (put(BOX, bbox=list(range(10**5))), "annotation 7: bbox [0, 1, 2"),
    "normalised boxes": (put(BOX, bbox=[0.1, 0.1, 0.3, 0.5]), "so they look normalised"),
    "iscrowd text": (put(BOX, iscrowd="0"), "annotation 7: iscrowd '0' is neither 0 nor 1"),
    "category text": (put(BOX, category_id="cat"), "annotation 7: category_id 'cat' is not"),
    "category unknown": (put(BOX, category_id=4), "unknown category_id 4; the known ids are 3"),
    "image unknown": (put(BOX, image_id=9), "annotation 7: image_id 9 matches no image"),
    "annotation a number": (changed(lambda c: c.update(annotations=[4])), "annotations[0]: has no"),
    "category name a number": (put(CLASS, name=4), "categories[0]: name 4 is not a string"),
    "category twice": (
        changed(lambda c: c["categories"].append({"id": 3, "name": "dog"})),
        "categories[1]: duplicate id 3",
    ),
    "corners for sizes": (
        changed(lambda c: c.update(annotations=[
            {"id": i, "image_id": 1, "category_id": 3, "bbox": [20 + i, 10, 50 + i % 9, 35]}
            for i in range(12)])),
        "read as [x1, y1, x2, y2], almost all fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_bad_annotations_are_one_line(tmp_path, case):
    annotations, message = ANNOTATIONS[case]
    line = refused(tmp_path, annotations, GOOD)
    assert message in line
    assert "train.json" in line


PICTURES = {
    "a side of a million": (
        encoded(Image.fromarray(np.zeros((1, 1_100_000), np.uint8))),
        "has a side longer than 1048576",
    ),
    "EPS, which would start a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n", "EPS is not supported"
    ),
    "cut PNG": (encoded(picture(300, 200))[:5000], "cannot be decoded"),
    "cut JPEG": (encoded(picture(300, 200), "JPEG")[:9000], "cannot be decoded"),
    "empty": (b"", "cannot be decoded: not an image"),
    "text": (b"<html>404</html>", "HTML is not supported"),
    "20,000 × 20,000": (png_header(20_000, 20_000), "has more than 178956970 pixels; reduce"),
    "a header alone": (png_header(3000, 3000), "cannot be decoded"),
    "a size of 0": (png_header(0, 40), "cannot be decoded"),
    "wrong checksum": (encoded(picture())[:60] + b"\1\2\3" + encoded(picture())[63:], "cannot be"),
    "PNG text bomb": (
        GOOD["a.png"][:33]
        + (lambda data: struct.pack(">I", len(data)) + b"zTXt" + data
           + struct.pack(">I", zlib.crc32(b"zTXt" + data)))(
            b"a\0\0" + zlib.compress(b"\0" * 100_000_000))
        + GOOD["a.png"][33:],
        "cannot be decoded",
    ),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='60' height='40'/>", "SVG is not s"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_bad_pictures_are_one_line(tmp_path, case):
    data, message = PICTURES[case]
    line = refused(tmp_path, content(), {"a.png": data})
    assert message in line
    assert "train.json: image 1 ('a.png'): " in line


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_no_broken_picture_gives_anything_but_its_reason(kind):
    """Bytes changed at random: Pillow's parsers raise what they like."""
    options = {"exif": exif_of(6)} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    whole = encoded(picture(24, 16), kind, **options)
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(1500):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 400), rng.integers(1, 5)):
            data[place] = rng.integers(0, 256)
        try:
            upright_rgb(bytes(data), (None, None), collections.Counter())
        except PictureError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in reason for reason in refused)


def frames(kind):
    options = {"save_all": True, "append_images": [picture(mode="L").convert("RGB")] * 2}
    return encoded(picture(), kind, **options)


MENDED = {
    "animated GIF": (frames("GIF"), "animated or multi-page images, only the first frame kept"),
    "animated PNG": (frames("PNG"), "animated or multi-page images, only the first frame kept"),
    "animated WebP": (frames("WEBP"), "animated or multi-page images, only the first frame kept"),
    "many pages": (frames("TIFF"), "animated or multi-page images, only the first frame kept"),
    "CMYK": (encoded(picture().convert("CMYK"), "JPEG"), "images of mode CMYK"),
    "16 bits": (encoded(Image.fromarray(np.full((40, 60), 9000, np.uint16))), "images of mode I"),
    "floating point": (
        encoded(Image.fromarray(np.full((40, 60), np.nan, np.float32)), "TIFF"),
        "images of mode F",
    ),
    "palette": (encoded(picture(mode="P")), "images of mode P"),
    "one bit": (encoded(picture(mode="1")), "images of mode 1"),
    "alpha": (encoded(picture(mode="RGBA")), "images of mode RGBA"),
    "grey": (encoded(picture(mode="L")), "grey images, read as RGB"),
    "BMP": (encoded(picture(), "BMP"), "images of format BMP, written as PNG"),
    "WebP": (encoded(picture(), "WEBP"), "images of format WEBP, written as PNG"),
}


@pytest.mark.parametrize("case", MENDED)
def test_odd_pictures_are_mended_and_counted(tmp_path, case):
    data, said = MENDED[case]
    report, split = run(tmp_path, content(), {"a.png": data})
    assert re.search(rf"{re.escape(said)}.*: 1\b", report)
    image = decode_image(split[0].image)
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8


def test_a_picture_of_one_pixel_stays(tmp_path):
    small = put(IMAGE, width=1, height=1)
    small["annotations"][0]["bbox"] = [0, 0, 1, 1]
    _, split = run(tmp_path, small, {"a.png": encoded(picture(1, 1))})
    np.testing.assert_array_equal(split[0].boxes, [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([5, 5, 0, 10], "boxes without area, dropped"),
        ([5, 5, -3, 10], "boxes without area, dropped"),
        ([-20, 5, 10, 10], "boxes outside their image, dropped"),
        ([1e300, 5, 10, 10], "boxes outside their image, dropped"),
        ([50, 30, 1e300, 1e300], "boxes partly outside their image, clipped"),
        ([-5, -5, 20, 20], "boxes partly outside their image, clipped"),
    ],
)
def test_odd_boxes_are_mended_and_counted(tmp_path, box, said):
    report, _ = run(tmp_path, put(BOX, bbox=box), GOOD)
    assert f"{said}: 1" in report


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_floating_point_give_no_warning(tmp_path):
    _, split = run(tmp_path, put(BOX, bbox=[5, 5, 1e308, 1e308], area=1e300), GOOD)
    assert split[0].areas.tolist() == [60 * 40]


def test_unicode_names_and_folders_are_read(tmp_path):
    names = put(IMAGE, file_name="ночь/𝔫ight ☾.png")
    names["categories"][0]["name"] = "猫 [bold]"
    _, split = run(tmp_path, names, {"ночь/𝔫ight ☾.png": GOOD["a.png"]})
    assert split.file_names.tolist() == ["ночь/𝔫ight ☾.png"]
    assert split.class_names == ("猫 [bold]",)


def test_a_hundred_thousand_boxes_come_with_the_number_to_set(tmp_path):
    crowded = content()
    crowded["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 3, "bbox": [i % 50, i % 30, 5, 5]}
        for i in range(100_000)
    ]
    report, split = run(tmp_path, crowded, GOOD)
    assert split.box_counts.tolist() == [100_000]
    assert "set --config.data.max_boxes=100000" in report


def test_links_out_of_the_folder_are_read_only_if_asked(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(GOOD["a.png"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(secret)
    (tmp_path / "train.json").write_text(json.dumps(content()))
    with pytest.raises(UserError, match=r"leads outside the image folder; if .* --follow-links"):
        command.run(options_for(tmp_path), Reporter(Console(file=io.StringIO())))
    options = options_for(tmp_path, "--follow-links")
    command.run(options, Reporter(Console(file=io.StringIO())))


def test_special_files_and_rings_of_links_do_not_hang(tmp_path):
    import os

    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "images" / "b.png")
    for name, message in (("a.png", "missing from --images"), ("b.png", "b.png")):
        (tmp_path / "train.json").write_text(json.dumps(put(IMAGE, file_name=name)))
        with pytest.raises(UserError, match=message):
            command.run(options_for(tmp_path), Reporter(Console(file=io.StringIO())))


def test_pictures_that_no_annotation_names_are_counted(tmp_path):
    report, split = run(tmp_path, content(), {**GOOD, "b.png": GOOD["a.png"], "c.txt": b""})
    assert "images in images that the annotations do not mention, left out: 1" in report
    assert len(split) == 1


def test_several_bad_records_are_all_named(tmp_path):
    many = content()
    for i in range(2, 6):
        many["images"].append({"id": i, "file_name": f"{i}.png"})
    pictures = {**GOOD, "2.png": b"no", "3.png": GOOD["a.png"], "4.png": b"no", "5.png": b"no"}
    said = io.StringIO()
    (tmp_path / "images").mkdir()
    for name, data in pictures.items():
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "train.json").write_text(json.dumps(many))
    with pytest.raises(UserError, match=r"image 2 .*\(and 2 more, listed above\)") as caught:
        command.run(options_for(tmp_path), Reporter(Console(file=said, width=300)))
    listed = "\n".join(caught.value.details)
    assert "image 4 ('4.png')" in listed
    assert "image 5 ('5.png')" in listed
