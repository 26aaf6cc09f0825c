"""What the doctor finds in boxes, labels and ids, each provoked by a small data set."""

import numpy as np
import pytest
from made_data import HEIGHT, WIDTH, both_say, examined, healthy, image_of, split_of, told

from retina_jax.doctor import examine as doctor
from retina_jax.doctor.checks import near_identical
from retina_jax.doctor.contents import read_contents


def test_a_sound_data_set_is_left_alone(config):
    report = examined(config, healthy())
    assert [f.message for f in report.findings] == ["train: bucket 160×96 receives no images"]
    assert not report.failed()
    short = doctor.short_form(
        split_of("train", healthy()), split_of("validation", healthy(1000, 4)), config
    )
    assert short == []


def test_numbers_by_hand(config):
    small = image_of(50, [[0, 0, 20, 20]], [1], size=(2 * HEIGHT, 2 * WIDTH))
    crowd = image_of(51, [[0, 0, 100, 96]], crowds=np.array([True]))
    train, _ = examined(config, [*healthy(), small, crowd, image_of(52, [])]).summaries
    assert (train.images, train.empty, train.boxes, train.crowds) == (15, 1, 25, 1)
    assert train.most_boxes == 2
    cat, dog = train.classes
    assert (cat.name, cat.category_id, cat.images, cat.boxes, cat.crowds) == ("cat", 1, 13, 12, 1)
    assert (dog.images, dog.boxes, dog.crowds) == (13, 13, 0)
    # 20² is small; shown at half its size it is 10², which no anchor of 32² matches: 100 / 1024
    assert [row.original for row in train.sizes] == [1, 24, 0]
    assert [row.at_input for row in train.sizes] == [1, 24, 0]
    assert [row.foreground for row in train.sizes] == [0.0, 1.0, None]
    assert cat.foreground == cat.background == 1.0
    assert dog.foreground == pytest.approx(12 / 13)
    landscape, portrait = train.buckets
    assert (landscape.images, landscape.padding) == (15, 0)
    assert (landscape.least_scale, landscape.largest_scale) == (0.5, 1)
    assert portrait.images == 0


def test_size_limits_are_cocos():
    assert doctor.size_of(np.array([1023.9, 1024, 9215.9, 9216])).tolist() == [0, 1, 1, 2]


def test_no_boxes_is_an_error_in_training(config):
    message = both_say(config, [image_of(i, []) for i in range(5)], "boxes", "error")
    assert "no boxes on 5 images" in message


def test_no_boxes_to_evaluate_on_is_a_warning(config):
    empty = split_of("validation", [image_of(1000 + i, []) for i in range(4)])
    report = examined(config, healthy(), empty)
    assert "AP is undefined" in told(report.findings, "boxes", "warning")
    assert not report.failed()


def test_more_boxes_than_are_kept_names_the_number(config):
    config.data.max_boxes = 3
    many = image_of(77, [[10 * i, 10, 10 * i + 40, 50] for i in range(7)])
    message = both_say(config, [*healthy(), many], "max_boxes", "error")
    assert "image 77 has 7 boxes" in message
    assert message.endswith("set --config.data.max_boxes=7")


def test_image_ids_twice(config):
    twice = [*healthy(), image_of(99, [[10, 20, 52, 60]], id=3)]
    assert "3" in both_say(config, twice, "image_ids", "warning")
    evaluation = split_of("validation", [*healthy(1000, 4), image_of(98, [], id=1001)])
    train = split_of("train", healthy())
    for findings in (
        doctor.examine(train, evaluation, config).findings,
        doctor.short_form(train, evaluation, config),
    ):
        assert "such as 1001" in told(findings, "image_ids", "error")


@pytest.mark.parametrize("label", [2, -1])
def test_labels_that_are_no_class(config, label):
    bad = image_of(60, [[10, 20, 52, 60]], [label])
    message = both_say(config, [*healthy(), bad], "labels", "error")
    assert f"such as {label}" in message
    assert "image 60 (train_60.png)" in message


def test_labels_without_a_category_id(config):
    import dataclasses

    bad = split_of("train", [*healthy(), image_of(60, [[10, 20, 52, 60]], [5])])
    ids = dataclasses.replace(bad, _label_of=np.array([0, 1], np.int32))
    assert "image 60" in both_say(config, ids, "labels", "error")


def test_category_ids_with_gaps_are_a_note(config):
    split = split_of("train", healthy(), ids=(3, 17))
    assert "from 3 to 17 with gaps" in told(examined(config, split).findings, "category_ids")


def test_normalised_coordinates(config):
    images = healthy()
    for image in images:
        image["boxes"] = image["boxes"] / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    message = both_say(config, images, "units", "error")
    assert "100 % of 24 boxes" in message
    assert "normalised" in message


def test_coordinates_of_a_larger_picture(config):
    images = healthy()
    for image in images:
        image["boxes"] = image["boxes"] * 4
    assert "beyond twice the size of their image" in both_say(config, images, "units", "error")


