"""The command: its numbers, its files, what it leaves out, and how it goes on after a stop."""

import csv
import json
import os
import signal

import cv2
import numpy as np
import pytest
from PIL import Image
from support import assert_same_results

from retina_jax.config import default_config
from retina_jax.data.images import PictureError
from retina_jax.errors import UserError
from retina_jax.main import main
from retina_jax.prediction import predict as module
from retina_jax.prediction.network import Network
from retina_jax.prediction.predict import Request, predict
from retina_jax.prediction.record import NAME
from retina_jax.prediction.result import ImageDetections
from retina_jax.training.workdir import Classes
from retina_jax.types import Detections

CLASSES = Classes(("cat", "dog"), (3, 7))


class Stub:
    """Finds two objects in each picture, from its mean grey; can stop the command."""

    def __init__(self):
        self.seen, self.stop_at, self.batch_sizes = [], None, []
        self.live = self.most_live = 0

    def __call__(self, network, batch_size, *options):
        self.batch_sizes.append(batch_size)
        return self

    def stream(self, pictures):
        for picture in pictures:
            if len(self.seen) == self.stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            self.seen.append(picture.name)
            try:
                pixels = picture.pixels(None)
            except PictureError as error:
                yield picture, error
                continue
            height, width = pixels.shape[:2]
            x = float(pixels.mean()) / 255 * width / 2
            found = Detections(
                boxes=np.array([[x, 1, x + width / 4, height], [0, 0, 2.5, 4]]),
                scores=np.array([0.9, 0.3], np.float32),
                labels=np.array([1, 0]),
            )
            yield picture, ImageDetections.of(found, (height, width), CLASSES, picture)


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    config = default_config()
    config.train.compilation_cache = False
    network = Network(config.lock(), CLASSES, {"a": np.zeros(1)}, None, "the stub")
    monkeypatch.setattr(module, "Predictor", made)
    monkeypatch.setattr(module, "from_workdir", lambda *_: network)
    return made


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in/sub").mkdir(parents=True)
    for name, size in (("a.jpg", (40, 60)), ("b.png", (64, 48)), ("sub/c.bmp", (50, 50))):
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    return tmp_path / "in"


