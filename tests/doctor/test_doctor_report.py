"""What the doctor finds in pictures and anchors, and the page."""

import json
import re

import cv2
import numpy as np
from made_data import (
    HEIGHT,
    WIDTH,
    both_say,
    encoded,
    examined,
    healthy,
    image_of,
    picture,
    split_of,
    told,
)

from retina_jax.doctor import examine as doctor
from retina_jax.doctor import plots as doctor_plots
from retina_jax.doctor import report as doctor_report
from retina_jax.doctor.checks import percent
from retina_jax.doctor.contents import spread_rows


def test_what_prepare_reported(config, tmp_path):
    report = {"train": {"images": 12, "boxes": 24, "grey images": 3, "boxes without area, dropped":
                        9}, "validation": {"images": 4}}  # fmt: skip
    (tmp_path / "prepare_report.json").write_text(json.dumps(report))
    split = split_of("train", healthy(), directory=tmp_path)
    found = {f.message: f.level for f in examined(config, split).findings if f.check == "prepare"}
    assert found == {
        "train: prepare reported grey images: 3": "note",
        "train: prepare reported boxes without area, dropped: 9": "warning",
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
    assert exact.startswith("images of validation that are also in train, byte for byte: 1 of 7 (")
    assert "image 2000 (validation_2000.png) = image 3 (train_3.png)" in exact
    assert "2 of 7" in alike
    assert "image 2001 (validation_2001.png) = image 5 (train_5.png)" in alike
    assert "image 2002 (validation_2002.png) = image 7 (train_7.png)" in alike
    assert not report.failed()


def test_all_of_evaluation_in_training_is_an_error(config):
    evaluation = split_of("validation", [image_of(i, [], id=2000 + i) for i in range(3)])
    report = examined(config, healthy(), evaluation)
    assert "every image of validation is also in train" in told(report.findings, "leaks", "error")


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
        r"train: 0 % of 12 boxes of class cat have an anchor with IoU 0.5 or more "
        r"\(0 % with 0.4\); 100 % with --config.anchors.scale=[\d.]+ .*"
    )
    assert re.fullmatch(pattern, messages[0])
    assert messages[1].startswith("train: 0 % of 12 small boxes (at the input)")
    assert messages[1].endswith("with the same flags")
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
    assert any("shrinks images by up to 5×" in m for m in messages)
    assert any("bucket 96×96 receives 1 of 16 images, fewer than train.batch_size=4" in m
               for m in messages)  # fmt: skip
    assert any("enlarges images by up to 4.8×" in m for m in messages)
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
