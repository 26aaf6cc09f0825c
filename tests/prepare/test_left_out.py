"""--on-bad=skip leaves out, counts and lists what cannot be used; two commands at once are safe."""

import json
import subprocess
import sys

import numpy as np
import pytest
from made_trees import (
    boxes_by_name,
    coco_content,
    coco_tree,
    encoded,
    picture,
    prepared,
    put,
    voc_object,
    voc_tree,
    yolo_tree,
)
from trees_of_formats import REPOSITORY

from retina_jax.data.images import decode_image
from retina_jax.data.records import Index
from retina_jax.errors import LEFT_OUT, UserError
from retina_jax.jobs import prepare as command

SKIP = ("--on-bad=skip", "--max-bad=0.5")
CUT = encoded(picture(), "JPEG", quality=95)[:-20]


def left_out(root, name="made"):
    """Lines of the list, and counts by split."""
    folder = root / "out" / name / "1.0.0"
    report = json.loads((folder / "prepare_report.json").read_text())
    counts = {
        split: n for split, c in report.items() for what, n in c.items() if "left out bec" in what
    }
    return (folder / "left_out.txt").read_text().splitlines(), counts


@pytest.fixture
def spoilt(tmp_path):
    """Ten images: a cut JPEG, a missing file, a box of nothing, seven good ones."""
    content = coco_content(10)
    for image in content["images"]:
        image["file_name"] = f"p{image['id']}.jpg"
    pictures = {
        i["file_name"]: encoded(picture(i["id"]), "JPEG", quality=95) for i in content["images"]
    }
    pictures["p2.jpg"] = CUT
    del pictures["p5.jpg"]
    content["annotations"][7]["bbox"] = [1, 2, None, 4]
    return coco_tree(tmp_path, content, pictures)


def test_what_cannot_be_used_is_left_out_counted_and_listed(spoilt, tmp_path):
    said, splits = prepared(tmp_path, spoilt, *SKIP)
    split = splits["train"]
    assert split.image_ids.tolist() == [1, 3, 4, 6, 7, 9, 10]
    assert [split[row].image_id for row in range(7)] == [1, 3, 4, 6, 7, 9, 10]
    assert boxes_by_name(split)["p10.jpg"] == [[10, 8, 40, 32]]
    lines, counts = left_out(tmp_path)
    assert counts == {"train": 3}
    assert "records left out because they cannot be used (listed in left_out.txt): 3" in said
    path = tmp_path / "train.json"
    assert lines[0].startswith(f"train: {path}: annotation 8: bbox [1, 2, None, 4] is not four")
    assert lines[1].startswith(f"train: {path}: image 2 ('p2.jpg'): cannot be decoded: ")
    assert lines[2].startswith(f"train: {path}: image 5 ('p5.jpg'): missing from --images")


def test_by_default_the_command_stops_and_names_the_flags(spoilt, tmp_path):
    with pytest.raises(UserError, match=r"annotation 8: bbox .*--on-bad=skip .*--max-bad=SHARE .*"
                       r"--allow-truncated"):  # fmt: skip
        prepared(tmp_path, spoilt)
    assert not (tmp_path / "out" / "made" / "1.0.0").exists()


@pytest.mark.parametrize(("share", "goes_on"), [("0.29", False), ("0.3", True), ("1", True)])
def test_above_the_share_it_stops_all_the_same(spoilt, tmp_path, share, goes_on):
    flags = ("--on-bad=skip", f"--max-bad={share}")
    if goes_on:
        prepared(tmp_path, spoilt, *flags)
        return
    with pytest.raises(
        UserError, match=rf"3 of 10 records cannot be used, a larger share than --max-bad={share}"
    ):
        prepared(tmp_path, spoilt, *flags)
    assert not (tmp_path / "out" / "made" / "1.0.0").exists()


def test_the_share_is_small_by_default(spoilt, tmp_path):
    with pytest.raises(UserError, match=r"a larger share than --max-bad=0.01"):
        prepared(tmp_path, spoilt, "--on-bad=skip")


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_is_one(spoilt, tmp_path, share):
    with pytest.raises(UserError, match="must be a share from 0 to 1"):
        prepared(tmp_path, spoilt, "--on-bad=skip", f"--max-bad={share}")


