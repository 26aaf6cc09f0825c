"""COCO, VOC, YOLO and the TFDS catalogue give the same records; the writer goes on and is whole."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hotcoco
import numpy as np
import pytest
import tensorflow_datasets as tfds

from retina_jax.data import shapes
from retina_jax.data.catalogue import InOrder, open_catalogue, open_directory
from retina_jax.data.sources import find_data_set, open_split
from retina_jax.data.voc_xml import read_voc
from retina_jax.data.writer import ROWS_A_SHARD, RecordsError, write_data_set
from retina_jax.data.yolo_tree import read_yolo
from retina_jax.errors import UserError

REPOSITORY = next(p for p in Path(__file__).parents if (p / "setup.cfg").exists())


def prepare(*arguments, check=True):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/prepare.py", *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


def as_trees(folder, images, root):
    """A COCO folder of train.json and val.json as a VOC and as a YOLO tree."""
    voc, yolo = root / "voc", root / "yolo"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "JPEGImages").symlink_to(images)
    names = {}
    for split in ("train", "val"):
        coco = hotcoco.COCO(str(folder / f"{split}.json"))
        coco.to_voc(str(voc))
        stems = sorted(Path(i["file_name"]).stem for i in coco.dataset["images"])
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        coco.to_yolo(str(yolo / "labels" / split))
        (yolo / "labels" / split / "data.yaml").unlink()
        (yolo / "images" / split).mkdir(parents=True)
        for image in coco.dataset["images"]:
            source = images / image["file_name"]
            os.link(source, yolo / "images" / split / image["file_name"])
        categories = sorted(coco.dataset["categories"], key=lambda c: c["id"])
        names = {i: c["name"] for i, c in enumerate(categories)}
    settings = {"path": "../elsewhere", "train": "images/train", "val": "images/val"}
    (yolo / "data.yaml").write_text(json.dumps({**settings, "names": list(names.values())}))
    return voc, yolo


def assert_same(split, other, ids=True):
    assert len(split) == len(other)
    assert split.class_names == other.class_names
    order = np.argsort(split.file_names), np.argsort(other.file_names)
    for row, their in zip(*order, strict=True):
        ours, theirs = split[int(row)], other[int(their)]
        assert split.file_names[row] == other.file_names[their]
        assert ours.image == theirs.image
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.is_crowd.tolist() == theirs.is_crowd.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=2e-3)  # YOLO's six digits


@pytest.mark.slow
def test_blood_cells_in_three_formats_are_the_same_records(bccd, tmp_path):
    images = tmp_path / "images"  # a copy, to be linked
    images.mkdir()
    for picture in (bccd / "images").iterdir():
        (images / picture.name).write_bytes(picture.read_bytes())
    voc, yolo = as_trees(bccd, images, tmp_path)
    out = tmp_path / "out"
    prepare("coco", "--images", images, "--annotations", bccd / "train.json",
            "--annotations", bccd / "val.json", "--out", out)  # fmt: skip
    said = prepare("voc", "--tree", voc, "--split", "train", "--split", "val", "--out", out,
                   "--follow-links").stderr  # fmt: skip
    assert "train: 205 images" in said
    prepare("yolo", "--tree", yolo, "--out", out)
    for split in ("train", "validation"):
        of = {name: open_split(find_data_set(out, name), split) for name in ("coco", "voc", "yolo")}
        assert_same(of["coco"], of["voc"])
        assert_same(of["coco"], of["yolo"])
    assert of["coco"].category_ids == (1, 3, 7)
    assert of["yolo"].category_ids == (0, 1, 2)  # YOLO's own numbers


@pytest.fixture
def small_trees(two_aspects, tmp_path):
    """VOC and YOLO trees of a folder with landscape and portrait pictures, and its COCO split."""
    root = two_aspects.parent
    for split in ("train", "val"):
        content = json.loads((root / f"instances_{split}.json").read_text())
        for annotation in content["annotations"]:
            annotation["bbox"] = [max(1, round(v)) for v in annotation["bbox"]]
            annotation["iscrowd"] = 0
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return as_trees(tmp_path, root / "images", tmp_path)


def test_pictures_of_both_aspects_in_three_formats(small_trees, two_aspects, tmp_path):
    voc, yolo = small_trees
    out = tmp_path / "out"
    prepare(
        "coco",
        "--images",
        two_aspects.parent / "images",
        "--annotations",
        tmp_path / "train.json",
        "--annotations",
        tmp_path / "val.json",
        "--out",
        out,
    )
    prepare("voc", "--tree", voc, "--split", "train", "--split", "val", "--out", out)
    prepare("yolo", "--tree", yolo, "--out", out)
    coco = open_split(find_data_set(out, "coco"), "train")
    assert_same(coco, open_split(find_data_set(out, "voc"), "train"))
    assert_same(coco, open_split(find_data_set(out, "yolo"), "train"))
    assert (coco.box_counts == 0).any()  # pictures without a label stay


def test_difficult_objects_of_voc_are_crowds(small_trees):
    voc, _ = small_trees
    path = next(p for p in sorted((voc / "Annotations").iterdir()) if "<object>" in p.read_text())
    text = path.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1)
    path.write_text(text)
    found = read_voc(voc, {"train": "train", "validation": "val"})
    crowds = [
        a.get("iscrowd") for part in found.values() for b in part.annotations.values() for a in b
    ]
    assert sum(crowds) == 1


def break_voc(voc, path, text):
    (voc / path).write_text(text)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("Annotations/train_001.xml", "<annotation><filename>train_001.jpg</filename>", "not XML"),
        ("Annotations/train_001.xml", "", "not XML"),
        ("Annotations/train_001.xml", "<annotation></annotation>", "missing <filename>"),
        ("ImageSets/Main/train.txt", "train_001\ntrain_001\n", "is there twice"),
        ("ImageSets/Main/train.txt", "../../secret\n", "is no name of an annotation"),
        ("ImageSets/Main/train.txt", "\n", "lists no picture"),
        ("ImageSets/Main/train.txt", "nowhere\n", "no such file, and split 'train' lists it"),
    ],
)
def test_a_bad_voc_tree_is_named(small_trees, path, text, message):
    voc, _ = small_trees
    (voc / path).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_voc(voc, {"train": "train"})
    assert str(voc / path) in str(caught.value) or "secret" in text or "nowhere" in text
    assert "\n" not in str(caught.value)


def test_a_voc_list_that_is_not_there_names_those_that_are(small_trees):
    with pytest.raises(UserError, match=r"trainval.txt: cannot be read .*; there are train, val"):
        read_voc(small_trees[0], {"train": "trainval"})
    with pytest.raises(UserError, match="has no folder Annotations"):
        read_voc(small_trees[1], {"train": "train"})


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("labels/train/train_001.txt", "0 0.5 0.5 0.2\n", "line 1: expected 5 fields"),
        ("labels/train/train_001.txt", "9 0.5 0.5 0.2 0.2\n", r"class_idx 9 out of range"),
        ("labels/train/train_001.txt", "-1 0.5 0.5 0.2 0.2\n", "invalid class_idx"),
        ("labels/train/train_001.txt", "0 nan 0.5 0.2 0.2\n", "is not four finite numbers"),
        ("labels/train/train_001.txt", "0 80 60 20 20\n", "a box beyond 0 to 1"),
        ("labels/train/stray.txt", "0 0.5 0.5 0.2 0.2\n", "no picture of that name"),
        ("images/train/train_001.png", "", "would share train_001.txt"),
        ("images/train/zz.jpg", "words", "cannot be decoded: is no picture"),
        ("data.yaml", "train: images/train\n", "no list 'names'"),
        ("data.yaml", "names: [a]\ntrain: /etc\n", "is no folder below --tree"),
        ("data.yaml", "names: [a]\ntrain: ../../..\n", "no picture in it"),
        ("data.yaml", "names: {0: a, 2: b}\ntrain: images/train\n", "must number its classes"),
        ("data.yaml", "names: [a\n", "not YAML"),
        ("data.yaml", "names: [a]\n", "names no folder of train"),
        ("data.yaml", "!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_bad_yolo_tree_is_named(small_trees, path, text, message):
    _, yolo = small_trees
    (yolo / path).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yolo(yolo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["images/train/zz.jpg", "labels/train/train_001.txt"])
def test_links_out_of_a_yolo_tree_are_read_only_if_asked(small_trees, tmp_path, path):
    _, yolo = small_trees
    secret = tmp_path / "secret"
    secret.write_bytes((yolo / "images/train/train_001.jpg").read_bytes() if "jpg" in path else b"")
    (yolo / path).unlink(missing_ok=True)
    (yolo / path).symlink_to(secret)
    with pytest.raises(UserError, match=r"is a link out of .*; add --follow-links"):
        read_yolo(yolo)
    read_yolo(yolo, follow_links=True)


def test_links_out_of_a_voc_tree_are_read_only_if_asked(small_trees, tmp_path):
    voc, _ = small_trees
    path = voc / "Annotations" / "train_001.xml"
    path.rename(tmp_path / "secret.xml")
    path.symlink_to(tmp_path / "secret.xml")
    with pytest.raises(UserError, match=r"is a link out of .*; add --follow-links"):
        read_voc(voc, {"train": "train"})
    read_voc(voc, {"train": "train"}, follow_links=True)


def test_special_files_in_a_yolo_tree_do_not_hang(small_trees):
    _, yolo = small_trees
    for path in ("images/train/zz.jpg", "labels/train/zz.txt"):
        os.mkfifo(yolo / path)
    assert len(read_yolo(yolo)["train"][0].images) == 16


def test_yolo_names_may_be_odd(small_trees):
    _, yolo = small_trees
    text = 'names:\n- cat\n- "dog: big, [x]"\n- 3\ntrain: images/train\n'
    (yolo / "data.yaml").write_text(text)
    annotations, _ = read_yolo(yolo)["train"]
    assert annotations.categories == {0: "cat", 1: "dog: big, [x]", 2: "3"}


# the TFDS catalogue


def test_a_catalogue_name_becomes_our_data_set(shapes_dir, tmp_path, monkeypatch):
    directory = find_data_set(shapes_dir, "shapes")
    builder = tfds.builder_from_directory(str(directory))
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    rows, class_names, ids = open_catalogue("shapes", {}, None)
    assert ids == [0, 1, 2, 3, 4]
    written, counts = write_data_set(tmp_path, "copied", rows, class_names, ids, "a copy")
    original, copy = (open_split(d, "train") for d in (directory, written))
    assert_same(original, copy)
    assert counts["train"]["images"] == 24
    joined, _, _ = open_catalogue("shapes", {"train": "train+validation"}, None)
    assert len(joined["train"]) == 34
    with pytest.raises(UserError, match=r"has no split 'test'; it has train, validation"):
        open_catalogue("shapes", {"test": "test"}, None)


def test_what_the_catalogue_cannot_give_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nonsense is not in the TFDS catalogue"):
        open_catalogue("nonsense", {}, tmp_path)

    def needs_tensorflow(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", needs_tensorflow)
    with pytest.raises(UserError, match=r"needs TensorFlow.*pip install -e '.\[catalogue\]'"):
        open_catalogue("coco/2017", {}, tmp_path)


def test_what_is_read_from_the_start_alone_serves_threads_and_skips():
    records = InOrder(iter(range(5000)), 5000)
    assert [records[row] for row in (1, 0, 3, 2)] == [1, 0, 3, 2]
    assert records[4000] == 4000  # shards that are whole already are passed over
    assert records[3999] == 3999
    assert len(records._read) <= InOrder._KEPT


def test_a_tfrecord_data_set_says_how_to_convert_it(shapes_dir, tmp_path):
    directory = tmp_path / "mine" / "1.0.0"
    directory.mkdir(parents=True)
    for path in find_data_set(shapes_dir, "shapes").glob("*.*"):
        if path.suffix in (".json", ".txt"):
            text = path.read_text().replace("array_record", "tfrecord")
            (directory / path.name).write_text(text)
    with pytest.raises(
        UserError,
        match=r"is tfrecord, which has no random access; convert it: "
        rf"python scripts/prepare.py tfds --directory={directory} --out=DIR",
    ):
        open_split(directory, "train")
    with pytest.raises(UserError, match=r"needs TensorFlow to be read.*'.\[catalogue\]'"):
        open_directory(directory, {})
    with pytest.raises(UserError, match="holds no TFDS data set"):
        open_directory(tmp_path, {})


# the writer


class Drawn:
    """Shapes, with rows that fail, and a count of how often each was read."""

    def __init__(self, rows, bad=(), version=0):
        self.rows, self.bad, self.version = rows, set(bad), version
        self.reads = collections.Counter()

    def __len__(self):
        return self.rows

    def read(self, row):
        self.reads[row] += 1
        if row in self.bad:
            raise UserError(f"row {row} is bad")
        return shapes.draw_record("train", row % 8)

    def fingerprint(self, row):
        return f"{row} {self.version if row < 3 else 0}"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("retina_jax.data.writer.ROWS_A_SHARD", 4)


def write(root, rows):
    arguments = (shapes.CLASS_NAMES, shapes.CATEGORY_IDS, "drawn")
    return write_data_set(root, "drawn", {"train": rows}, *arguments)


def test_a_write_that_failed_goes_on_with_what_is_whole(tmp_path, small_shards):
    with pytest.raises(RecordsError, match=r"row 5 is bad \(and 1 more, listed above\)") as caught:
        write(tmp_path, Drawn(14, bad=(5, 9)))
    assert caught.value.lines == ("row 5 is bad", "row 9 is bad")
    assert not (tmp_path / "drawn" / "1.0.0").exists()
    mended = Drawn(14)
    directory, _ = write(tmp_path, mended)
    assert sorted(mended.reads) == list(range(4, 12))  # shards 1 and 2 alone
    split = open_split(directory, "train")
    assert len(split) == 14
    for row in range(14):
        assert split[row].image == shapes.draw_record("train", row % 8).image
    left = [p.name for p in directory.iterdir() if p.suffix in (".note", ".partial")]
    assert left == []
    assert [p.name for p in directory.parent.iterdir()] == ["1.0.0"]


def test_what_has_changed_is_written_anew(tmp_path, small_shards):
    with pytest.raises(RecordsError):
        write(tmp_path, Drawn(12, bad=(11,)))
    changed = Drawn(12, version=1)
    write(tmp_path, changed)
    assert sorted(changed.reads) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_shard_that_was_spoilt_is_written_anew(tmp_path, small_shards):
    with pytest.raises(RecordsError):
        write(tmp_path, Drawn(12, bad=(11,)))
    shard = sorted((tmp_path / "drawn").glob("incomplete*/*-00001-of-00003"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    again = Drawn(12)
    write(tmp_path, again)
    assert sorted(again.reads) == list(range(4, 12))


def test_one_process_writes_at_a_time(tmp_path):
    import fcntl

    (tmp_path / "drawn").mkdir()
    with (tmp_path / "drawn" / ".incomplete.1.0.0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            write(tmp_path, Drawn(4))
    write(tmp_path, Drawn(4))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "drawn").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path, Drawn(4))


KILLED = """
import sys, time
sys.path.insert(0, {repository!r})
from tests.data.test_formats import Drawn, write
import retina_jax.data.writer as writer
writer.ROWS_A_SHARD = 4
class Slow(Drawn):
    def read(self, row):
        time.sleep(0.02 if row < 8 else 3600)
        return super().read(row)
write({root!r}, Slow(16))
"""


def test_a_killed_write_is_no_data_set_and_goes_on(tmp_path, small_shards):
    from pathlib import Path

    code = KILLED.format(repository=str(REPOSITORY), root=str(tmp_path)).replace(
        f"write({str(tmp_path)!r}", f"import pathlib; write(pathlib.Path({str(tmp_path)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    notes = []
    for _ in range(600):
        notes = list(Path(tmp_path).glob("drawn/incomplete*/*.note"))
        if len(notes) == 2 or child.poll() is not None:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(notes) == 2
    with pytest.raises(UserError, match="no data set"):
        find_data_set(tmp_path, "drawn")
    rest = Drawn(16)
    directory, _ = write(tmp_path, rest)
    assert sorted(rest.reads) == list(range(8, 16))
    assert len(open_split(directory, "train")) == 16


def test_a_shard_holds_a_thousand_pictures():
    assert ROWS_A_SHARD == 1024  # 160 MB of COCO: what a kill can cost