def contents(out):
    """Every file but the record, by its name."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != NAME]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.mark.usefixtures("shallow", "one_device")
def test_the_numbers_are_those_of_evaluation(finished_run, sources, tmp_path, capsys):
    folder, expected = sources
    command = ["retina-jax", "predict", f"--workdir={finished_run}", f"--input={folder}",
               f"--out={tmp_path}/out", "--batch-size=8"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().err
    assert f"detections in {len(expected)} images" in said
    out = tmp_path / "out"
    images = json.loads((out / "images.json").read_text())
    name_of = {image["id"]: image["file_name"] for image in images["images"]}
    assert sorted(name_of.values()) == sorted(expected)
    found = {name: [] for name in expected}
    for result in json.loads((out / "detections.json").read_text()):
        found[name_of[result["image_id"]]].append(result)
    for name, results in expected.items():
        assert_same_results(found[name], results)
    assert sorted(p.name for p in (out / "drawn").iterdir()) == sorted(expected)


def test_prepare_stores_pictures_as_they_are(two_aspects):
    """So detections of a source file are those of its record."""
    from retina_jax.data.data_set import find_data_set, open_split

    split = open_split(find_data_set(two_aspects, ""), "validation")
    for row in range(len(split)):
        source = two_aspects.parent / "images" / str(split.file_names[row])
        assert split[row].image == source.read_bytes()


def test_what_is_written(stub, folder, tmp_path):
    result = predict(Request("run", [str(folder)], tmp_path / "out"))
    assert (result.pictures, result.detections, result.drawn, result.left_out) == (3, 6, 3, [])
    assert stub.batch_sizes == [3]
    files = contents(tmp_path / "out")
    assert sorted(files) == [
        "detections.json", "drawn/a.jpg", "drawn/b.png", "drawn/sub/c.bmp.png", "images.json",
    ]  # fmt: skip
    images = json.loads(files["images.json"])
    assert images["images"][1] == {"id": 2, "file_name": "b.png", "height": 64, "width": 48}
    assert images["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    results = json.loads(files["detections.json"])
    assert [r["image_id"] for r in results] == [1, 1, 2, 2, 3, 3]
    assert results[1] == {"image_id": 1, "category_id": 3, "bbox": [0, 0, 2.5, 4], "score": 0.3}


def test_threshold_and_classes(stub, folder, tmp_path):
    predict(Request("run", [str(folder)], tmp_path / "high", threshold=0.5))
    results = json.loads((tmp_path / "high/detections.json").read_text())
    assert {r["score"] for r in results} == {0.9}
    low = predict(Request("run", [str(folder)], tmp_path / "low", threshold=0.2))
    assert low.drawn == low.detections == 6
    predict(Request("run", [str(folder)], tmp_path / "cats", classes=["cat"]))
    results = json.loads((tmp_path / "cats/detections.json").read_text())
    assert {r["category_id"] for r in results} == {3}


def test_the_same_command_again_detects_nothing(stub, folder, tmp_path):
    request = Request("run", [str(folder)], tmp_path / "out")
    predict(request)
    before, stub.seen = contents(tmp_path / "out"), []
    assert predict(request).detections == 6
    assert stub.seen == []
    assert contents(tmp_path / "out") == before
    Image.new("RGB", (48, 64)).save(folder / "b.png")  # a changed file is detected in again
    predict(request)
    assert stub.seen == ["b.png"]
    assert contents(tmp_path / "out")["detections.json"] != before["detections.json"]


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "csv"])
def test_stopped_it_goes_on_to_the_same_files(stub, folder, tmp_path, form, monkeypatch):
    monkeypatch.setattr(module, "decoding_threads", lambda workers: 1)
    for number in range(8):
        Image.new("RGB", (40, 40), (number, 9, 9)).save(folder / f"more{number}.png")
    predict(Request("run", [str(folder)], tmp_path / "whole", format=form))
    stub.seen, stub.stop_at = [], 5
    request = Request("run", [str(folder)], tmp_path / "out", format=form)
    first = predict(request)
    assert first.signal == signal.SIGINT
    assert first.path is None
    files = contents(tmp_path / "out")
    assert not {"detections.json", "detections.csv", "labels/classes.txt"} & set(files)
    assert not [name for name in files if "unfinished" in name]
    with (tmp_path / "out" / NAME).open("a") as record:
        record.write('{"name": "more7.p')  # a kill cut it short
    before, stub.seen, stub.stop_at = len(stub.seen), [], None
    second = predict(request)
    assert second.signal is None
    assert second.pictures == 11
    assert first.pictures >= 1
    assert len(stub.seen) == 11 - first.pictures
    assert before < 11
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_command_is_refused(stub, folder, tmp_path):
    predict(Request("run", [str(folder)], tmp_path / "out", images=False))
    with pytest.raises(UserError) as caught:
        predict(Request("run", [str(folder)], tmp_path / "out", images=False, threshold=0.3))
    assert "holds results of another command: --threshold was 'not set', now 0.3" in str(
        caught.value
    )
    with pytest.raises(UserError, match="--no-images was True, now False"):
        predict(Request("run", [str(folder)], tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis.tex, which this command did not write"):
        predict(Request("run", [str(folder)], tmp_path / "mine"))


def test_unreadable_files_are_named_and_left_out(stub, folder, tmp_path, capsys):
    (folder / "text.jpg").write_text("a text")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-300])
    (folder / "film.mp4").write_text("no film")
    (folder / "notes.txt").write_text("not listed")
    command = ["retina-jax", "predict", "--workdir=run", f"--input={folder}",
               f"--out={tmp_path}/out"]  # fmt: skip
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "text.jpg cannot be decoded: not an image" in said
    assert "cut.jpg cannot be decoded: " in said
    assert "film.mp4 cannot be opened as a video" in said
    assert "left out 3 files" in said
    assert "notes" not in said
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [i["file_name"] for i in images] == ["a.jpg", "b.png", "sub/c.bmp"]
    assert main(command) == 3  # they are tried again
    Image.new("RGB", (30, 30)).save(folder / "text.jpg")
    (folder / "cut.jpg").unlink()
    (folder / "film.mp4").unlink()
    assert main(command) == 0
    assert "4 images" in capsys.readouterr().err


def test_yolo_voc_and_csv_can_be_read_back(stub, folder, tmp_path):
    import collections

    from retina_jax.prepare.yolo_labels import read_labels

    for form in ("coco", "yolo", "voc", "csv"):
        predict(Request("run", [str(folder)], tmp_path / form, format=form, images=False))
    results = json.loads((tmp_path / "coco/detections.json").read_text())
    expected = [r["bbox"] for r in results if r["image_id"] == 2]
    rows = read_labels(tmp_path / "yolo/labels/b.txt", 2, 0, collections.Counter())
    assert [row.label for row in rows] == [1, 0]
    for row, (x, y, w, h) in zip(rows, expected, strict=True):
        centre = (x + w / 2) / 48, (y + h / 2) / 64, w / 48, h / 64
        np.testing.assert_allclose(row.box, centre, atol=1e-6)
    assert (tmp_path / "yolo/labels/classes.txt").read_text() == "cat\ndog\n"
    with (tmp_path / "csv/detections.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == ["a.jpg"] * 2 + ["b.png"] * 2 + ["sub/c.bmp"] * 2
    row, (x, y, w, h) = table[2], expected[0]
    corners = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
    np.testing.assert_allclose(corners, [x, y, x + w, y + h], atol=1e-3)
    assert (row["class"], row["score"], row["width"], row["height"]) == ("dog", "0.9", "48", "64")
    _check_voc(tmp_path / "voc/annotations/b.xml", expected)


def _check_voc(path, expected):
    """Through prepare's own reader."""
    import collections

    from retina_jax.prepare.plain_xml import read_xml
    from retina_jax.prepare.voc_xml import _object

    root = read_xml(path)
    assert root.findtext("filename") == "b.png"
    objects = [
        _object(path, i, entry, collections.Counter())
        for i, entry in enumerate(root.findall("object"))
    ]
    assert [o["name"] for o in objects] == ["dog", "cat"]
    np.testing.assert_allclose([o["bbox"] for o in objects], expected, atol=2e-3)