def test_the_exit_code_says_that_something_is_left_out(spoilt, tmp_path, capsys):
    words = [*map(str, spoilt), "--out", str(tmp_path / "out"), *SKIP]
    assert command.main(words) == LEFT_OUT == 3
    assert "records left out: 3" in capsys.readouterr().err
    good = coco_tree(tmp_path, coco_content(2))
    words = [*map(str, good), "--out", str(tmp_path / "out"), "--name", "good", *SKIP]
    assert command.main(words) == 0


def test_shards_go_on_under_other_flags(spoilt, tmp_path, monkeypatch):
    """What was whole stays; what had gaps is written again where the flags would fill them."""
    monkeypatch.setattr("retina_jax.prepare.writer.ROWS_A_SHARD", 3)
    for flags in ((*SKIP[:1], "--max-bad=0.2"), (*SKIP[:1], "--max-bad=0.1", "--allow-truncated")):
        with pytest.raises(UserError, match="a larger share than --max-bad"):
            prepared(tmp_path, spoilt, *flags)
    _, splits = prepared(tmp_path, spoilt, *SKIP, "--allow-truncated")
    assert splits["train"].image_ids.tolist() == [1, 2, 3, 4, 6, 7, 9, 10]
    assert left_out(tmp_path)[1] == {"train": 2}


@pytest.mark.parametrize("lost", [2, 20, 200, 2000])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_kept_if_asked(tmp_path, lost, progressive):
    whole = encoded(picture(), "JPEG", quality=95, progressive=progressive)
    content = coco_content(1)
    content["images"][0]["file_name"] = "p1.jpg"
    arguments = coco_tree(tmp_path, content, {"p1.jpg": whole[:-lost]})
    said, splits = prepared(tmp_path, arguments, "--allow-truncated")
    image = decode_image(splits["train"][0].image)
    assert image.shape == (64, 96, 3)
    if not progressive:
        np.testing.assert_array_equal(image[:16], decode_image(whole)[:16])
    if lost > 2:
        assert "truncated JPEGs, kept with the missing part in grey: 1" in said
        with pytest.raises(UserError, match=r"--allow-truncated to keep truncated JPEGs"):
            prepared(tmp_path, arguments, name="again")


def test_what_no_decoder_can_finish_is_refused_all_the_same(tmp_path):
    content = coco_content(1)
    content["images"][0]["file_name"] = "p1.jpg"
    arguments = coco_tree(tmp_path, content, {"p1.jpg": CUT[:300]})
    with pytest.raises(UserError, match=r"image 1 \('p1.jpg'\): cannot be decoded"):
        prepared(tmp_path, arguments, "--allow-truncated")


