"""The gallery: order, sizes, and what the page's script reads."""

import base64

import cv2
import numpy as np
import pytest

from retina_jax.data.images import decode_image, decode_small
from retina_jax.evaluation import report_gallery
from retina_jax.evaluation.report_errors import KINDS, STATES
from retina_jax.evaluation.report_gallery import encode, gallery, pack


def decoded(text):
    return decode_image(base64.b64decode(text))


def test_the_largest_errors_come_first_and_large(reported, monkeypatch):
    monkeypatch.setattr(report_gallery, "MOST_LARGE", 2)
    monkeypatch.setattr(report_gallery, "SMALL", 64)
    shown = []
    made = gallery(reported.split, reported.errors, lambda: shown.append(1))
    images = made["images"]
    assert len(shown) == len(images) == len(reported.split)
    errors = [image["error"] for image in images]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(max(e.error for e in reported.errors), abs=0.01)
    assert [image["large"] for image in images] == [1, 1] + [0] * (len(images) - 2)
    height, width = reported.split.sizes[0]
    sides = [max(decoded(image["jpeg"]).shape) for image in images]
    assert sides == [max(height, width)] * 2 + [64] * (len(images) - 2)
    for image in images:
        row = reported.split.image_ids.tolist().index(image["id"])
        assert len(image["objects"]) == 7 * reported.split.box_counts[row]


def test_images_beyond_the_limit_are_left_out(reported, monkeypatch):
    monkeypatch.setattr(report_gallery, "MOST_IMAGES", 3)
    assert len(gallery(reported.split, reported.errors)["images"]) == 3


def test_boxes_are_thousandths_of_the_image(reported):
    boxes = np.array([[10, 20, 30, 40.0]])
    packed = pack(np.array([2]), np.array([1]), np.array([0.5]), boxes, 100, 200)
    assert packed == [2, 1, 500, 100, 100, 300, 200]
    assert pack(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 4)), 100, 200) == []


def test_the_lists_of_the_script_are_those_of_the_errors(reported):
    made = gallery(reported.split, reported.errors[:1])
    assert made["kinds"] == list(KINDS)
    assert made["states"] == list(STATES)
    assert made["classes"] == list(reported.split.class_names)


@pytest.mark.parametrize("most_bytes", [1_500, 3_000, 100_000])
def test_an_image_is_made_to_fit_its_bytes(most_bytes):
    """Noise is the worst case for a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    encoded = encode(noise, report_gallery._SETTINGS_SMALL, most_bytes)
    assert len(encoded) <= most_bytes
    assert (max(decode_image(encoded).shape) == 128) == (most_bytes > 3_000)


def test_a_damaged_image_has_no_picture(reported, monkeypatch):
    monkeypatch.setattr(report_gallery, "decode_small", lambda *_: None)
    assert {image["jpeg"] for image in gallery(reported.split, reported.errors)["images"]} == {""}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("longest", [480, 130, 50])
def test_a_small_image_is_the_image_scaled(suffix, longest):
    y, x = np.mgrid[:300, :400]
    image = np.stack([x * 255 / 400, y * 255 / 300, 128 + 0 * x], 2).astype(np.uint8)
    encoded = cv2.imencode(suffix, image[:, :, ::-1])[1].tobytes()
    small = decode_small(encoded, (300, 400), longest)
    height, width = small.shape[:2]
    assert max(height, width) == min(longest, 400)
    wanted = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - wanted).mean() < 2
    assert decode_small(b"no image", (300, 400), longest) is None
