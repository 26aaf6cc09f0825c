"""Loads batches of a split into host memory; Grain handles workers, prefetching and order.

The images of a batch are decoded in parallel, on the process's share of the cores. A few batches in
flight are therefore enough, and memory does not grow with the number of cores.
"""

from __future__ import annotations

import atexit
import dataclasses
import multiprocessing
import os
import signal
import threading
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import grain
import jax
import ml_collections
import numpy as np

from retina_jax.config import resolve
from retina_jax.config.values import placement_rule
from retina_jax.data import grain_private, handover, rare
from retina_jax.data.augment import View, draw_view, jitter_colors, move_boxes, show, whole
from retina_jax.data.data_set import Split
from retina_jax.data.images import decode_image
from retina_jax.data.plan import (
    Draw,
    Placements,
    TrainPlan,
    evaluation_batches,
    padding_share,
    place_all,
)
from retina_jax.errors import RunError, UserError
from retina_jax.types import Batch, GroundTruth

_MOST_THREADS = 16
"""Largest number of threads per process; more would contend for Python's interpreter lock."""
_AHEAD = 4
"""Batches of one process that are in progress or waiting to be consumed.

With workers, Grain holds one while it is filled, one in the queue, and two in the main process.
"""


def placements(split: Split, config: ml_collections.ConfigDict) -> Placements:
    """The bucket and scaled size of each row of a split."""
    return place_all(split.sizes, **placement_rule(config))


def decoding_threads(workers: int) -> int:
    """Number of decoding threads per process: its share of the cores, at most 16.

    The processes are the loader's workers, or the main process if there are none.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # a batch system may grant only some of the cores
        cores = min(cores, len(os.sched_getaffinity(0)))
    return min(_MOST_THREADS, max(1, cores // max(1, workers)))


def check_not_empty(split: Split) -> None:
    """`UserError` for a split without images."""
    if not len(split):
        raise UserError(f"{split.label()} is empty; prepare it from annotations with images")


def check_boxes(split: Split, config: ml_collections.ConfigDict) -> None:
    """`UserError` for a split with an image that has more than ``data.max_boxes`` boxes."""
    most = int(split.box_counts.max())
    if most > config.data.max_boxes:
        image_id = int(split.image_ids[int(split.box_counts.argmax())])
        raise UserError(
            f"config.data.max_boxes={config.data.max_boxes} is too small for image {image_id} of "
            f"{split.label()}, which has {most} boxes; set --config.data.max_boxes={most}"
        )


class _Facts(NamedTuple):
    """The entries of a `Batch` for one image, without its pixels."""

    sizes: np.ndarray
    original_sizes: np.ndarray
    ground_truth: GroundTruth
    index: np.int32
    example_mask: np.bool_
    cut_away: np.int32


class _Pictures:
    """Makes batches from rows; picklable, for workers."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        placed: Placements,
        augments: bool,
        threads: int,
    ):
        """``augments``: for training. Evaluation keeps every box, regardless of the number."""
        self._split = split
        self._placements = placed
        resolved = resolve(config)
        augmentation = {n.removeprefix("data."): v for n, v in resolved.augmentation.items()}
        self._data = types.SimpleNamespace(**config.data.to_dict() | augmentation)
        self._seed = resolved.data_seed
        self._augments = augments
        self._buckets = resolved.buckets
        self._max_boxes = config.data.max_boxes
        if not augments:
            self._max_boxes = max(self._max_boxes, int(split.box_counts.max()))
        self._threads = threads
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "decode")  # starts threads only when needed

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = self._new_pool()

    def layout(self, bucket: int, rows: int) -> tuple[tuple[int, int, int, int], type]:
        """Shape and type of a batch's pixels."""
        kind = np.float32 if self._data.float_pixels else np.uint8
        return (rows, *self._buckets[bucket], 3), kind

    def largest_batch(self, rows: int) -> int:
        """Bytes of the pixels of ``rows`` images in the largest bucket."""
        layouts = [self.layout(bucket, rows) for bucket in range(len(self._buckets))]
        return max(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layouts)

    def batch(self, draws: Sequence[Draw | None], images: np.ndarray) -> Batch:
        """Fills ``images``, zeros of shape `layout`, and returns the batch.

        None in ``draws`` is a black filler that pads an evaluation batch.
        """
        # images are scaled directly into the batch, so no copy is needed to stack them
        facts = self._pool.map(self._fill, draws, images)
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *facts)
        return Batch(images=images, **stacked._asdict())

    def _fill(self, draw: Draw | None, out: np.ndarray) -> _Facts:
        """Writes an image's pixels to its slot ``out``, and returns the rest."""
        return self._filler(out) if draw is None else self._read(draw, out)

    def _filler(self, out: np.ndarray) -> _Facts:
        size = np.array(out.shape[:2], np.int32)
        return _Facts(
            sizes=size,
            original_sizes=size,
            ground_truth=self._pad(np.zeros((0, 4)), np.zeros(0, np.int32), np.zeros(0, bool)),
            index=np.int32(-1),
            example_mask=np.bool_(False),
            cut_away=np.int32(0),
        )

    def _read(self, draw: Draw, out: np.ndarray) -> _Facts:
        example = self._split[draw.row]
        image = decode_image(example.image)
        original = tuple(int(v) for v in self._split.sizes[draw.row])
        if image is None or image.shape[:2] != original:
            raise UserError(
                f"image {example.image_id} (row {draw.row}) of {self._split.label()} cannot be "
                f"decoded to {original[0]}×{original[1]}; prepare the data set again"
            )
        if self._data.float_pixels:
            image = image.astype(np.float32)
        view, rng = self._view(draw, original)
        shown = show(image, view, self._data.antialias, out)
        if rng is not None and any(self._data.color_jitter):
            shown[...] = jitter_colors(rng, shown, self._data.color_jitter)
        least = self._data.min_visible if rng is not None else 0.0
        boxes, kept = move_boxes(example.boxes, original, view, least)
        return _Facts(
            sizes=np.array(view.window, np.int32),
            original_sizes=np.array(view.turned(original), np.int32),
            ground_truth=self._pad(boxes[kept], example.labels[kept], example.is_crowd[kept]),
            index=np.int32(draw.row),
            example_mask=np.bool_(True),
            cut_away=np.int32((~kept).sum()),
        )

    def _view(
        self, draw: Draw, original: tuple[int, int]
    ) -> tuple[View, np.random.Generator | None]:
        """The view, and a generator for further draws (None: no augmentation).

        A function of seed, row and its occurrence. A turned image stays in the bucket of its row,
        so that the plan need not know the turn.
        """
        data, placement = self._data, self._placements[draw.row]
        if not self._augments:
            return whole(placement), None
        rng = np.random.default_rng((self._seed, 2, draw.occurrence, draw.row))
        mirrored = bool(data.flip and rng.random() < 0.5)  # drawn first, as the rest may be off
        quarters = int(rng.integers(4)) if data.turn else 0
        plain = not data.train_short_sides and data.scale_range == (1.0, 1.0)
        if plain and quarters % 2 == 0:
            return dataclasses.replace(whole(placement), quarters=quarters, mirrored=mirrored), rng
        view = draw_view(
            rng,
            original,
            self._buckets[placement.bucket],
            data.train_short_sides or (data.short_side,),
            data.long_side,
            data.scale_range,
            data.rounding,
            quarters,
        )
        return dataclasses.replace(view, mirrored=mirrored), rng

    def _pad(self, boxes: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray) -> GroundTruth:
        count, truth = len(boxes), GroundTruth.empty(self._max_boxes)
        truth.valid[:count] = True
        truth.boxes[:count] = boxes
        truth.labels[:count] = labels
        truth.is_crowd[:count] = is_crowd
        return truth


