"""Pictures and boxes move together."""

import cv2
import numpy as np
import pytest

from retina_jax.data.transforms import decode_image, flip, resize, scale_boxes


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


def test_flip_moves_boxes_with_pixels_and_undoes_itself():
    boxes = np.array([[10.0, 20, 30, 25]])
    image, flipped = flip(painted(boxes), boxes)
    np.testing.assert_array_equal(flipped[0], found(image))
    twice = flip(image, flipped)
    np.testing.assert_array_equal(twice[0], painted(boxes))
    np.testing.assert_array_equal(twice[1], boxes)


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
