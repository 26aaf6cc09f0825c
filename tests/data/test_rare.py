"""Rare classes: how often each image is shown, and the batches that follow."""

import dataclasses

import jax
import numpy as np
import pytest

from retina_jax.config.values import resolve
from retina_jax.data.data_set import Split, open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.data.rare import repeats, shown_rows
from retina_jax.data.records import Index, IndexRow
from retina_jax.errors import UserError
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs import train


def split_of(*images, names=("cell", "platelet", "never")):
    """A split of images with these objects; a negative label -1 - c is a crowd of class c."""
    index = Index.of(
        IndexRow(
            image_id=row,
            height=10,
            width=10,
            file_name="",
            boxes=[[0, 0, 1, 1]] * len(labels),
            labels=[max(label, -1 - label) for label in labels],
            is_crowd=[label < 0 for label in labels],
            areas=[1.0] * len(labels),
        )
        for row, labels in enumerate(images)
    )
    return Split(
        "train", None, tuple(names), tuple(range(len(names))), index.image_ids, index.sizes,
        index.box_counts, index.file_names, [], None, index,
    )  # fmt: skip


def test_factors_by_hand():
    # cells in 4 of 5 images, platelets in 1: √(0.8 / 0.2) = 2
    split = split_of((0, 0), (0, 1, 1), (0,), (), (0,))
    found = repeats(split, 0.8, shown_rows(split, False))
    np.testing.assert_allclose(found.of_class, [1, 2, 1])
    np.testing.assert_allclose(found.of_row, [1, 2, 1, 1, 1])
    assert found.describe() == (
        "data.repeat_rare=0.8 repeats images of rare classes: platelet 2 times; an epoch has 6 "
        "images instead of 5"
    )
    # of the images with boxes, cells are in all and platelets in a quarter: √(0.8 / 0.25)
    found = repeats(split, 0.8, shown_rows(split, True))
    np.testing.assert_allclose(found.of_class, [1, 3.2**0.5, 1])
    assert found.describe().endswith("an epoch has 5 images instead of 4")


def test_the_rarest_class_of_an_image_counts_and_crowds_do_not():
    split = split_of((0,), (0,), (0, 1), (0, 1, 2), (-2,), (-3,), (0,), (0,))
    found = repeats(split, 1.0, shown_rows(split, False))
    np.testing.assert_allclose(found.of_class, [(8 / 6) ** 0.5, 2, 8**0.5])
    cell = (8 / 6) ** 0.5
    np.testing.assert_allclose(found.of_row, [cell, cell, 2, 8**0.5, 1, 1, cell, cell])


def test_without_a_rare_class_nothing_is_repeated():
    for split in (split_of((0,), (0, 1)), split_of((), ())):
        found = repeats(split, 0.01, shown_rows(split, False))
        assert (found.of_row == 1).all()
        assert "no image is repeated" in found.describe()


def test_many_rare_classes_are_counted_and_the_rarest_named():
    images = [(c,) for c in range(30) for _ in range(c + 1)]
    split = split_of(*images, names=[f"class {c}" for c in range(30)])
    text = repeats(split, 0.05, shown_rows(split, False)).describe()
    assert "rare classes: class 0 4.82 times, class 1 3.41 times" in text  # √(0.05 · 465 / 1)
    assert "class 7 1.7 times, … (23 classes); an epoch has" in text
    assert "class 8" not in text


def test_an_old_index_without_labels_gives_the_same(two_aspects):
    split = open_split(open_data_set(str(two_aspects), ""), "train")
    before = dataclasses.replace(split, _index=None)
    for known, read in zip(split.objects(), before.objects(), strict=True):
        np.testing.assert_array_equal(known, read)
    assert len(split.objects()[0]) == split.object_counts.sum()


@pytest.fixture
def rare(tiny_config):
    """A split of 24 images, and a config that shows some of them several times in an epoch."""
    split = open_split(open_data_set(tiny_config.data.dir, "shapes"), "train")
    tiny_config.data.repeat_rare = 1.0
    tiny_config.data.augmentation = "light"
    return split, tiny_config


def test_repeats_are_shown_in_batches_with_their_own_augmentation(rare):
    split, config = rare
    loader = TrainLoader(split, config)
    of_row = loader.repeats.of_row
    assert of_row.max() > 1.3
    epochs = 12
    steps = range(round(epochs * of_row.sum()) // 8)
    drawn = [draw.row for step in steps for draw in loader.plan.batch_at(step)[1]]
    counts = np.bincount(drawn, minlength=len(split))
    assert (np.abs(counts - epochs * of_row) < 3).all()
    seen = {}
    for batch in loader.batches(0, 9):
        for row, image in zip(batch.index.tolist(), batch.images, strict=True):
            assert image.tobytes() not in seen.setdefault(row, set())
            seen[row].add(image.tobytes())
    assert max(map(len, seen.values())) > min(map(len, seen.values()))


def test_resumed_runs_and_hosts_repeat_the_same_images(rare):
    split, config = rare
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    (expected,) = TrainLoader(split, config).batches(7, 8)
    whole = list(TrainLoader(split, config).batches(4, 8))
    same(whole[-1], expected)
    parts = [next(TrainLoader(split, config, p, 4).batches(7, 8)) for p in range(4)]
    same(expected, jax.tree.map(lambda *p: np.concatenate(p), *parts))


def test_a_threshold_below_every_class_and_no_threshold_are_the_same(rare):
    split, config = rare
    config.data.repeat_rare = 1e-6
    low = TrainLoader(split, config)
    config.data.repeat_rare = 0.0
    off = TrainLoader(split, config)
    assert off.repeats is None
    for step in range(12):
        assert low.plan.batch_at(step) == off.plan.batch_at(step)


def test_images_without_boxes_can_be_left_out_as_well():
    split = split_of((), (0,), (-1,), (1,))
    np.testing.assert_array_equal(shown_rows(split, True), [False, True, False, True])
    with pytest.raises(UserError, match=r"excludes all images of .*drop_empty=False"):
        shown_rows(split_of((), (-1,)), True)


def test_a_run_says_what_is_repeated_and_how_it_augments(rare, monkeypatch, tmp_path):
    split, config = rare
    lines = []
    report = Reporter()
    monkeypatch.setattr(report, "say", lines.append)
    devices = type("Devices", (), {"describe": lambda self: "a device"})()
    state = type("State", (), {"params": {}})()
    loader = TrainLoader(split, config)
    train._introduce(config, tmp_path, devices, loader, split, split, state, report)
    assert loader.repeats.describe() in lines
    (line,) = (line for line in lines if line.startswith("data.augmentation=light: "))
    assert f"data.scale_range={resolve(config).augmentation['data.scale_range']}" in line
    assert "data.turn=False" in line
