"""Weights keep their meaning: other classes or fields are refused, named, or scored elsewhere."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from retina_jax.config import default_config
from retina_jax.data.data_set import find_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.runs.meaning import check_classes, check_same_weights, evaluation_name
from retina_jax.training.workdir import CONFIG, Classes, read_classes, write_config

CLASSES = Classes(("cat", "dog", "cow"), (1, 3, 7))


@pytest.fixture
def config():
    config = default_config()
    config.data.dir, config.data.name = "/data", "pets"
    return config


@pytest.fixture
def run(tmp_path, config):
    write_config(tmp_path, config, CLASSES.to_json())
    return tmp_path


def reporter():
    said = io.StringIO()
    return Reporter(Console(file=said, width=400)), said


def test_classes_are_stored_by_label(run):
    assert read_classes(run) == CLASSES


@pytest.mark.parametrize(
    ("names", "ids", "difference"),
    [
        (("dog", "cat", "cow"), (1, 3, 7), "class 0 is 'cat' (id 1) against 'dog' (id 1)"),
        (("cat", "dog", "cow"), (1, 3, 8), "class 2 is 'cow' (id 7) against 'cow' (id 8)"),
        (("cat", "dog"), (1, 3), "3 classes against 2"),
        (("cat", "d\u043eg", "cow"), (1, 3, 7), r"against 'd\u043eg' (id 3)"),
    ],
)
def test_other_classes_are_refused_with_the_first_difference(run, names, ids, difference):
    report, _ = reporter()
    with pytest.raises(UserError) as caught:
        check_classes(run, Classes(names, ids), report)
    message = str(caught.value)
    assert difference in message
    assert "--config.data.dir" in message
    assert f"--config.model.init_from={run}" in message
    assert "\n" not in message
    check_classes(run, CLASSES, report)


def test_a_run_that_does_not_say_its_classes_gets_one_line(tmp_path, config):
    (tmp_path / CONFIG).write_text(json.dumps(config.to_dict()))
    report, said = reporter()
    check_classes(tmp_path, CLASSES, report)
    assert said.getvalue().count("does not record the classes it was trained on") == 1


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("anchors.scale", 2.0, "--config.anchors.scale=4.0"),
        ("data.pixel_order", "BGR", "--config.data.pixel_order=RGB"),
        ("data.mean", (1.0, 2.0, 3.0), "--config.data.mean='(123.675,116.28,103.53)'"),
        ("data.labels", "category_ids", "--config.data.labels=dense"),
        ("coder.weights", (10.0, 10.0, 5.0, 5.0), "--config.coder.weights='(1.0,1.0,1.0,1.0)'"),
    ],
)
def test_a_resume_with_other_fields_of_the_weights_is_refused(run, config, field, value, fix):
    report, _ = reporter()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        check_same_weights(run, config, CLASSES, report)
    assert str(caught.value).startswith(f"config.{field}=")
    assert f"set {fix}, or start a new run" in str(caught.value)


def test_a_resume_with_other_bins_is_refused_if_there_are_distributions(tmp_path, config):
    report, _ = reporter()
    for box, refused in (("giou", False), ("dfl", True)):
        config.loss.box, config.loss.dfl_bins = box, 16
        write_config(tmp_path, config, CLASSES.to_json())
        config.loss.dfl_bins = 8
        if refused:
            with pytest.raises(
                UserError, match=r"loss\.dfl_bins=8 .* set --config.loss.dfl_bins=16"
            ):
                check_same_weights(tmp_path, config, CLASSES, report)
        else:
            check_same_weights(tmp_path, config, CLASSES, report)


@pytest.mark.parametrize(("before", "now"), [("giou", "dfl"), ("dfl", "giou")])
def test_a_resume_with_another_box_head_is_refused(tmp_path, config, before, now):
    config.loss.box = before
    write_config(tmp_path, config, CLASSES.to_json())
    config.loss.box = now
    with pytest.raises(UserError, match=rf"loss\.box={now} .* set --config.loss.box={before}"):
        check_same_weights(tmp_path, config, CLASSES, reporter()[0])


def test_a_resume_with_other_fields_of_the_trajectory_is_not(run, config):
    report, _ = reporter()
    config.optimizer.learning_rate, config.optimizer.clip_norm = 0.5, 10.0
    config.train.steps, config.loss.gamma, config.data.flip = 17, 1.0, False
    check_same_weights(run, config, CLASSES, report)


def test_scores_under_other_fields_go_to_a_folder_that_says_so(run, config, shapes_dir):
    split = open_split(find_data_set(shapes_dir, "shapes"), "validation")
    assert evaluation_name(run, 240, config, split) == "240"
    config.eval.pictures, config.eval.batch_size, config.eval.engine = 0, 1, "pycocotools"
    config.train.steps = 3
    assert evaluation_name(run, 240, config, split) == "240", "nothing that changes scores"
    for fields, name in (
        ({"eval.score_threshold": 0.3}, "240-score_threshold=0.3"),
        ({"anchors.scale": 2.0}, "240-scale=2.0"),
        ({"data.eval_split": "train"}, "240-shapes-validation"),
        ({"data.short_side": 400, "eval.nms_iou": 0.6}, None),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(fields)
        found = evaluation_name(run, 240, other, split)
        assert found == name or (name is None and found.startswith("240-"))
        assert found != "240"
        assert "/" not in found
        assert not found.isdigit()


def test_many_differences_still_make_one_name_each(run, config, shapes_dir):
    split = open_split(find_data_set(shapes_dir, "shapes"), "validation")
    config.data.mean, config.data.std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    config.anchors.octaves, config.anchors.ratios = (0.0, 0.25, 0.5, 0.75), (0.3, 0.5, 1.0)
    one = evaluation_name(run, 5, config, split)
    config.eval.nms_iou = 0.7
    two = evaluation_name(run, 5, config, split)
    assert one != two
    assert max(map(len, (one, two))) <= 80


def test_classes_of_a_split_are_its_names_and_ids(two_aspects):
    split = open_split(find_data_set(two_aspects, ""), "train")
    classes = Classes.of(split)
    assert classes == Classes(("thing 1", "thing 3", "thing 7"), (1, 3, 7))
    renamed = dataclasses.replace(split, class_names=("thing 1", "thing 7", "thing 3"))
    assert classes.difference(Classes.of(renamed)).startswith("class 1 is 'thing 3' (id 3)")
