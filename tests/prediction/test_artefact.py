"""An exported file in the place of a run: the same detections, and what it refuses."""

import importlib.util
import json
import shutil
import threading

import numpy as np
import pytest
from support import EXPORTED

from retina_jax import Detector
from retina_jax.errors import UserError
from retina_jax.exporting.agreement import compare
from retina_jax.main import main
from retina_jax.prediction import load
from retina_jax.prediction.artefact import from_export
from retina_jax.types import Detections

pytestmark = pytest.mark.usefixtures("one_device")
FILE = "model-128x128.stablehlo"


def of_coco(results, category_ids):
    """COCO results as `Detections`."""
    boxes = np.array([r["bbox"] for r in results], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([category_ids.index(r["category_id"]) for r in results])
    return Detections(boxes, np.array([r["score"] for r in results], np.float32), labels)


def check_same(expected, found):
    """0.1 px and 1e-3, as exports promise."""
    result = compare(expected, found, 0.5, 0.0, 1e-3)
    assert result.undecided >= 0
    assert result.detections > 100
    assert result.pixels < 0.1
    assert result.score < 1e-3


@pytest.mark.parametrize("kind", EXPORTED)
def test_it_finds_what_the_run_finds(exported, sources, network, kind, capsys):
    folder, by_name = sources
    detector = Detector.from_export(exported / kind, batch_size=8)
    assert "an exported model is code, not data" in capsys.readouterr().err
    assert detector.class_names == network.classes.names
    assert detector.category_ids == network.classes.ids
    assert detector.threshold == 0.0
    found = detector(folder)
    expected = [of_coco(by_name[name], detector.category_ids) for name in sorted(by_name)]
    check_same(expected, [Detections(f.boxes, f.scores, f.labels) for f in found])
    first, path = found[0], folder / min(by_name)
    assert first.size == (128, 128)
    assert first.draw().width >= 320
    some = detector(path, threshold=float(np.median(first.scores)), classes=first.names[:1])
    assert 0 < len(some) < len(first)
    assert set(some.names) == {first.names[0]}
    assert [one.source for one in detector(iter([path, path]))] == [str(path)] * 2


@pytest.fixture
def copy(exported, tmp_path, monkeypatch):
    """A copy of the StableHLO export; its program is a stub that finds a box in every image.

    ``copy.calls`` lists the number of images of each call, ``copy.loaded`` the loaded files.
    """
    shutil.copytree(exported / "stablehlo", tmp_path / "copy")

    class Copy:
        folder, calls, loaded = tmp_path / "copy", [], []

        @staticmethod
        def card(**values):
            path = Copy.folder / load.CARD
            path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def run(images, sizes):
        Copy.calls.append(len(images))
        side = sizes[:, :1].astype(np.float32) / 2
        return {
            "boxes": np.tile(np.concatenate([0 * side, 0 * side, side, side], 1)[:, None], (2, 1)),
            "scores": np.tile(np.array([[0.9, 0.3]], np.float32), (len(images), 1)),
            "labels": np.tile(np.array([[1, 0]], np.int32), (len(images), 1)),
        }

    monkeypatch.setitem(load.PROGRAMS, "stablehlo", lambda file: Copy.loaded.append(file) or run)
    return Copy


PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("fixed", "options", "calls"),
    [
        (0, {}, [1, 1, 1, 1, 1]),
        (0, {"batch_size": 4}, [4, 4]),
        (4, {}, [4, 4]),
        (4, {"batch_size": 1}, [4, 4, 4, 4, 4]),
        (2, {"batch_size": 5}, [2, 2, 2]),
    ],
)
def test_batches_are_filled_or_split(copy, fixed, options, calls):
    copy.card(batch_size=fixed)
    found = Detector.from_export(copy.folder, **options)([PICTURE] * 5)
    assert copy.calls == calls
    for one in found:
        assert one.boxes.tolist() == [[0, 0, 32, 32]] * 2
        assert one.labels.tolist() == [1, 0]


