"""Pictures and boxes move together."""

import cv2
import numpy as np
import pytest

from retina_jax.data.images import decode_image
from retina_jax.data.transforms import mirror_boxes, resize, scale_boxes


def painted(boxes, height=60, width=80):
    """A black picture with each box filled."""
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2] = 255
    return image


def found(image):
    """xyxy around all that is lit."""
    ys, xs = np.nonzero(image[..., 0] > 127)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_mirroring_moves_boxes_with_pixels_and_undoes_itself():
    boxes = np.array([[10.0, 20, 30, 25]])
    mirrored = mirror_boxes(boxes, 80)
    np.testing.assert_array_equal(mirrored[0], found(painted(boxes)[:, ::-1]))
    np.testing.assert_array_equal(mirror_boxes(mirrored, 80), boxes)


def test_floating_point_is_what_uint8_rounds():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    exact = resize(image.astype(np.float32), 47, 61)
    assert exact.dtype == np.float32
    assert 0.2 < np.abs(exact - resize(image, 47, 61)).max() < 1


@pytest.mark.parametrize("size", [(120, 160), (30, 40), (90, 80), (60, 80)])
def test_resize_moves_boxes_with_pixels(size):
    boxes = np.array([[8.0, 12, 40, 48]])
    image = resize(painted(boxes), *size)
    assert image.shape == (*size, 3)
    scaled = scale_boxes(boxes, (60, 80), size)
    np.testing.assert_allclose(found(image), scaled[0], atol=0.5)


def test_antialiasing_averages_what_plain_bilinear_skips():
    stripes = np.zeros((8, 400, 3), np.uint8)
    stripes[:, ::5] = 255  # every fifth column: a mean of 51
    plain, smooth = (resize(stripes, 8, 40, antialias=on) for on in (False, True))
    assert np.ptp(plain[0, :, 0]) == 0  # always between the same two columns: none of the fifth
    assert abs(float(smooth[:, 2:-2].mean()) - 51) < 3
    assert abs(float(plain.mean()) - 51) > 30


def test_decode_gives_rgb_and_none_for_rubbish():
    bgr = np.zeros((4, 5, 3), np.uint8)
    bgr[..., 2] = 200
    decoded = decode_image(cv2.imencode(".png", bgr)[1].tobytes())
    assert decoded.shape == (4, 5, 3)
    assert decoded[0, 0].tolist() == [200, 0, 0]
    grey = decode_image(cv2.imencode(".png", np.full((3, 3), 7, np.uint8))[1].tobytes())
    assert (grey == 7).all()
    assert decode_image(b"no picture") is None


@pytest.mark.parametrize(("size", "antialias"), [((24, 32), False), ((24, 32), True),
                                                 ((60, 80), False)])  # fmt: skip
def test_resizing_in_place_writes_there_and_nowhere_else(size, antialias):
    image = np.random.default_rng(0).integers(1, 256, (60, 80, 3)).astype(np.uint8)
    place = np.zeros((70, 90, 3), np.uint8)
    resize(image, *size, antialias, out=place[: size[0], : size[1]])
    np.testing.assert_array_equal(place[: size[0], : size[1]], resize(image, *size, antialias))
    assert not place[size[0] :].any()
    assert not place[:, size[1] :].any()
