"""Boxes and names on pictures: readable at any size, inside the picture, a colour per class."""

import itertools

import numpy as np
import pytest
from PIL import ImageDraw

from retina_jax.draw import annotate, colour, draw_boxes


def test_each_class_has_its_own_colour():
    colours = [colour(label) for label in range(400)]
    assert len(set(colours)) == 400
    for one, other in itertools.combinations([_rgb(c) for c in colours[:40]], 2):
        assert np.abs(one - other).max() > 12


def _rgb(code):
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: ("rectangle" or "text", x1, y1, x2, y2, font size)."""
    calls = []
    plain = {name: getattr(ImageDraw.ImageDraw, name) for name in ("rectangle", "text")}

    def rectangle(self, corners, **options):
        if "fill" in options:
            calls.append(("tag", *corners, 0))
        return plain["rectangle"](self, corners, **options)

    def text(self, place, caption, **options):
        box = self.textbbox(place, caption, font=options["font"])
        calls.append(("text", *box, options["font"].size))
        return plain["text"](self, place, caption, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", rectangle)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return calls


@pytest.mark.parametrize("size", [(40, 30), (480, 640), (3000, 2000), (60, 2000), (9, 900)])
def test_no_name_leaves_the_picture(drawn, size):
    height, width = size
    boxes = np.array(
        [
            [0, 0, width, height],
            [width - 5, height - 5, width, height],
            [0, height - 3, 4, height],
            [width - 3, 0, width, 3],
        ],
        float,
    )
    name = "an unusually long name of a class"
    names, scores = ["a", "bb", name, name], np.array([0.9, 0.8, 0.7, 0.6])
    picture = annotate(np.zeros((*size, 3), np.uint8), boxes, [0, 1, 2, 3], names, scores)
    assert max(picture.size) >= 320
    assert picture.width % width == picture.height % height == 0
    assert len(drawn) == 8
    for _, x1, y1, x2, y2, _ in drawn:
        assert min(x1, y1) >= 0
        assert x2 <= picture.width
        assert y2 <= picture.height


def test_letters_grow_with_the_picture(drawn):
    box = np.array([[10.0, 200.0, 100.0, 300.0]])
    sizes = {}
    for side in (320, 1000, 4000):
        annotate(np.zeros((side, side, 3), np.uint8), box, [0], ["a"], np.array([0.5]))
        sizes[side] = drawn[-1][-1]
    assert sizes[320] == 11
    assert sizes[1000] == pytest.approx(1000 / 60, abs=1)
    assert sizes[4000] == pytest.approx(4000 / 60, abs=1)


def test_letters_shrink_where_they_would_cover_the_picture(drawn):
    boxes = np.array([[10.0 * n, 200, 10 * n + 100, 300] for n in range(300)])
    names, scores = ["a class"] * 300, np.linspace(0.1, 0.9, 300)
    annotate(np.zeros((3000, 3000, 3), np.uint8), boxes, [0] * 300, names, scores)
    tags = [call for call in drawn if call[0] == "tag"]
    covered = sum((x2 - x1) * (y2 - y1) for _, x1, y1, x2, y2, _ in tags)
    assert 0.06 < covered / 3000**2 < 0.2
    assert 11 < drawn[-1][-1] < 3000 / 60


def test_the_highest_score_is_on_top():
    box = np.array([[20.0, 60.0, 300.0, 300.0]] * 2)
    black = np.zeros((400, 400, 3), np.uint8)
    for scores, top in (((0.9, 0.4), 0), ((0.4, 0.9), 1)):
        picture = annotate(black, box, [0, 1], ["a", "b"], np.array(scores))
        assert picture.getpixel((200, 60)) == tuple(_rgb(colour(top)))


def test_a_box_is_drawn_on_its_own_pixels():
    black = np.zeros((400, 400, 3), np.uint8)
    picture = np.asarray(draw_boxes(black, np.array([[100.0, 120, 140, 200]]), [0], [""], 1.0))
    rows, columns = np.nonzero(picture.any(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 120, 139, 199)


@pytest.mark.parametrize("top", [0.3, 0.6, 1.7, 14.4])
def test_letters_are_whole_wherever_the_box_begins(top):
    """Pillow cut off the upper part of letters at a fraction of a pixel near the upper edge."""
    blank = np.zeros((60, 160, 3), np.uint8)

    def ink(y):
        box = np.array([[10.0, y, 150.0, 55.0]])
        return (np.asarray(draw_boxes(blank, box, [0], ["Box 0.85"], 1.0)) > 240).all(-1)

    rows = [found[found.any(1)] for found in (ink(top), ink(30.0))]
    np.testing.assert_array_equal(*rows)
