"""``train --data``: one command from files to a detector; run again, it reads what it chose."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import SMALLEST

pytestmark = pytest.mark.usefixtures("shallow")

SMALL = [flag for flag in SMALLEST if "_side" not in flag and "train.steps" not in flag]
CHOSEN = (
    "--config.data.pixel_budget=6144",  # 64 × 96
    "--config.eval.report=False",
    "--config.model.backbone=resnet18",
    "--config.model.init_from=",
    "--config.model.norm=batch",
    "--config.model.frozen_stages=0",
)


@pytest.fixture
def files(tmp_path):
    """A COCO file and its images; objects of 20 pixels on images of 120 × 160."""
    root = tmp_path / "files"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "bolt"}]}
    for i in range(10):
        pixels = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(root / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 160, "height": 120})
        for k in range(3):
            box = [int(v) for v in rng.uniform(0, 90, 2)] + [24, 20]
            content["annotations"].append(
                {"id": 3 * i + k, "image_id": i, "category_id": 3, "bbox": box}
            )
    (root / "all.json").write_text(json.dumps(content))
    return root


def test_from_files_to_a_detector_and_again(program, files, tmp_path):
    workdir = tmp_path / "run"
    arguments = ("train", f"--data={files}", f"--workdir={workdir}", *SMALL, *CHOSEN)
    done = program(*arguments, "--config.train.steps=1")
    assert done.returncode == 0, done.stderr
    places = [done.stderr.index(f"{n}/4 {what}") for n, what in enumerate(
        ("prepare: ", "check: ", "fit: ", "train"), 1)]  # fmt: skip
    assert places == sorted(places)
    assert "COCO data set (all.json)" in done.stderr
    assert "held out" in done.stderr
    stored = json.loads((workdir / "config.json").read_text())
    fitted = stored["resolved"]["fitted"]
    assert fitted["data.buckets"] == [[64, 96]]
    assert fitted["data.max_boxes"] == 8
    assert "train.steps" not in fitted  # a flag
    assert stored["anchors"]["scale"] == 4.0  # what was asked for
    assert (workdir / "eval" / "1" / "metrics.json").exists()

    # the same command, with other data to fit to: the values of the run are read
    stored["resolved"]["fitted"]["data.max_boxes"] = 24
    (workdir / "config.json").write_text(json.dumps(stored))
    again = program(*arguments, "--config.train.steps=1")
    assert again.returncode == 0, again.stderr
    assert "prepared before" in again.stderr
    assert "--config.data.max_boxes=24" in again.stderr
    assert "fitted to" not in again.stderr
    assert "changed since" not in again.stderr
    after = json.loads((workdir / "config.json").read_text())
    assert after["resolved"]["fitted"] == stored["resolved"]["fitted"]

    # the fit leaves the anchors of ATSS alone; others do not fit the weights
    assert "anchors: unchanged" in done.stderr
    assert "anchors.scale" not in fitted
    scale = program(*arguments, "--config.train.steps=1", "--config.anchors.scale=4.4")
    assert scale.returncode == 2
    assert "config.anchors.scale=4.4 differs" in scale.stderr

    # other annotations are not those that the run began with
    shutil.copy(files / "images" / "0.png", files / "images" / "1.png")
    changed = program(*arguments, "--config.train.steps=1")
    assert changed.returncode == 2
    assert "has changed since" in changed.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.data.dir=x"], "both name the data set"),
        (["--on-bad=drop"], "must be stop or skip"),
        (["--num-processes=2", "--process-id=0", "--coordinator=h:1"], "runs in one process"),
    ],
)
def test_flags_that_contradict_each_other(program, files, tmp_path, flags, words):
    done = program("train", f"--data={files}", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unusable_record_stops_with_its_name(program, files, tmp_path):
    (files / "images" / "4.png").write_bytes(b"no image")
    done = program("train", f"--data={files}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "4.png" in done.stderr
    assert "--on-bad=skip" in done.stderr


def test_the_share_that_may_be_left_out_is_a_flag(program, files, tmp_path):
    (files / "images" / "3.png").write_bytes(b"no image")
    arguments = ("train", f"--data={files}", f"--workdir={tmp_path / 'run'}", "--on-bad=skip")
    done = program(*arguments)
    assert done.returncode == 2
    assert "a larger share than --max-bad=0.01; correct them, or raise it" in done.stderr
    for value in ("some", "-0.1", "nan", "10%"):
        done = program(*arguments, f"--max-bad={value}")
        assert done.returncode == 2
        assert f"--max-bad={value} must be a share from 0 to 1" in done.stderr
    done = program(*arguments, "--max-bad=0.2", *SMALL, *CHOSEN, "--config.train.steps=1")
    assert done.returncode == 0, done.stderr
    assert "records left out: 1" in done.stderr
