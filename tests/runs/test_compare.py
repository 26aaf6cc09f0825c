"""Comparing runs: differences, intervals, what changed, and what cannot be compared."""

import json
import shutil

import numpy as np
import pytest

from experiments.shapes import get_config
from retina_jax.data.data_set import open_split
from retina_jax.errors import UserError
from retina_jax.evaluation import coco
from retina_jax.jobs import compare as job
from retina_jax.runs.compare import Difference, compare, difference
from retina_jax.runs.compare_page import intervals, write_page
from retina_jax.training.workdir import Classes, write_config


@pytest.fixture(scope="module")
def pair(shapes_dir, tmp_path_factory):
    """Two runs without checkpoints: one finds all but one image's objects, one half of them."""
    folder = tmp_path_factory.mktemp("pair")
    split = open_split(shapes_dir / "shapes" / "1.0.0", "validation")
    truth = coco.ground_truth(split)
    config = get_config()
    config.data.dir = str(shapes_dir)
    skipped = truth["images"][2]["id"]
    for name, keeps in (
        ("half", lambda i, a: i % 2),
        ("all", lambda i, a: a["image_id"] != skipped),
    ):
        config.loss.gamma = 2.0 if name == "all" else 1.0
        found = [
            {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
             "score": round(0.9 - i / 1000, 4)}
            for i, a in enumerate(truth["annotations"]) if keeps(i, a)
        ]  # fmt: skip
        metrics = coco.score(truth, found) | {"step": 4}
        evaluation = folder / name / "eval" / "4"
        evaluation.mkdir(parents=True)
        (evaluation / "detections.json").write_text(json.dumps(found))
        (evaluation / "metrics.json").write_text(json.dumps(metrics))
        write_config(folder / name, config, Classes.of(split).to_json())
    return folder / "half", folder / "all"


@pytest.fixture(scope="module")
def compared(pair):
    counted = []
    result = compare(pair, 60, 0, counted.append)
    assert sum(counted) == 2 * 60
    return result


def metrics_of(workdir):
    return json.loads((workdir / "eval/4/metrics.json").read_text())


def test_the_numbers_are_those_of_the_evaluations(compared, pair):
    (comparison,) = compared.comparisons
    before, now = map(metrics_of, pair)
    for d in comparison.metrics:
        for ours, metrics in ((d.before, before), (d.now, now)):
            theirs = metrics[d.name]
            assert ours is None if theirs is None else ours == pytest.approx(theirs, abs=1e-6)
    for d in comparison.classes:
        assert d.before == pytest.approx(before["per_class"][d.name], abs=1e-6)
        assert d.now == pytest.approx(now["per_class"][d.name], abs=1e-6)
    ap = comparison.metrics[0]
    assert ap.change == pytest.approx(now["AP"] - before["AP"], abs=1e-6)
    assert ap.clear
    assert ap.interval[0] < ap.change < ap.interval[1]


def test_the_image_that_got_worse_is_among_the_changed(compared):
    (comparison,) = compared.comparisons
    worse = [row for row, before, now in comparison.images if now > before]
    assert worse == [2]
    changes = [abs(now - before) for _, before, now in comparison.images]
    assert changes == sorted(changes, reverse=True)
    assert comparison.fields == {"loss.gamma": (1.0, 2.0)}


def test_a_run_is_the_same_as_itself(pair):
    (comparison,) = compare([pair[0], pair[0] / "eval" / "4"], 20).comparisons
    assert all(d.change in (0, None) and d.interval in ((0, 0), None) for d in comparison.metrics)
    assert comparison.images == []
    assert comparison.fields == {}


def test_the_seed_decides(pair, compared):
    again, other = (compare(pair, 60, seed).comparisons[0] for seed in (0, 1))
    assert again.metrics == compared.comparisons[0].metrics
    assert other.metrics[0].interval != again.metrics[0].interval
    assert other.metrics[0].change == again.metrics[0].change