def test_two_pictures_of_one_label_file_are_refused(stub, folder, tmp_path):
    Image.new("RGB", (30, 30)).save(folder / "a.png")
    with pytest.raises(UserError, match=r"a.jpg and a.png would both write a.txt"):
        predict(Request("run", [str(folder)], tmp_path / "out", format="yolo"))
    assert predict(Request("run", [str(folder)], tmp_path / "coco")).pictures == 4


def test_out_may_lie_in_the_folder_of_the_pictures(stub, folder):
    for _ in range(2):
        assert predict(Request("run", [str(folder)], folder / "found")).pictures == 3


def test_several_inputs_and_patterns(stub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    result = predict(Request("run", ["*.jpg", "sub", "b.png"], tmp_path / "out"))
    assert result.pictures == 3
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [i["file_name"] for i in images] == ["a.jpg", "sub/c.bmp", "b.png"]
    monkeypatch.chdir(folder / "sub")
    predict(Request("run", ["../b.png", "c.bmp"], tmp_path / "up"))
    assert {"drawn/b.png", "drawn/sub/c.bmp.png"} <= contents(tmp_path / "up").keys()


@pytest.fixture
def film(tmp_path):
    """Twenty frames that get lighter."""
    path = tmp_path / "in.d" / "film.avi"
    path.parent.mkdir()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (96, 64))
    for number in range(20):
        writer.write(np.full((64, 96, 3), 10 * number, np.uint8))
    writer.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    rate, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return rate, frames