def test_a_bad_annotation_takes_its_picture_along(tmp_path):
    content = coco_content(6)
    content["annotations"] += [
        {"id": 7, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]},
        {"id": 8, "image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 4]},
        {"id": 9, "image_id": 77, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    content["images"][5]["id"] = 5  # twice: whose are the boxes?
    content["annotations"][5]["image_id"] = 5
    arguments = coco_tree(
        tmp_path, content, {f"p{i}.png": encoded(picture(i)) for i in range(1, 7)}
    )
    _, splits = prepared(tmp_path, arguments, *SKIP)
    assert splits["train"].image_ids.tolist() == [2, 3, 4]
    lines, counts = left_out(tmp_path)
    assert counts == {"train": 3}  # one line an image
    assert "unknown category_id 9" in lines[1]
    assert "image_id 77 matches no image" in lines[2]


def test_bad_files_of_voc_are_left_out(tmp_path):
    files = {stem: [voc_object("x", (1, 1, 20, 20))] for stem in "abcdefgh"}
    arguments = voc_tree(tmp_path / "voc", files, "\n".join("abcdefghi"))
    folder = tmp_path / "voc"
    put(folder / "Annotations" / "b.xml", "<annotation>")
    put(folder / "JPEGImages" / "c.png", "words")
    (folder / "JPEGImages" / "d.png").unlink()
    _, splits = prepared(tmp_path, arguments, *SKIP)
    assert splits["train"].file_names.tolist() == [f"{stem}.png" for stem in "aefgh"]
    lines, counts = left_out(tmp_path)
    assert counts == {"train": 4}
    assert all(
        any(part in line for line in lines)
        for part in ("b.xml: not XML", "'c.png'): cannot be", "'d.png'): missing", "i.xml: no such")
    )


def test_bad_files_of_yolo_are_left_out(tmp_path):
    arguments = yolo_tree(tmp_path / "yolo", dict.fromkeys("abcdef", "0 .5 .5 .5 .5\n"))
    folder = tmp_path / "yolo"
    put(folder / "labels" / "train" / "b.txt", "0 .5 .5 .5 .5\n7 .5 .5 .5 .5\n")
    put(folder / "labels" / "train" / "stray.txt", "")
    put(folder / "images" / "train" / "c.png", "words")
    _, splits = prepared(tmp_path, arguments, *SKIP)
    assert splits["train"].file_names.tolist() == ["a.png", "d.png", "e.png", "f.png"]
    assert left_out(tmp_path)[1] == {"train": 3}


def test_nothing_left_is_an_error(tmp_path):
    flags = ("--on-bad=skip", "--max-bad=1")
    arguments = coco_tree(tmp_path, coco_content(2), {"p1.png": b"", "p2.png": b""})
    with pytest.raises(UserError, match="split 'train' has no usable records"):
        prepared(tmp_path, arguments, *flags)
    arguments = coco_tree(tmp_path, coco_content(2, bbox=[1]))
    with pytest.raises(UserError, match="none of its images can be used; the first: "):
        prepared(tmp_path, arguments, *flags, name="again")
    arguments = yolo_tree(tmp_path / "yolo", {"a": "x"})
    with pytest.raises(UserError, match="none of its images can be used"):
        prepared(tmp_path, arguments, *flags, name="again")
    arguments = voc_tree(tmp_path / "voc", {"a": b"<x>"})
    with pytest.raises(UserError, match=r"no objects in 0 files|none of its records can be used"):
        prepared(tmp_path, arguments, *flags, name="again")


def test_a_shard_of_bad_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("retina_jax.prepare.writer.ROWS_A_SHARD", 2)
    pictures = {f"p{i}.png": b"" if i in (3, 4) else encoded(picture(i)) for i in range(1, 7)}
    _, splits = prepared(tmp_path, coco_tree(tmp_path, coco_content(6), pictures), *SKIP)
    assert [splits["train"][row].image_id for row in range(4)] == [1, 2, 5, 6]


@pytest.mark.slow
def test_commands_at_once_leave_one_whole_data_set(tmp_path):
    arguments = coco_tree(tmp_path, coco_content(300))
    words = [
        sys.executable,
        REPOSITORY / "scripts/prepare.py",
        *arguments,
        "--out",
        tmp_path / "out",
    ]
    for _ in range(2):
        running = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        done = [(child.communicate()[1], child.returncode) for child in running]
        for said, code in done:
            assert code in (0, 2), said
            assert "Traceback" not in said
            assert code == 0 or "another process" in said or "already exists" in said
        folder = tmp_path / "out" / "coco"
        assert [path.name for path in folder.iterdir()] == ["1.0.0"]
        assert len(Index.load(folder / "1.0.0", "train")) == 300


def test_writers_at_once_meet_no_missing_file(tmp_path):
    """Threads that write, find it written, and write again, as fast as they can."""
    import shutil
    import threading

    from test_writer import Drawn

    from retina_jax.prepare import shapes
    from retina_jax.prepare.writer import BusyError, write_data_set

    faults, ended = [], []

    def work():
        for _ in range(15):
            try:
                write_data_set(tmp_path, "drawn", {"train": Drawn(2)}, shapes.CLASS_NAMES,
                               shapes.CATEGORY_IDS, "drawn")  # fmt: skip
                aside = tmp_path / f"aside{threading.get_ident()}"
                (tmp_path / "drawn" / "1.0.0").rename(aside)  # at once, unlike rmtree
                shutil.rmtree(aside)
                ended.append(1)
            except BusyError:
                pass
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert ended