def random_boxes(rng, count, least=0.02, most=0.5):
    sides = rng.uniform(least, most, (count, 2)) * [WIDTH, HEIGHT]
    corner = rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def corners_as_sizes(boxes):
    """What prepare makes of [x1, y1, x2, y2] that it takes for [x, y, width, height]."""
    end = np.minimum(boxes[:, :2] + boxes[:, 2:], [WIDTH, HEIGHT])
    return np.concatenate([boxes[:, :2], end], axis=1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("most", [0.1, 0.5, 1.0])
def test_corners_taken_for_sizes(config, seed, most):
    boxes = random_boxes(np.random.default_rng(seed), 60, most=most)

    def found(boxes):
        images = [image_of(i, boxes[3 * i : 3 * i + 3]) for i in range(20)]
        contents = read_contents(split_of("train", images), np.arange(20))
        return doctor.checks.check_units(contents)

    assert found(boxes) == []
    (finding,) = found(corners_as_sizes(boxes))
    assert "[x1, y1, x2, y2]" in finding.message
    assert finding.level == "error"


def test_boxes_of_whole_pictures_are_no_corners_taken_for_sizes(config):
    boxes = [[i, i, WIDTH, HEIGHT] for i in range(30)]  # all end at the border, and begin at it
    images = [image_of(i, [box]) for i, box in enumerate(boxes)]
    assert not [f for f in examined(config, images).findings if f.check == "units"]


def test_boxes_at_the_border_or_wide_are_no_corners_taken_for_sizes(config):
    at_border = [[WIDTH / 2 + i, HEIGHT / 2, WIDTH, HEIGHT] for i in range(30)]
    inside = [[60 + i, 40, 70 + i, 50] for i in range(15)]  # narrower than its left edge is far
    wide = [[0.3 * WIDTH, 0.3 * HEIGHT, 0.7 * WIDTH, 0.7 * HEIGHT]] * 30  # wider, and ends inside
    for boxes in (at_border + inside, wide):
        images = [image_of(i, [box]) for i, box in enumerate(boxes)]
        assert not [f for f in examined(config, images).findings if f.check == "units"]


def test_boxes_that_are_not_as_boxes_should_be(config):
    nan = float("nan")
    odd = [
        image_of(70, [[nan, 10, 50, 50]]),
        image_of(71, [[10, 10, 10, 50], [40, 20, 30, 50]]),
        image_of(72, [[200, 10, 240, 50]]),
        image_of(73, [[120, 20, 170, 60]]),
    ]
    findings = examined(config, [*healthy(), *odd]).findings
    messages = [f.message for f in findings if f.check == "box_shapes"]
    assert [m.split(", on")[0] for m in messages] == [
        "train: boxes that are not finite: 1 of 29",
        "train: boxes without area: 2 of 29",
        "train: boxes completely outside their image: 1 of 29",
        "train: boxes partly outside their image: 1 of 29",
    ]
    assert "image 71" in messages[1]
    assert all(f.level == "warning" for f in findings if f.check == "box_shapes")


def test_mostly_useless_boxes_are_an_error(config):
    images = [image_of(i, [[10, 10, 10, 50]] * 3) for i in range(5)]
    assert "training drops them" in both_say(config, images, "box_shapes", "error")


def test_near_identical_boxes(config):
    twice = image_of(80, [[10, 20, 52, 60], [10.5, 20, 52, 60], [11, 20, 52, 80]])
    other_class = image_of(81, [[10, 20, 52, 60], [10, 20, 52, 60]], [0, 1])
    crowd = image_of(82, [[10, 20, 52, 60]] * 2, crowds=np.array([True, False]))
    message = told(
        examined(config, [*healthy(), twice, other_class, crowd]).findings, "near_identical"
    )
    assert "an IoU above 0.95: 1, on" in message
    assert "[10, 20, 52, 60] on image 80 (train_80.png)" in message


def test_near_identical_boxes_against_all_pairs():
    rng = np.random.default_rng(0)
    images = []
    for i in range(30):
        base = random_boxes(rng, 6)[rng.integers(0, 6, 14)]
        moved = base + rng.uniform(-1, 1, base.shape) * rng.choice([0, 0.3, 1.5], (14, 1))
        images.append(image_of(i, np.clip(moved, 0, [WIDTH, HEIGHT] * 2), rng.integers(0, 2, 14)))
    contents = read_contents(split_of("train", images), np.arange(30))
    expected = set()
    for a in range(len(contents.boxes)):
        for b in range(a + 1, len(contents.boxes)):
            if (
                contents.row_of[a] == contents.row_of[b]
                and contents.labels[a] == contents.labels[b]
            ):
                first, second = contents.boxes[a], contents.boxes[b]
                shared = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
                shared = np.prod(np.maximum(shared, 0))
                areas = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])
                if shared / (areas - shared) > 0.95:
                    expected.add((a, b))
    assert len(expected) > 50
    assert {tuple(sorted(pair)) for pair in near_identical(contents).tolist()} == expected


def test_classes_without_boxes(config):
    images = [*healthy(count=9), image_of(40, [[10, 20, 52, 60]])]
    split = split_of("train", images, classes=("cat", "dog", "newt"), ids=(1, 2, 3))
    evaluation = split_of(
        "validation", [image_of(1000, [[10, 20, 52, 60]])], ("cat", "dog", "newt"), ids=(1, 2, 3)
    )
    messages = [(f.level, f.message) for f in examined(config, split, evaluation).findings
                if f.check == "classes"]  # fmt: skip
    assert messages == [
        ("warning", "train: classes without boxes: newt; training cannot learn them"),
        ("note", "train: classes with fewer than 10 boxes: dog"),
        ("note", "validation: classes without boxes: dog, newt; their AP is undefined"),
    ]