def _begin_worker(worker: int, workers: int) -> None:
    del worker, workers
    # Ctrl-C reaches every process of the terminal, SIGTERM of a batch system every one of the job;
    # the parent needs batches until it has saved
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)  # more would use the cores of other workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


@atexit.register
def _kill_workers() -> None:
    """Ends workers that an error left running; multiprocessing would send SIGTERM and wait."""
    for process in multiprocessing.active_children():
        process.kill()


def _end_with_parent() -> None:
    """Ends a worker with its parent, so that a killed program leaves no workers behind."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_threads(batches: grain.MapDataset) -> grain.IterDataset:
    """Reads in this process, two batches side by side: as one ends, the next keeps it busy."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=_AHEAD)
    return batches.to_iter_dataset(options)


def _in_workers(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads in worker processes, each one batch after the other: Grain's queues hold the rest."""
    grain_private.parse_flags()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return batches.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_begin_worker)


class TrainLoader:
    """Training batches of a split from any step; yields this host's rows of each batch."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        process: int = 0,
        processes: int = 1,
    ):
        """Raises `UserError` for an unusable split, or too little memory for workers' batches."""
        check_not_empty(split)
        check_boxes(split, config)
        self.split = split
        placed = placements(split, config)
        shown = rare.shown_rows(split, config.data.drop_empty)
        self.left_out = int((~shown).sum())
        """Number of images without boxes that ``data.drop_empty`` excludes."""
        self.padding_share = padding_share(placed.of(shown), resolve(config).buckets)
        bucket_of = np.where(shown, placed.bucket, -1)
        threshold = config.data.repeat_rare
        self.repeats = rare.repeats(split, threshold, shown) if threshold else None
        """How often images are shown; None: once per epoch."""
        of_row = self.repeats.of_row if self.repeats else None
        self.plan = TrainPlan(bucket_of, resolve(config).data_seed, config.train.batch_size, of_row)
        rows = config.train.batch_size // processes
        self._share = slice(process * rows, (process + 1) * rows)
        self._workers = config.data.num_workers
        threads = decoding_threads(self._workers)
        self._pictures = _Pictures(split, config, placed, augments=True, threads=threads)
        self._hands_over = self._workers > 0 and handover.available()
        if self._hands_over:
            handover.check_room(self._workers, _AHEAD, self._pictures.largest_batch(rows))

    def image_ids_at(self, step: int) -> list[int]:
        """The image ids of the batch that takes the run to ``step``, of all hosts."""
        _, draws = self.plan.batch_at(step - 1)
        return [int(self.split.image_ids[draw.row]) for draw in draws]

    def arrays_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch that takes the run to ``step``, of all hosts, as arrays for a file."""
        bucket, draws = self.plan.batch_at(step - 1)
        batch = self._pictures.batch(draws, np.zeros(*self._pictures.layout(bucket, len(draws))))
        truth = {field.name: getattr(batch.ground_truth, field.name)
                 for field in dataclasses.fields(batch.ground_truth)}  # fmt: skip
        return {
            "image_ids": self.split.image_ids[batch.index],
            "images": batch.images,
            "sizes": batch.sizes,
            **truth,
        }

    def _read(self, step: int) -> Batch | handover.Parcel:
        bucket, draws = self.plan.batch_at(step)
        draws = draws[self._share]
        shape, kind = self._pictures.layout(bucket, len(draws))
        if not self._hands_over:  # Grain copies the arrays to its own shared memory
            return self._pictures.batch(draws, np.zeros(shape, kind))
        block = handover.Block(shape, kind)
        return handover.Parcel(self._pictures.batch(draws, block.array), block)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to ``last_step - 1``, in order.

        Raises `UserError` for an image that cannot be read, and `RunError` within seconds if a
        worker dies.
        """
        # elements are whole batches: workers take elements in turn, which keeps the order
        steps = grain.MapDataset.range(first_step, last_step).map(self._read)
        batches = _in_workers(steps, self._workers) if self._workers else _in_threads(steps)
        iterator = iter(batches)
        try:
            yield from map(handover.received, iterator)  # no name keeps the last batch from going
        except handover.SenderDiedError as error:
            raise self._death(handover.exit_code(error.pid)) from None
        except RuntimeError as error:
            if not grain_private.is_death_of_worker(error):
                raise
            raise self._death(grain_private.exit_code_in(error)) from None
        finally:
            iterator.close()  # ends the workers and frees their batches

    def _death(self, code: int | None) -> RunError:
        return RunError(
            f"a loader worker died (exit code {'unknown' if code is None else code}; -9 usually "
            "means out of memory); run the same command again; if it recurs, lower "
            f"--config.data.num_workers={self._workers}"
        )


