"""Pictures of 16 bits or floats become 8 bits by one scale of the data set."""

import collections
import io
import json

import cv2
import numpy as np
import pytest
from made_trees import (
    HEIGHT,
    WIDTH,
    coco_content,
    coco_tree,
    encoded,
    picture,
    prepared,
    put,
    voc_object,
    voc_tree,
)
from PIL import Image

from retina_jax.data.deep import smallest_scale, to_8_bit
from retina_jax.data.images import PictureError, decode_image, upright_rgb
from retina_jax.errors import UserError

RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def grey(most):
    return encoded(Image.fromarray((RAMP * most).round().astype(np.uint16)))


def colour(most, kind=".png"):
    """48-bit RGB: red rises, green falls, blue is half."""
    values = np.stack([np.full_like(RAMP, 0.5), 1 - RAMP, RAMP], axis=2)  # OpenCV's BGR
    return cv2.imencode(kind, (values * most).round().astype(np.uint16))[1].tobytes()


def floats(most, low=0.0):
    return encoded(Image.fromarray((low + RAMP * (most - low)).astype(np.float32)), "TIFF")


def prepared_pictures(root, pictures, *flags, name="made"):
    content = coco_content(len(pictures))
    for image, file in zip(content["images"], pictures, strict=True):
        image["file_name"] = file
    said, splits = prepared(root, coco_tree(root, content, pictures), *flags, name=name)
    split = splits["train"]
    return said, split, [decode_image(split[row].image) for row in range(len(split))]


