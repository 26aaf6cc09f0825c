"""Exports of a run: the files, the loader without this package, and every refusal."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import EXPORTED as KINDS
from support import on_one_device

from retina_jax.errors import RunError, UserError
from retina_jax.exporting import export as exporting
from retina_jax.exporting import program
from retina_jax.exporting.agreement import compare
from retina_jax.training.workdir import read_config
from retina_jax.types import Detections

pytestmark = pytest.mark.usefixtures("shallow")
FILE = "model-128x128"


def of_the_run(workdir, folder):
    """Saves images of the run's data; returns evaluation's detections, in pixels of the input."""
    from retina_jax import parallel
    from retina_jax.data.data_set import data_dir, find_data_set, open_split
    from retina_jax.data.loader import EvaluationLoader
    from retina_jax.evaluation.detect import make_detect
    from retina_jax.prediction.network import from_workdir

    config = read_config(workdir)
    network = from_workdir(workdir)
    split = open_split(find_data_set(data_dir(config.data.dir), config.data.name), "validation")
    devices = parallel.Devices.local(1)
    detect = make_detect(network.model, config, devices)
    batch = EvaluationLoader(split, config).first_of(0)
    batch = batch.replace(original_sizes=batch.sizes)
    np.savez(folder / "images.npz", images=batch.images, sizes=batch.sizes)
    return [d for _, d in detect(devices.replicate(network.variables), [batch])]


ALONE = """
import importlib.util, sys
import numpy as np
sys.modules["retina_jax"] = sys.modules["flax"] = None  # importing them fails
folder, out, *kinds = sys.argv[1:]
given = np.load(f"{out}/images.npz")
for kind in kinds:
    spec = importlib.util.spec_from_file_location("load", f"{folder}/{kind}/load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    detector = load.Detector()
    for i, (image, (height, width)) in enumerate(zip(given["images"], given["sizes"])):
        boxes, scores, labels = detector(image[:height, :width])
        np.savez(f"{out}/{kind}-{i}.npz", boxes=boxes, scores=scores, labels=labels)
"""


def test_loading_needs_no_retina_jax_and_gives_evaluations_detections(
    exported, finished_run, tmp_path
):
    expected = of_the_run(finished_run, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, exported, tmp_path, *KINDS],
        env={k: v for k, v in on_one_device().items() if k != "PYTHONPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("an exported model is code, not data") == len(KINDS)
    for kind in KINDS:
        files = (np.load(tmp_path / f"{kind}-{i}.npz") for i in range(len(expected)))
        found = [Detections(**file) for file in files]
        result = compare(expected, found, 0.5, 0.0, 1e-3)
        assert result.undecided >= 0
        assert result.detections > 50
        assert result.pixels < 0.1
        assert result.score < 1e-3
        if kind == "stablehlo":
            assert result.undecided == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_what_it_is_and_how_long_it_loads(exported, finished_run, kind):
    card = json.loads((exported / kind / "model.json").read_text())
    assert [f["file"] for f in card["files"]] == [f"{FILE}.{kind}"]
    assert card["files"][0]["bytes"] == (exported / kind / f"{FILE}.{kind}").stat().st_size
    assert "boxes differ by up to" in card["files"][0]["agreement"]
    assert [c["category_id"] for c in card["classes"]] == [1, 2, 3, 4, 5]
    assert card["step"] == 4
    assert card["config"]["eval"]["score_threshold"] == 0.0
    assert set(card["data"]) == {"train", "validation"}
    text = (exported / kind / "model_card.md").read_text()
    assert "Load it only if you trust its origin" in text
    assert f"retina_jax {card['versions']['retina_jax']}" in text
    if kind == "stablehlo":
        assert f"with jax {card['versions']['jax']}" in text
        assert "within six months" in text
    else:
        assert "ONNX operator set" in text
    assert {p.name for p in (exported / kind).iterdir()} == {
        "load.py", "model.json", "model_card.md", f"{FILE}.{kind}"
    }  # fmt: skip


def test_an_artefact_that_differs_is_no_success(finished_run, tmp_path, monkeypatch):
    def other(images, sizes):
        count = len(images)
        return {"boxes": np.tile(np.array([1, 1, 9, 9], np.float32), (count, 2, 1)),
                "scores": np.full((count, 2), 0.9, np.float32),
                "labels": np.zeros((count, 2), np.int32)}  # fmt: skip

    monkeypatch.setattr(program, "write", lambda network, bucket, size, path: None)
    monkeypatch.setattr(program, "load", lambda path: other)
    with pytest.raises(RunError, match=r"the 128×128 model differs from the run: .*compared"):
        exporting.export(read_config(finished_run), finished_run, tmp_path)
    assert not (tmp_path / "model.json").exists()


def test_refusals_are_one_line(finished_run, tmp_path, monkeypatch):
    config = read_config(finished_run)
    (tmp_path / "begun").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "begun")
    with pytest.raises(UserError, match=r"--format=onyx must be one of stablehlo, onnx"):
        exporting.export(config, finished_run, tmp_path, "onyx")
    with pytest.raises(UserError, match=r"--bucket=64x64 is not a bucket of .* one of: 128x128"):
        exporting.export(config, finished_run, tmp_path, bucket="64x64")
    taken = tmp_path / "taken.txt"
    taken.write_text("")
    with pytest.raises(UserError, match=r"taken\.txt is a file; set it to a new folder"):
        exporting.export(config, finished_run, taken)
    with pytest.raises(UserError, match=r"begun has no checkpoint; train it first"):
        exporting.export(config, tmp_path / "begun", tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    with pytest.raises(UserError, match=r"onnx and onnxruntime; install with: pip install"):
        exporting.export(config, finished_run, tmp_path, "onnx")