class EvaluationLoader:
    """Batches with every row of a split exactly once; yields this host's rows of each batch."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        process: int = 0,
        processes: int = 1,
    ):
        check_not_empty(split)
        placed = placements(split, config)
        threads = decoding_threads(0)
        self._pictures = _Pictures(split, config, placed, augments=False, threads=threads)
        self._batches = evaluation_batches(placed.bucket, config.eval.batch_size)
        rows = config.eval.batch_size // processes
        self._share = slice(process * rows, (process + 1) * rows)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def rows_per_process(self) -> int:
        """Number of images, fillers included, that each process reads."""
        return len(self._batches) * (self._share.stop - self._share.start)

    def _read(self, number: int) -> Batch:
        bucket, rows = self._batches[number]
        draws = [None if row is None else Draw(row, 0) for row in rows[self._share]]
        return self._pictures.batch(draws, np.zeros(*self._pictures.layout(bucket, len(draws))))

    def first_of(self, bucket: int) -> Batch | None:
        """This host's rows of the first batch of a bucket; None if no image belongs to it."""
        numbers = [n for n, (of_batch, _) in enumerate(self._batches) if of_batch == bucket]
        return self._read(numbers[0]) if numbers else None

    def __iter__(self) -> Iterator[Batch]:
        numbers = grain.MapDataset.range(len(self._batches)).map(self._read)
        return iter(_in_threads(numbers))