def test_a_dark_frame_stays_dark_beside_a_bright_one(tmp_path):
    pictures = {"a.png": grey(4095), "b.png": grey(250), "c.png": colour(4095)}
    said, split, (bright, dark, red) = prepared_pictures(tmp_path, pictures)
    assert split.pixel_scale == (0.0, 4095.0)
    assert "values 0 to 4095 of 16-bit and float images become 0 to 255 (--pixel-range)" in said
    np.testing.assert_array_equal(bright[..., 0], np.round(RAMP * 4095) // 16)
    np.testing.assert_array_equal(dark[..., 1], np.round(RAMP * 250) // 16)
    np.testing.assert_array_equal(red[..., 0], np.round(RAMP * 4095) // 16)
    np.testing.assert_array_equal(red[..., 1], np.round((1 - RAMP) * 4095) // 16)
    assert (red[..., 2] == 128).all()
    assert "warning: 16-bit or float images that span fewer than 32 of 256 grey levels: 1" in said


def test_every_split_has_the_same_scale(tmp_path):
    content = coco_content(1)
    arguments = coco_tree(tmp_path, content, {"p1.png": grey(900), "p2.png": grey(16000)})
    put(tmp_path / "val.json", (tmp_path / "train.json").read_text().replace("p1.png", "p2.png"))
    _, splits = prepared(tmp_path, [*arguments, "--annotations", tmp_path / "val.json"])
    assert splits["train"].pixel_scale == splits["validation"].pixel_scale == (0.0, 16383.0)
    assert decode_image(splits["train"][0].image).max() == 900 // 64


def test_the_flag_comes_first_and_changes_the_shards(tmp_path, monkeypatch):
    pictures = {"a.png": grey(4095)}
    _, split, (image,) = prepared_pictures(tmp_path, pictures, "--pixel-range=1000,3047")
    assert split.pixel_scale == (1000.0, 3047.0)
    expected = np.clip((np.round(RAMP * 4095) - 1000) // 8, 0, 255)
    np.testing.assert_array_equal(image[..., 0], expected)
    content = coco_content(2)
    content["images"][0]["file_name"] = "a.png"
    arguments = coco_tree(tmp_path, content, {"p2.png": b"no picture"})
    with pytest.raises(UserError):
        prepared(tmp_path, arguments, "--pixel-range=0,65535", name="again")
    put(tmp_path / "images" / "p2.png", grey(100))
    _, splits = prepared(tmp_path, arguments, "--pixel-range=0,4095", name="again")
    assert decode_image(splits["train"][0].image).max() == 255


@pytest.mark.parametrize("flag", ["1", "5,5", "9,1", "a,b", "0,inf", "1,2,3", "nan,1"])
def test_ranges_that_are_none(tmp_path, flag):
    with pytest.raises(UserError, match=r"--pixel-range=.* must be two numbers, the smaller first"):
        prepared_pictures(tmp_path, {"a.png": grey(9)}, f"--pixel-range={flag}")


def test_integers_beside_floats_are_refused_with_the_flag(tmp_path):
    pictures = {"a.png": grey(4095), "b.tif": floats(1)}
    with pytest.raises(UserError, match=r"'a.png' has integers .*'b.tif' has floating-point .*set "
                       r"--pixel-range=LOW,HIGH"):  # fmt: skip
        prepared_pictures(tmp_path, pictures)
    said, split, _ = prepared_pictures(tmp_path, pictures, "--pixel-range=0,4095", name="given")
    assert split.pixel_scale == (0.0, 4095.0)
    assert "span fewer than 32" in said


@pytest.mark.parametrize(
    ("most", "low", "scale"),
    [(1, 0, (0, 1)), (200, 0, (0, 255)), (1000, -1000, (-1000, 1000)), (60000, 0, (0, 65535))],
)
def test_floats(tmp_path, most, low, scale):
    said, split, (image,) = prepared_pictures(tmp_path, {"a.tif": floats(most, low)})
    assert split.pixel_scale == pytest.approx(scale)
    assert image.min() == 0
    assert image.max() >= 199
    assert "span fewer" not in said


@pytest.mark.parametrize("sizes", [True, False])
def test_colours_of_floats(tmp_path, sizes):
    values = np.stack([RAMP / 2, 1 - RAMP, RAMP], axis=2).astype(np.float32)  # OpenCV's BGR
    data = cv2.imencode(".tiff", values)[1].tobytes()
    content = coco_content(1)
    content["images"][0]["file_name"] = "a.tif"
    if not sizes:
        del content["images"][0]["width"]
    said, splits = prepared(tmp_path, coco_tree(tmp_path, content, {"a.tif": data}))
    assert splits["train"].pixel_scale == (0.0, 1.0)
    image = decode_image(splits["train"][0].image)
    expected = np.clip(values[..., ::-1].astype(np.float64) * 256, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(image, expected)
    assert "TIFF images with float32 colour, written as 8-bit RGB: 1" in said


@pytest.mark.parametrize("lost", [20, 2000])
@pytest.mark.parametrize("kind", ["floats", "TIFF", "PNG"])
def test_cut_deep_pictures_are_refused(tmp_path, lost, kind):
    values = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    whole = values if kind == "floats" else (values * 4095).astype(np.uint16)
    data = cv2.imencode(".png" if kind == "PNG" else ".tiff", whole)[1].tobytes()
    for flags in ((), ("--allow-truncated",)):
        with pytest.raises(UserError, match=r"image 1 \('a.tif'\): cannot be decoded: "):
            prepared_pictures(tmp_path, {"a.tif": data[:-lost]}, *flags)


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    data = encoded(Image.fromarray(values), "TIFF")
    _, split, (image,) = prepared_pictures(tmp_path, {"a.tif": data})
    assert split.pixel_scale == (0.0, 1.0)
    assert image[0, :3, 0].tolist() == [0, 255, 0]


def test_eight_bits_have_no_scale(tmp_path):
    pictures = {"a.png": encoded(picture()), "b.jpg": encoded(picture(), "JPEG")}
    said, split, _ = prepared_pictures(tmp_path, pictures)
    assert split.pixel_scale is None
    assert "--pixel-range" not in said


def rgba(most):
    values = np.stack([RAMP, RAMP, 1 - RAMP, RAMP], axis=2)
    return cv2.imencode(".png", (values * most).astype(np.uint16))[1].tobytes()


def signed():
    return encoded(Image.fromarray((RAMP * 4000).astype(np.int32)), "TIFF")


def big_endian():
    # a TIFF of one strip, 16 bits, Motorola order
    data = (RAMP * 4000).astype(">u2").tobytes()
    entries = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1),
               (273, 4, 122), (277, 3, 1), (278, 3, HEIGHT), (279, 4, len(data))]  # fmt: skip
    head = b"MM\0*" + (8).to_bytes(4, "big") + len(entries).to_bytes(2, "big")
    for tag, kind, value in entries:
        size = 2 if kind == 3 else 4
        head += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big")
        head += value.to_bytes(size, "big").ljust(4, b"\0")
    return (head + b"\0" * 4).ljust(122, b"\0") + data


@pytest.mark.parametrize(
    ("name", "make"),
    [("a.png", lambda: rgba(4095)), ("a.tif", lambda: colour(4095, ".tiff")), ("a.tif", signed),
     ("a.tif", big_endian), ("a.png", lambda: colour(4095))],
)  # fmt: skip
def test_every_deep_picture_gets_the_scale(tmp_path, name, make):
    said, split, (image,) = prepared_pictures(tmp_path, {name: make()})
    assert split.pixel_scale == (0.0, 4095.0)
    assert image.max() >= 249
    assert "written as 8-bit RGB" in said


def test_a_deep_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray((RAMP * 4095).astype(np.uint16)), "TIFF", exif=exif)
    content = coco_content(1)
    content["images"][0] |= {"file_name": "a.tif", "width": HEIGHT, "height": WIDTH}
    _, splits = prepared(tmp_path, coco_tree(tmp_path, content, {"a.tif": data}))
    image = decode_image(splits["train"][0].image)
    expected = np.rot90((RAMP * 4095).astype(np.uint16) // 16, -1)  # 6: a quarter turn clockwise
    np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read(tmp_path, kind):
    smooth = np.stack([RAMP * 255] * 3, axis=2).astype(np.uint8)  # for what is lossy
    data = encoded(Image.fromarray(smooth), kind)
    name = {"AVIF": "a.avif", "JPEG2000": "a.jp2"}[kind]
    said, _, (image,) = prepared_pictures(tmp_path, {name: data})
    assert f"images of format {kind}, written as PNG: 1" in said
    np.testing.assert_allclose(image.astype(int), smooth, atol=8)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a\x00\x10", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "PSD"),
        (b"%PDF-1.7", "PDF"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"v/1\x01", "OpenEXR"),
        (b"P6\n1 1\n255\n", "PPM"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_a_format_that_is_not_read_is_named(data, name):
    with pytest.raises(PictureError, match=rf"{name} is not supported; convert it to PNG or JPEG"):
        upright_rgb(data, (None, None), collections.Counter())


def test_scales_and_levels():
    assert smallest_scale("integers", 0, 255) == (0, 255)
    assert smallest_scale("integers", 3, 256) == (0, 1023)
    assert smallest_scale("integers", -5, 100) == (-5, 100)
    assert smallest_scale("integers", 0, 70000) == (0, 70000)
    assert smallest_scale("floating-point numbers", 0, 1.5) == (0, 255)
    low, high = smallest_scale("floating-point numbers", -2, -2)
    assert low < high
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_8_bit(every, None), every >> 8)
    np.testing.assert_array_equal(to_8_bit(every, (0, 65535)), every >> 8)
    np.testing.assert_array_equal(to_8_bit(every[:4096], (0, 4095)), every[:4096] >> 4)
    np.testing.assert_array_equal(to_8_bit(every[:256], (0, 255)), every[:256])
    whole = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(to_8_bit(whole, (0, 255)), whole)


def test_normalised_boxes_without_sizes_are_refused(tmp_path):
    content = coco_content(4, bbox=[0.1, 0.1, 0.4, 0.3])
    for image in content["images"]:
        del image["width"], image["height"]
    arguments = coco_tree(tmp_path, content)
    with pytest.raises(
        UserError, match=r"no coordinate of its 4 boxes exceeds 1.5, so they look norm"
    ):
        prepared(tmp_path, arguments)
    assert not (tmp_path / "out" / "made").exists()


def test_corners_for_sizes_without_sizes_are_refused(tmp_path):
    content = coco_content(12, bbox=[50, 30, 90, 60])
    for image in content["images"]:
        image["width"] = None
    with pytest.raises(UserError, match=r"read as \[x1, y1, x2, y2\], almost all fit"):
        prepared(tmp_path, coco_tree(tmp_path, content))


def test_normalised_boxes_of_voc_without_sizes_are_refused(tmp_path):
    box = voc_object("a", (0.2, 0.2, 0.6, 0.5))
    xml = f"<annotation><filename>a.png</filename>{box}</annotation>".encode()
    # counted from 1, x and y are below 0
    with pytest.raises(UserError, match="so they look normalised"):
        prepared(tmp_path, voc_tree(tmp_path / "voc", {"a": xml}))


def test_small_pictures_may_have_small_boxes(tmp_path):
    content = coco_content(1, bbox=[0, 0, 1, 1])
    del content["images"][0]["width"]
    arguments = coco_tree(tmp_path, content, {"p1.png": encoded(picture(0, 4, 4))})
    content["images"][0]["height"] = 4
    put(tmp_path / "train.json", json.dumps(content))
    _, splits = prepared(tmp_path, arguments)
    assert Image.open(io.BytesIO(splits["train"][0].image)).size == (4, 4)