def test_a_higher_threshold_selects_and_a_lower_one_is_refused(copy):
    content = json.loads((copy.folder / load.CARD).read_text())
    content["config"]["eval"]["score_threshold"] = 0.2
    copy.card(**content)
    high = Detector.from_export(copy.folder, threshold=0.5)
    assert high.threshold == 0.5
    assert len(high(PICTURE)) == 1
    with pytest.raises(UserError) as caught:
        Detector.from_export(copy.folder, threshold=0.1)
    assert str(caught.value) == (
        f"--threshold=0.1 is below 0.2, which is built into step 4 of run, exported to "
        f"{copy.folder}; export the run again with --config.eval.score_threshold=0.1"
    )
    for options, flag in (({"nms": "soft"}, "--nms=soft"),
                          ({"class_agnostic": True}, "--class-agnostic")):  # fmt: skip
        with pytest.raises(UserError, match=f"^{flag} differs from the NMS that is built into"):
            Detector.from_export(copy.folder, **options)
    Detector.from_export(copy.folder, nms="hard", class_agnostic=False)


def test_threads_load_a_file_once(copy):
    detector = Detector.from_export(copy.folder)
    threads = [threading.Thread(target=detector, args=([PICTURE] * 3,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copy.calls) == 12
    assert len(copy.loaded) == 1


def test_the_input_shapes_are_those_that_were_exported(copy):
    """A file alone, of a run with more buckets; it must not be the first one in the card."""
    (own,) = json.loads((copy.folder / load.CARD).read_text())["files"]
    copy.card(files=[own | {"bucket": [128, 64], "file": "other"}, own], pixel_scale=[0, 4095])
    (copy.folder / "other").touch()
    artefact = from_export(copy.folder / FILE)
    assert artefact.config.data.buckets == ((128, 128),)
    assert artefact.pixel_scale == (0.0, 4095.0)
    both = from_export(copy.folder)
    assert both.config.data.buckets == ((128, 64), (128, 128))
    assert both.digest() != artefact.digest()
    with pytest.raises(
        UserError, match=r"other cannot be loaded \(ValueError: other does not match"
    ):
        Detector.from_export(copy.folder)(np.zeros((128, 64, 3), np.uint8))


def test_what_is_no_export_is_one_line(copy, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^--export=.*/none: no such file or folder; set it to"):
        from_export(tmp_path / "none")
    with pytest.raises(UserError, match=r"empty is not a complete export: .* has no model.json"):
        from_export(tmp_path / "empty")
    with pytest.raises(
        UserError, match=r"load.py is not one of the models in .*; set it to one of: model-128x128"
    ):
        from_export(copy.folder / "load.py")
    (copy.folder / FILE).rename(copy.folder / "away")
    with pytest.raises(UserError, match=rf"copy lacks {FILE}; restore it, or export again"):
        from_export(copy.folder)
    copy.card(format="onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    with pytest.raises(UserError, match=r"copy needs onnxruntime; install it with: pip install"):
        from_export(copy.folder)
    for text in ('{"format": "onnx"}', "[]", "{", '{"format": "tflite"}'):
        (copy.folder / load.CARD).write_text(text)
        with pytest.raises(UserError, match=r"model.json does not describe an export \("):
            from_export(copy.folder)


def test_predict_with_an_export(copy, sources, tmp_path, capsys):
    usual = ["retina-jax", "predict", f"--input={sources[0]}", f"--export={copy.folder}"]
    assert main([*usual, f"--out={tmp_path}/out"]) == 0
    assert "20 detections in 10 images" in capsys.readouterr().err
    for flags, line in (
        (
            ["--checkpoint=latest"],
            "error: --checkpoint=latest needs --workdir, because an export holds",
        ),
        (["--workdir=run"], "error: argument --workdir: not allowed with argument --export"),
        (["--nms=soft"], "error: --nms=soft differs from the NMS that is built into"),
    ):
        assert main([*usual, f"--out={tmp_path}/no", *flags]) == 2
        assert line in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    assert main(["retina-jax", "predict", f"--input={sources[0]}", f"--out={tmp_path}/no"]) == 2
    assert "one of the arguments --workdir --export is required" in capsys.readouterr().err
