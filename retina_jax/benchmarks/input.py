"""Compares the input pipeline with a bare OpenCV loop and torchvision on the same work.

Decodes JPEGs of 640×480, scales them to 800×1067, flips half of them, and pads them to 800×1344.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import ml_collections
import numpy as np

from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.data.records import Record
from retina_jax.prepare.writer import write_data_set
from retina_jax.training.memory import own_processes

SIZE = (480, 640)
SCALED = (800, 1067)
INPUT = (800, 1344)
BATCH = 8


def photographs(count: int) -> list[bytes]:
    """JPEGs of 640×480 with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIZE[0])[:, None], np.fft.rfftfreq(SIZE[1])[None])
    encoded = []
    for _ in range(count):
        waves = np.fft.rfft2(rng.standard_normal((3, *SIZE)))
        picture = np.fft.irfft2(waves / np.maximum(frequency, 1e-3), SIZE)
        picture = picture / picture.std(axis=(1, 2), keepdims=True) * 45 + 120
        picture += 5 * rng.standard_normal(picture.shape)
        pixels = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        encoded.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
    return encoded


class _Photographs:
    """Source of a split with these JPEGs and five boxes per image."""

    def __init__(self, encoded: list[bytes]):
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def read(self, row: int) -> Record:
        corner = np.random.default_rng(row).uniform(0, 300, (5, 2))
        return Record(
            image_id=row,
            file_name=f"{row}.jpg",
            image=self._encoded[row],
            height=SIZE[0],
            width=SIZE[1],
            boxes=np.concatenate([corner, corner + 100], axis=1),
            labels=np.zeros(5, np.int64),
            is_crowd=np.zeros(5, bool),
            areas=np.full(5, 1e4),
        )

    def fingerprint(self, row: int) -> str:
        return str(row)


def bare_loop(encoded: list[bytes]) -> Iterator[np.ndarray]:
    """The minimal work of any pipeline, in one thread."""
    rng = np.random.default_rng(0)
    while True:
        batch = np.zeros((BATCH, *INPUT, 3), np.uint8)
        for place in batch:
            picture = encoded[rng.integers(len(encoded))]
            image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
            scaled = cv2.resize(image, SCALED[::-1], interpolation=cv2.INTER_LINEAR)
            if rng.random() < 0.5:
                scaled = cv2.flip(scaled, 1)
            place[: SCALED[0], : SCALED[1]] = scaled
        yield batch


def torchvision_loader(encoded: list[bytes], workers: int, floats: bool) -> Iterator:
    """torch's DataLoader with torchvision's decoding and resizing.

    With ``floats``: Pillow and float tensors, scaled like in torchvision's detection models
    (`GeneralizedRCNNTransform`). Otherwise: torchvision's uint8 kernels, with ``decode_jpeg`` if
    its C++ library loads.
    """
    import torch
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)
    decode = _pillow_decoder(functional)
    if not floats:
        decode = _torchvision_decoder() or decode

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            image = decode(encoded[index % len(encoded)])
            if floats:
                image = image.float() / 255
                image = torch.nn.functional.interpolate(image[None], SCALED, mode="bilinear")[0]
            else:
                image = functional.resize(image, list(SCALED), antialias=False)
            if torch.rand(()) < 0.5:
                image = functional.horizontal_flip(image)
            padding = [0, 0, INPUT[1] - SCALED[1], INPUT[0] - SCALED[0]]
            return functional.pad(image, padding)

    return iter(torch.utils.data.DataLoader(Pictures(), BATCH, num_workers=workers))


def _pillow_decoder(functional) -> Callable:
    from PIL import Image

    return lambda data: functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))


def _torchvision_decoder() -> Callable | None:
    import torch

    try:
        from torchvision.io import decode_jpeg

        decode = lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))  # noqa: E731
        decode(photographs(1)[0])
    except (ImportError, RuntimeError):  # the C++ library does not load
        return None
    return decode


def cpu_seconds() -> float:
    """CPU time so far of this process and all its descendants, seconds."""
    ticks = 0
    for folder in own_processes():
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _figures(batches: Iterator, count: int) -> tuple[float, float]:
    """Images per second of wall-clock time and of CPU time, over ``count`` batches."""
    for _ in range(3):  # warm-up: workers start, buffers fill
        next(batches)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(batches)
    images = count * BATCH
    return images / (time.perf_counter() - wall), images / max(cpu_seconds() - cpu, 1e-9)


def time_input(config: ml_collections.ConfigDict, runs: int, batches: int) -> Iterator[dict]:
    """Medians over ``runs`` alternating runs of each pipeline, and ratios to retina_jax."""
    encoded = photographs(64)
    with tempfile.TemporaryDirectory() as folder:
        directory, _ = write_data_set(
            Path(folder), "photographs", {"train": _Photographs(encoded)}, ["thing"], [1], "made"
        )
        split = open_split(directory, "train")
        config = config.copy_and_resolve_references()
        config.train.batch_size = BATCH

        def ours(workers: int) -> Iterator:
            config.data.num_workers = workers
            return TrainLoader(split, config).batches(0, 10**6)

        contestants: dict[str, Callable[[], Iterator]] = {
            "bare OpenCV loop": lambda: bare_loop(encoded)
        }
        for workers in (0, 1, 2):
            contestants[f"retina_jax, {workers} workers"] = lambda w=workers: ours(w)
        # also skip a torchvision whose operators do not load with this torch
        with contextlib.suppress(ImportError, RuntimeError):
            import torchvision  # noqa: F401

            for workers in (0, 1, 2):
                for floats, name in ((False, "uint8"), (True, "float")):
                    contestants[f"torchvision {name}, {workers} workers"] = (
                        lambda w=workers, f=floats: torchvision_loader(encoded, w, f)
                    )
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for _ in range(runs):
            for name, make in contestants.items():
                iterator = make()
                taken[name].append(_figures(iterator, batches))
                del iterator  # ends its workers
    median = {
        name: [statistics.median(figure) for figure in zip(*figures, strict=True)]
        for name, figures in taken.items()
    }
    reference = median["retina_jax, 0 workers"][1]
    for name, (wall, core) in median.items():
        yield {
            "timed": name,
            "images_per_second": round(wall, 1),
            "images_per_core_second": round(core, 1),
            "retina_jax_over_it": round(reference / core, 2),
            "kilobytes_a_jpeg": round(sum(map(len, encoded)) / len(encoded) / 1000),
        }


def resident_mebibytes() -> float:
    """Memory of this process and its workers; shared pages count once."""
    total = 0
    for folder in own_processes():
        with contextlib.suppress(OSError, StopIteration):
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


def measure_memory(config: ml_collections.ConfigDict, batches: int) -> Iterator[dict]:
    """Host memory of an experiment's loader, sampled ten times over ``batches`` batches."""
    from retina_jax.prepare.shapes import open_data_set

    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.train_split, config.data.labels)
    iterator = TrainLoader(split, config).batches(0, batches)
    for number, _ in enumerate(iterator, 1):
        if number % max(1, batches // 10) == 0:
            yield {"batches": number, "resident_mib": round(resident_mebibytes(), 1)}
