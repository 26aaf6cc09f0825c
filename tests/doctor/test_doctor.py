"""Each thing the doctor finds, provoked by a small data set; and the program on real data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from retina_jax.config import default_config
from retina_jax.data.sources import Split
from retina_jax.doctor import examine as doctor
from retina_jax.doctor import plots as doctor_plots
from retina_jax.doctor import report as doctor_report
from retina_jax.doctor.checks import near_identical, percent
from retina_jax.doctor.contents import read_contents, spread_rows

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HEIGHT, WIDTH = 96, 160


def picture(seed, height=HEIGHT, width=WIDTH):
    """Coarse noise: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, suffix=".png", *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def image_of(seed, boxes, labels=None, **other):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    entry = {"boxes": boxes, "labels": labels, "crowds": np.zeros(len(boxes), bool), "id": seed,
             "size": (HEIGHT, WIDTH), "picture": None, "seed": seed}  # fmt: skip
    return entry | other


def split_of(name, images, classes=("cat", "dog"), directory=Path("made"), ids=(1, 2)):
    records = []
    for image in images:
        height, width = image["size"]
        stored = image["boxes"][:, [1, 0, 3, 2]] / [height, width, height, width]
        content = image["picture"] or encoded(picture(image["seed"], height, width))
        records.append(
            {
                "image": content,
                "objects": {
                    "bbox": stored.astype(np.float32),
                    "label": image["labels"],
                    "is_crowd": image["crowds"],
                },
            }
        )
    return Split(
        name=name,
        directory=directory,
        class_names=tuple(classes),
        category_ids=tuple(ids),
        image_ids=np.array([i["id"] for i in images], np.int64),
        sizes=np.array([i["size"] for i in images], np.int32).reshape(-1, 2),
        box_counts=np.array([len(i["boxes"]) for i in images], np.int64),
        file_names=np.array([f"{name}_{i['id']}.png" for i in images], str),
        _records=records,
    )


def healthy(first=0, count=12):
    """Images with two boxes that default anchors match: one of each class."""
    return [
        image_of(first + i, [[10 + i, 20, 52 + i, 60], [90, 30 + i, 130, 70 + i]], [0, 1])
        for i in range(count)
    ]


@pytest.fixture
def config():
    config = default_config()
    config.data.short_side, config.data.long_side = 96, 160
    config.data.buckets = ((96, 160), (160, 96))
    config.train.batch_size = 4
    return config


def examined(config, train, evaluation=None):
    if evaluation is None:
        evaluation = split_of("validation", healthy(1000, 4))
    train = train if isinstance(train, Split) else split_of("train", train)
    return doctor.examine(train, evaluation, config)


def told(findings, check, level=None):
    """The only message of a check."""
    (found,) = [f for f in findings if f.check == check and level in (None, f.level)]
    assert "\n" not in found.message
    return found.message


def both_say(config, train, check, level):
    """What the whole examination and the short form say, which is the same."""
    report = examined(config, train)
    split = train if isinstance(train, Split) else split_of("train", train)
    short = doctor.short_form(split, split_of("validation", healthy(1000, 4)), config)
    message = told(report.findings, check, level)
    assert message == told(short, check, level)
    assert report.failed() == (level == "error")
    return message


def test_a_sound_data_set_is_left_alone(config):
    report = examined(config, healthy())
    assert [f.message for f in report.findings] == ["train: bucket 160×96 shows no image"]
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
    assert "no box on 5 images" in message


def test_no_boxes_to_evaluate_on_is_a_warning(config):
    empty = split_of("validation", [image_of(1000 + i, []) for i in range(4)])
    report = examined(config, healthy(), empty)
    assert "AP is void" in told(report.findings, "boxes", "warning")
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
    assert "beyond twice their picture" in both_say(config, images, "units", "error")


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
        "train: 1 of 29 boxes are not finite",
        "train: 2 of 29 boxes are of no area",
        "train: 1 of 29 boxes are wholly outside their picture",
        "train: 1 of 29 boxes are partly outside their picture",
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
    assert "1 pairs" in message
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
        ("warning", "train: no box of class newt: it can never be detected"),
        ("note", "train: fewer than 10 boxes of class dog"),
        ("note", "validation: no box of class dog, newt: it has no AP"),
    ]


