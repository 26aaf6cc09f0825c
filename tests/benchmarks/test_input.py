"""The benchmark's contestants do the same work."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from torchvision_cpu import import_torchvision

from retina_jax.benchmarks import input as bench

REPOSITORY = Path(__file__).resolve().parents[2]


def test_photographs_are_jpegs_of_the_size_they_say():
    (encoded,) = bench.photographs(1)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (*bench.SIZE, 3)
    assert 60_000 < len(encoded) < 250_000


def test_contestants_give_the_same_pixels():
    encoded = bench.photographs(1)
    ours = next(bench.bare_loop(encoded))
    import_torchvision()
    theirs = next(bench.torchvision_loader(encoded, 0, floats=False))
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert theirs.shape == ours.shape
    upright = [
        np.abs(theirs[0].astype(int) - x.astype(int)).max() for x in (ours[0], mirrored(ours[0]))
    ]
    assert min(upright) <= 3  # their kernel rounds otherwise


def mirrored(image):
    height, width = bench.SCALED
    out = np.zeros_like(image)
    out[:height, :width] = image[:height, :width][:, ::-1]
    return out


def test_memory_is_measured(shapes_dir):
    """Kept batches would show: 140 of them have 52 MiB of pixels.

    One arena of malloc for all threads: each thread's own would grow with the number of cores.
    """
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/benchmark.py", "memory", "--steps=200",
         f"--config={REPOSITORY}/experiments/shapes.py", f"--config.data.dir={shapes_dir}"],
        capture_output=True, text=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["batches"] for line in lines] == list(range(20, 201, 20))
    assert lines[-1]["resident_mib"] - lines[2]["resident_mib"] < 26


def test_resident_memory_counts_what_is_used():
    """The pages come straight from the system: malloc may hand out ones that it still holds."""
    size = 128 * 2**20
    before = bench.resident_mebibytes()
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        for page in range(0, size, mmap.PAGESIZE):
            kept[page] = 1
        more = bench.resident_mebibytes()
    assert more - before == pytest.approx(128, abs=16)
    assert bench.resident_mebibytes() - before < 16