def test_a_video_in_and_out_at_its_rate(stub, film, tmp_path):
    result = predict(Request("run", [str(film)], tmp_path / "out"))
    assert result.pictures == 20
    rate, frames = frames_of(tmp_path / "out/drawn/film.avi.mp4")
    assert rate == 12.5
    assert len(frames) == 20
    assert frames[0].shape == (256, 384, 3)  # small pictures are enlarged
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert images[12]["file_name"] == "film.avi/000012"
    results = json.loads((tmp_path / "out/detections.json").read_text())
    # the box moves with the grey: 10 a frame, to 48 at 255
    assert results[24]["bbox"][0] == pytest.approx(120 / 255 * 48, abs=1)
    stub.seen = []
    assert predict(Request("run", [str(film)], tmp_path / "out")).pictures == 20
    assert stub.seen == []


@pytest.mark.parametrize("images", [True, False])
def test_a_stopped_video_goes_on_after_its_last_frame(stub, film, tmp_path, monkeypatch, images):
    monkeypatch.setattr(module, "decoding_threads", lambda workers: 1)
    predict(Request("run", [str(film)], tmp_path / "whole", images=images))
    stub.seen, stub.stop_at = [], 12
    request = Request("run", [str(film)], tmp_path / "out", images=images)
    first = predict(request)
    assert first.signal == signal.SIGINT
    assert 8 <= first.pictures <= 13
    assert contents(tmp_path / "out") == {}
    stub.seen, stub.stop_at = [], None
    assert predict(request).pictures == 20
    assert stub.seen == [f"film.avi/{n:06d}" for n in range(first.pictures, 20)]
    whole, out = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert out.keys() == whole.keys()
    assert out["detections.json"] == whole["detections.json"]
    if images:
        one, other = (frames_of(tmp_path / n / "drawn/film.avi.mp4")[1] for n in ("whole", "out"))
        assert len(one) == len(other) == 20
        assert np.abs(np.int16(one) - np.int16(other)).max() <= 8


def test_the_batch_of_a_large_video_is_small(stub, film, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEMORY_OF_FRAMES", 8 * 3 * 64 * 96 * 3)
    predict(Request("run", [str(film)], tmp_path / "out", images=False))
    assert stub.batch_sizes == [3]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--threshold=1.5"], "--threshold=1.5 must lie between 0 and 1; set --threshold=0.5"),
        (["--classes=cta"], "--classes=cta: the network has no such class; did you mean 'cat'?"),
        (["--batch-size=0"], "--batch-size=0 must be 1 or more"),
        (["--overlap=0.5"], "--overlap=0.5 needs tiles; add --tile=800 or remove --overlap"),
        (["--tile=5"], "--tile=5 must be 32 pixels or more, such as --tile=800"),
        (["--input=none"], "--input=none: no such file or folder; set it to an existing one"),
        (["--input=empty"], "--input=empty contains no files with the suffix of an image or video"),
        (
            ["--input=empty/*.jpg"],
            "--input=empty/*.jpg matches no files with the suffix of an image",
        ),
        (["--out=in/a.jpg"], "--out=in/a.jpg is a file; set it to a new folder"),
        (["--out=in/a.jpg/x"], "--out=in/a.jpg/x cannot be used (Not a directory)"),
        (["--format=xml"], "argument --format: invalid choice: 'xml'"),
    ],
)
def test_a_mistake_is_one_line(stub, folder, tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {flag.partition("=")[0] for flag in flags}
    usual = {"--workdir": "run", "--input": "in", "--out": "out"}
    usual = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    assert main(["retina-jax", "predict", *usual, *flags]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()