def test_an_interval_by_hand():
    """Differences of 0 to 100; the first value is the difference itself."""
    before = np.zeros(102)
    now = np.array([7.0, *range(101)])
    one = difference("AP", before, now)
    assert (one.before, one.now, one.change) == (0, 7, 7)
    assert one.interval == pytest.approx((2.5, 97.5))
    assert one.clear
    assert not difference("AP", before, now - 50).clear
    nothing = difference("APl", np.full(5, np.nan), np.full(5, np.nan))
    assert nothing == Difference("APl", None, None, None)
    assert nothing.change is None
    assert not nothing.clear


def test_the_command_prints_and_writes_a_page(pair, tmp_path, capsys):
    assert job.main([*map(str, pair), "--samples=20", f"--out={tmp_path}"]) == 0
    with pytest.raises(
        UserError, match="--out=s3://b/x is an address that this program cannot open"
    ):
        job.main([*map(str, pair), "--out=s3://b/x"])
    with pytest.raises(UserError, match="nothere is not a folder; name the workdir of a run"):
        job.main([str(pair[0]), str(tmp_path / "nothere")])
    printed = capsys.readouterr().out
    for text in ("AP50", "loss.gamma", "triangle", "half/4", "comparison.html"):
        assert text in printed
    page = (tmp_path / "comparison.html").read_text()
    assert page.count('href="data:image/jpeg;base64,') == 3 * page.count('<div class="three">')
    assert "loss.gamma" in page


def test_texts_on_the_page_are_escaped(compared, tmp_path):
    import dataclasses

    names = ("<b>bold</b>", *compared.split.class_names[1:])
    split = dataclasses.replace(compared.split, class_names=names)
    (one,) = compared.comparisons
    classes = [dataclasses.replace(one.classes[0], name=names[0]), *one.classes[1:]]
    hostile = dataclasses.replace(
        compared, split=split, comparisons=[dataclasses.replace(one, classes=classes)]
    )
    page = write_page(hostile, tmp_path).read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;bold" in page


def test_charts_show_the_largest_differences():
    many = [Difference(f"c{k}", 0.0, k / 100, (k / 100 - 0.01, k / 100 + 0.01)) for k in range(50)]
    assert intervals(many).count("<circle") == 30
    assert intervals([Difference("x", None, None, None)]) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classes", "have different classes: class 0 is 'disc' (id 1) against 'dog' (id 1)"),
        ("split", "were evaluated on different images (validation and train differ)"),
        ("data", "were evaluated on different images (the annotations of validation differ)"),
        ("ids", "has detections of image 987654"),
        ("json", "cannot be read"),
        ("none", "has no evaluation; run the evaluate command on it first"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair, tmp_path, change, message):
    one, other = (tmp_path / name for name in ("one", "other"))
    for source, target in zip(pair, (one, other), strict=True):
        shutil.copytree(source, target)
        path = target / "config.json"
        config = json.loads(path.read_text())
        config["resolved"]["data"] = {"validation": {"annotations": "a"}}
        if target == other:
            if change == "classes":
                config["resolved"]["class_names"][0] = "dog"
            if change == "split":
                config["data"]["eval_split"] = "train"
            if change == "data":
                config["resolved"]["data"]["validation"]["annotations"] = "b"
        path.write_text(json.dumps(config))
    detections = other / "eval" / "4" / "detections.json"
    if change == "ids":
        found = json.loads(detections.read_text())
        detections.write_text(json.dumps([*found, found[0] | {"image_id": 987654}]))
    if change == "json":
        detections.write_text("[")
    if change == "none":
        shutil.rmtree(other / "eval")
    with pytest.raises(UserError) as refused:
        compare([one, other], 5)
    assert message in str(refused.value)


def test_one_run_and_no_samples_are_mistakes(pair):
    with pytest.raises(UserError, match="two runs"):
        compare(pair[:1])
    with pytest.raises(UserError, match="--samples=0"):
        compare(pair, 0)