def test_what_prepare_reported(config, tmp_path):
    report = {"train": {"images": 12, "boxes": 24, "grey pictures": 3, "boxes of no area, dropped":
                        9}, "validation": {"images": 4}}  # fmt: skip
    (tmp_path / "prepare_report.json").write_text(json.dumps(report))
    split = split_of("train", healthy(), directory=tmp_path)
    found = {f.message: f.level for f in examined(config, split).findings if f.check == "prepare"}
    assert found == {
        "train: prepare found 3 grey pictures": "note",
        "train: prepare found 9 boxes of no area, dropped": "warning",
    }
    (tmp_path / "prepare_report.json").write_text("[1]")
    assert "cannot be read" in told(examined(config, split).findings, "prepare")


def test_pictures_in_both_splits(config):
    same = image_of(2000, [], picture=encoded(picture(3)))
    anew = encoded(picture(5), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 60)
    half = cv2.resize(picture(7), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    copies = [same, image_of(2001, [], picture=anew)]
    copies.append(image_of(2002, [], picture=encoded(half), size=(HEIGHT // 2, WIDTH // 2)))
    evaluation = split_of("validation", [*healthy(1000, 4), *copies])
    report = examined(config, healthy(), evaluation)
    exact, alike = [f.message for f in report.findings if f.check == "leaks"]
    assert exact.startswith("1 of 7 pictures of validation are in train too, byte for byte: image ")
    assert "image 2000 (validation_2000.png) = image 3 (train_3.png)" in exact
    assert "2 of 7" in alike
    assert "image 2001 (validation_2001.png) = image 5 (train_5.png)" in alike
    assert "image 2002 (validation_2002.png) = image 7 (train_7.png)" in alike
    assert not report.failed()


def test_all_of_evaluation_in_training_is_an_error(config):
    evaluation = split_of("validation", [image_of(i, [], id=2000 + i) for i in range(3)])
    report = examined(config, healthy(), evaluation)
    assert "every picture of validation is in train" in told(report.findings, "leaks", "error")


def test_likeness_of_the_whole_is_not_enough(config):
    # one slope of light, and other things on it: four grey levels apart
    rng = np.random.default_rng(0)
    slope = np.linspace(60, 190, HEIGHT)[:, None] + np.zeros((HEIGHT, WIDTH))

    def on_slope():
        details = cv2.resize(rng.choice([-3.0, 3.0], (16, 17)), (WIDTH, HEIGHT))
        return encoded((slope + details).astype(np.uint8))

    train = [*healthy(), image_of(90, [], picture=on_slope())]
    evaluation = split_of("validation", [image_of(91, [], picture=on_slope())])
    assert not [f for f in examined(config, train, evaluation).findings if f.check == "leaks"]


def test_flat_pictures_do_not_leak(config):
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    train = [*healthy(), image_of(90, [], picture=encoded(grey))]
    evaluation = split_of("validation", [image_of(91, [], picture=encoded(grey + 1))])
    assert not [f for f in examined(config, train, evaluation).findings if f.check == "leaks"]


def test_one_split_for_both_is_said_without_looking(config):
    split = split_of("train", healthy())
    assert "both 'train'" in told(doctor.short_form(split, split, config), "leaks", "warning")


def test_pictures_that_cannot_be_read_and_that_repeat(config):
    broken = image_of(95, [], picture=b"no picture")
    repeated = image_of(96, [], picture=encoded(picture(2)))
    findings = examined(config, [*healthy(), broken, repeated]).findings
    assert "image 95" in told(findings, "pictures", "error")
    assert "image 2 (train_2.png) = image 96" in told(findings, "pictures", "warning")


def test_a_class_out_of_reach_and_what_helps(config):
    images = healthy()
    for i, image in enumerate(images):
        image["boxes"][0] = [20 + i, 20, 40 + i, 40]  # cats of 20²: 400 / 1024 at the best
    split = split_of("train", images)
    report = examined(config, split)
    messages = [f.message for f in report.findings if f.check == "anchor_recall"]
    pattern = (
        r"train: 0 % of 12 boxes of class cat have an anchor with IoU 0.5 \(0 % with 0.4\); 100 % "
        r"with --config.anchors.scale=[\d.]+"
    )
    assert re.fullmatch(pattern, messages[0])
    assert messages[1].startswith("train: 0 % of 12 small boxes (at the input)")
    assert messages[1].endswith("with the same")
    short = doctor.short_form(split, split_of("validation", healthy(1000, 4)), config)
    assert [f.message for f in short] == messages
    assert report.to_json()["suggestion"]["flags"] == report.suggestion.flags()


def test_recall_is_told_at_both_thresholds(config):
    images = healthy()
    for image in images:
        image["boxes"][0] = [29.25, 29.25, 50.75, 50.75]  # around a place: 21.5² / 32² = 0.451
    report = examined(config, images)
    cat = report.summaries[0].classes[0]
    assert (cat.foreground, cat.background) == (0.0, 1.0)
    assert "(100 % with 0.4)" in next(f.message for f in report.findings)


def test_hardly_a_box_within_reach_is_an_error(config):
    images = [image_of(i, [[20 + i, 20, 26 + i, 26], [90, 30, 96, 36]]) for i in range(12)]
    message = both_say(config, images, "anchor_recall", "error")
    assert "0 % of 24 boxes have an anchor with IoU 0.4" in message
    assert "--config." in message


def test_crowds_are_matched_by_no_anchor_and_not_counted(config):
    images = healthy()
    images += [image_of(100 + i, [[0, 0, 4, 4]], crowds=np.array([True])) for i in range(20)]
    assert not [f for f in examined(config, images).findings if f.check == "anchor_recall"]


def test_buckets(config):
    config.data.buckets = ((96, 160), (96, 96))
    wide = [image_of(300 + i, [], size=(20, 160)) for i in range(2)]
    square = [image_of(310, [], size=(20, 20))]
    huge = [image_of(320, [], size=(480, 800))]
    messages = [f.message for f in examined(config, [*healthy(), *wide, *square, *huge]).findings
                if f.check == "buckets"]  # fmt: skip
    assert any("shrunk up to 5 times" in m for m in messages)
    assert any("bucket 96×96 shows 1 of 16 images, fewer than train.batch_size=4" in m
               for m in messages)  # fmt: skip
    assert any("enlarged up to 4.8 times" in m for m in messages)
    config.data.buckets = ((160, 160),)
    padded = told(examined(config, healthy()).findings, "buckets", "warning")
    assert "bucket 160×160 is 40 % padding over 12 images" in padded


def test_a_sample_is_spread_evenly():
    split = split_of("train", healthy(count=11))
    np.testing.assert_array_equal(spread_rows(split, 3), [0, 5, 10])
    assert len(spread_rows(split, 100)) == 11


def test_the_short_form_reads_no_more_than_it_is_told(config):
    class Counting(list):
        read = 0

        def __getitem__(self, row):
            Counting.read += 1
            return super().__getitem__(row)

    import dataclasses

    split = split_of("train", healthy(count=12))
    split = dataclasses.replace(split, _records=Counting(split._records))
    doctor.short_form(split, split_of("validation", healthy(1000, 4)), config, limit=5)
    assert Counting.read == 5


def test_percent_never_rounds_to_what_is_not_so():
    assert [percent(v) for v in (0, 0.0001, 0.206, 0.99999, 1)] == [
        "0 %", "<0.1 %", "20.6 %", ">99.9 %", "100 %"
    ]  # fmt: skip


def test_the_page_escapes_names_and_holds_its_plots(config):
    names = (r"<b>$\frac$</b>", "dog [bold]")  # a formula that cannot be set
    images = healthy()
    for image in images:
        image["boxes"][0] = [20, 20, 40, 40]
    train, evaluation = (
        split_of(name, data, names)
        for name, data in (("train", images), ("validation", healthy(1000, 4)))
    )
    report = examined(config, train, evaluation)
    plots = doctor_plots.draw_all(report, config)
    assert all(plot.startswith(b"\x89PNG") for plot in plots.values())
    page = doctor_report.page(report, plots, [("Section", "a <caption>", b"\x89PNG")])
    assert "<b>$" not in page
    assert "&lt;b&gt;$" in page
    assert page.count("data:image/png;base64,") == len(plots) + 1
    assert "http" not in page  # nothing is fetched
    for table in doctor_report.text_tables(report):
        assert table.row_count


def run(*arguments):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/doctor.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    return done


def prepare(images, annotations, out):
    subprocess.run(
        [sys.executable, REPOSITORY / "scripts/prepare.py", "coco", "--images", images,
         *(a for file in annotations for a in ("--annotations", file)), "--out", out],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bccd_data(bccd, tmp_path_factory):
    out = tmp_path_factory.mktemp("bccd")
    prepare(bccd / "images", [bccd / "train.json", bccd / "val.json"], out)
    return out


CUSTOM = "--config=experiments/custom.py"


def test_blood_cells_and_the_flags_that_help(bccd_data, tmp_path):
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "Platelets" in done.stdout
    before = json.loads((tmp_path / "doctor.json").read_text())
    page = (tmp_path / "doctor.html").read_text()
    # four plots, six pictures and six of the worst
    assert page.count("data:image/png;base64,") == 16
    platelets = before["splits"][0]["classes"][2]
    assert (platelets["name"], platelets["boxes"]) == ("Platelets", 209)
    assert platelets["foreground"] < 0.3

    # one field beside them: annotated once more by another focus of the same slide
    leaks = [f["message"] for f in before["findings"] if f["check"] == "leaks"]
    assert len(leaks) == 1
    assert "BloodImage_00037.jpg" in leaks[0]

    flags = before["suggestion"]["flags"].replace("'", "").split()
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}", *flags)
    after = json.loads((tmp_path / "doctor.json").read_text())
    assert done.returncode == 0
    assert after["splits"][0]["classes"][2]["foreground"] >= 0.9
    assert after["suggestion"] is None
    for promised, row in zip(list(before["suggestion"]["after"].values()),
                             after["splits"][0]["classes"], strict=False):  # fmt: skip
        assert row["foreground"] == promised
    assert not [f for f in after["findings"] if f["check"] == "anchor_recall"]


def test_exit_code_2_where_evaluation_is_training(bccd, tmp_path):
    files = [f"train={bccd / 'val.json'}", f"validation={bccd / 'val.json'}"]
    prepare(bccd / "images", files, tmp_path / "data")
    done = run(CUSTOM, f"--config.data.dir={tmp_path / 'data'}", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "error: every picture of validation is in train too" in done.stdout
    assert (tmp_path / "doctor.html").exists()


def test_exit_code_2_for_too_many_boxes(bccd_data, tmp_path):
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}",
               "--config.data.max_boxes=29")  # fmt: skip
    assert done.returncode == 2
    assert "set --config.data.max_boxes=30" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--config is missing"),
        ([CUSTOM, "--config.data.dir=/nowhere"], "config.data.dir='/nowhere' is not a folder"),
        ([CUSTOM, "--config.data.shrot_side=3"], "did you mean --config.data.short_side?"),
        ([CUSTOM, "--out=/dev/null/x"], "--out=/dev/null/x"),
    ],
)
def test_mistakes_are_one_line(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
