"""`load.py`, which lies beside an export: places images, fills batches, refuses changed files."""

import shutil

import numpy as np
import pytest

from retina_jax.prediction.load import Detector

FILE = "model-128x128"


def test_a_changed_file_is_not_loaded(exported, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(exported / "stablehlo", folder)
    path = folder / f"{FILE}.stablehlo"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        Detector(folder).detect(np.zeros((1, 128, 128, 3), np.uint8), np.array([[128, 128]]))
    with pytest.raises(
        ValueError, match=r"this export has no model for 64x64 pixels, only for 128x128"
    ):
        Detector(folder).detect(np.zeros((1, 64, 64, 3), np.uint8), np.array([[64, 64]]))


def test_the_loader_places_images_as_evaluation_does(exported):
    from retina_jax.data.plan import place
    from retina_jax.data.transforms import resize

    detector = Detector(exported / "stablehlo")
    detector.buckets = {(96, 160): None, (160, 96): None, (128, 128): None}
    rng = np.random.default_rng(0)
    for height, width in rng.integers(3, 400, (40, 2)):
        for rounding in ("nearest", "floor"):
            detector.card["placement"]["rounding"] = rounding
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            padded, size = detector.place(image)
            buckets = tuple(detector.buckets)
            placed = place(height, width, buckets, 128, 128, rounding)
            assert padded.shape[:2] == buckets[placed.bucket]
            assert tuple(size) == (placed.height, placed.width)
            np.testing.assert_array_equal(
                padded[: size[0], : size[1]], resize(image, placed.height, placed.width)
            )
            assert not padded[size[0] :].any()


@pytest.mark.parametrize("at_once", [0, 2, 3])
def test_the_loader_fills_batches_of_a_fixed_size(exported, at_once):
    detector, calls = Detector(exported / "stablehlo"), []

    def run(images, sizes):
        calls.append(len(images))
        return {"scores": images[:, 0, 0, :1] / 10, "sizes": sizes}

    detector.card["batch_size"] = at_once
    detector._programs[128, 128] = run
    images = np.zeros((4, 128, 128, 3), np.uint8)
    images[:, 0, 0, 0] = [1, 2, 3, 4]
    found = detector.detect(images, np.tile([[9, 7]], (4, 1)))
    assert calls == {0: [4], 2: [2, 2], 3: [3, 3]}[at_once]
    np.testing.assert_allclose(found["scores"][:, 0], [0.1, 0.2, 0.3, 0.4])
    assert found["sizes"].dtype == np.int32
