"""Rows of a split to batches in host memory. Grain does workers, prefetch and order."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import types
from collections.abc import Iterator, Sequence

import grain
import jax
import ml_collections
import numpy as np
from absl import flags

from retina_jax.config import resolve
from retina_jax.config.values import placement_rule
from retina_jax.data import handover
from retina_jax.data.augment import View, draw_view, jitter_colors, move_boxes, show, whole
from retina_jax.data.data_set import Split
from retina_jax.data.images import decode_image
from retina_jax.data.plan import (
    Draw,
    Placement,
    TrainPlan,
    evaluation_batches,
    padding_share,
    place,
)
from retina_jax.data.transforms import mirror_boxes
from retina_jax.errors import RunError, UserError
from retina_jax.types import Batch, GroundTruth


def placements(split: Split, config: ml_collections.ConfigDict) -> list[Placement]:
    """Where each row of a split lies in its bucket."""
    sizes, inverse = np.unique(split.sizes, axis=0, return_inverse=True)
    rule = placement_rule(config)
    placed = [place(*map(int, size), **rule) for size in sizes]
    return [placed[i] for i in inverse.reshape(-1)]


def check_split(split: Split, config: ml_collections.ConfigDict) -> None:
    """`UserError` for a split that this config cannot read."""
    if not len(split):
        raise UserError(f"{split.label()} is empty; prepare it from annotations with images")
    most = int(split.box_counts.max())
    if most > config.data.max_boxes:
        image_id = int(split.image_ids[int(split.box_counts.argmax())])
        raise UserError(
            f"config.data.max_boxes={config.data.max_boxes} is under the {most} boxes of image "
            f"{image_id} in {split.label()}; set --config.data.max_boxes={most}"
        )


class _Pictures:
    """Rows to batches; picklable, for workers."""

    def __init__(self, split: Split, config: ml_collections.ConfigDict, augments: bool):
        self._split = split
        self._placements = placements(split, config)
        self._data = types.SimpleNamespace(**config.data.to_dict())
        self._seed = config.seed
        self._augments = augments
        self._buckets = resolve(config).buckets
        self._max_boxes = config.data.max_boxes

    def batch(self, bucket: int, draws: Sequence[Draw | None], shared: bool = False) -> Batch:
        """A batch; None is a filler, black, where an evaluation batch has no row.

        ``shared``: in memory that another process opens without a copy (Grain does).
        """
        kind = np.float32 if self._data.float_pixels else np.uint8
        # decoded pictures are scaled into their places: nothing is stacked afterwards
        shape = (len(draws), *self._buckets[bucket], 3)
        images = handover.zeros(shape, kind) if shared else np.zeros(shape, kind)
        rest = [
            self._filler(image) if draw is None else self._read(draw, image)
            for draw, image in zip(draws, np.asarray(images), strict=True)
        ]
        return jax.tree.map(lambda *parts: np.stack(parts), *rest).replace(images=images)

    def _filler(self, out: np.ndarray) -> Batch:
        return Batch(
            images=None,
            sizes=np.array(out.shape[:2], np.int32),
            ground_truth=self._pad(np.zeros((0, 4)), np.zeros(0, np.int32), np.zeros(0, bool)),
            index=np.int32(-1),
            example_mask=np.bool_(False),
            cut_away=np.int32(0),
        )

    def _read(self, draw: Draw, out: np.ndarray) -> Batch:
        """All of a picture but its pixels, which are written into ``out``, its place."""
        example = self._split[draw.row]
        image = decode_image(example.image)
        original = tuple(int(v) for v in self._split.sizes[draw.row])
        if image is None or image.shape[:2] != original:
            raise UserError(
                f"image {example.image_id} (row {draw.row}) of {self._split.label()} cannot be "
                f"decoded to {original[0]}×{original[1]}; prepare the data set anew"
            )
        if self._data.float_pixels:
            image = image.astype(np.float32)
        view, mirrored, rng = self._view(draw, original)
        shown = show(image, view, self._data.antialias, mirrored, out)
        if rng is not None and any(self._data.color_jitter):
            shown[...] = jitter_colors(rng, shown, self._data.color_jitter)
        least = self._data.min_visible if rng is not None else 0.0
        boxes, kept = move_boxes(example.boxes, original, view, least)
        if mirrored:
            boxes = mirror_boxes(boxes, view.window[1])
        return Batch(
            images=None,
            sizes=np.array(view.window, np.int32),
            ground_truth=self._pad(boxes[kept], example.labels[kept], example.is_crowd[kept]),
            index=np.int32(draw.row),
            example_mask=np.bool_(True),
            cut_away=np.int32((~kept).sum()),
        )

    def _view(
        self, draw: Draw, original: tuple[int, int]
    ) -> tuple[View, bool, np.random.Generator | None]:
        """What is shown, whether mirrored, and what further draws come from (None: there are none).

        A function of seed, epoch and row.
        """
        data, placement = self._data, self._placements[draw.row]
        if not self._augments:
            return whole(placement), False, None
        rng = np.random.default_rng((self._seed, 2, draw.epoch, draw.row))
        mirrored = bool(data.flip and rng.random() < 0.5)  # drawn first: the rest may be off
        if not data.train_short_sides and data.scale_range == (1.0, 1.0):
            return whole(placement), mirrored, rng
        view = draw_view(
            rng,
            original,
            self._buckets[placement.bucket],
            data.train_short_sides or (data.short_side,),
            data.long_side,
            data.scale_range,
            data.rounding,
        )
        return view, mirrored, rng

    def _pad(self, boxes: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray) -> GroundTruth:
        count, most = len(boxes), self._max_boxes
        truth = GroundTruth(
            boxes=np.zeros((most, 4), np.float32),
            labels=np.zeros(most, np.int32),
            valid=np.arange(most) < count,
            is_crowd=np.zeros(most, bool),
        )
        truth.boxes[:count] = boxes
        truth.labels[:count] = labels
        truth.is_crowd[:count] = is_crowd
        return truth


def _begin_worker(worker: int, workers: int) -> None:
    del worker, workers
    # Ctrl-C reaches every process of a terminal; the parent must be able to save
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handover.free_at_exit()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed program must not leave workers behind, and their memory with them."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _read_options() -> grain.ReadOptions:
    threads = min(16, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)


class TrainLoader:
    """Batches of a split from any step on; this host's rows of each."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        process: int = 0,
        processes: int = 1,
    ):
        check_split(split, config)
        self.split = split
        self._pictures = _Pictures(split, config, augments=True)
        placed = placements(split, config)
        # as the field says, crowds aside
        shown = split.object_counts > 0 if config.data.drop_empty else np.ones(len(split), bool)
        if not shown.any():
            raise UserError(
                f"config.data.drop_empty=True leaves no image of {split.label()}; set "
                "--config.data.drop_empty=False"
            )
        self.left_out = int((~shown).sum())
        """Images without a box that ``data.drop_empty`` keeps from training."""
        self.padding_share = padding_share(
            [p for p, show in zip(placed, shown, strict=True) if show], resolve(config).buckets
        )
        bucket_of = np.where(shown, [p.bucket for p in placed], -1)
        self.plan = TrainPlan(bucket_of, config.seed, config.train.batch_size)
        rows = config.train.batch_size // processes
        self._share = slice(process * rows, (process + 1) * rows)
        self._workers = config.data.num_workers

    def _read(self, step: int) -> Batch:
        bucket, draws = self.plan.batch_at(step)
        return self._pictures.batch(bucket, draws[self._share], shared=self._workers > 0)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to ``last_step - 1``, in order.

        Raises `UserError` for a picture that cannot be read, and `RunError` within seconds where a
        worker died.
        """
        # whole batches are the elements: workers share elements out in turn, and so keep the order
        steps = grain.MapDataset.range(first_step, last_step)
        batches = steps.map(self._read).to_iter_dataset(_read_options())
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags of its own in a program without
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(options, worker_init_fn=_begin_worker)
        iterator = iter(batches)
        try:
            for batch in iterator:
                yield handover.receive(batch)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            code = re.search(r"exit code (-?\d+)", str(error))
            raise RunError(
                f"a worker of the loader died (exit code {code[1] if code else 'unknown'}; -9 is "
                "most often want of memory, -7 a full /dev/shm); run the same command again, with "
                f"a lower --config.data.num_workers={self._workers} if it comes back"
            ) from None
        finally:
            iterator.close()  # ends the workers and frees what they had ready


class EvaluationLoader:
    """Every row of a split exactly once, in batches; this host's rows of each."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        process: int = 0,
        processes: int = 1,
    ):
        check_split(split, config)
        self._pictures = _Pictures(split, config, augments=False)
        placed = placements(split, config)
        self._batches = evaluation_batches(
            np.array([p.bucket for p in placed]), config.eval.batch_size
        )
        rows = config.eval.batch_size // processes
        self._share = slice(process * rows, (process + 1) * rows)

    def __len__(self) -> int:
        return len(self._batches)

    def _read(self, number: int) -> Batch:
        bucket, rows = self._batches[number]
        draws = [None if row is None else Draw(row, 0) for row in rows[self._share]]
        return self._pictures.batch(bucket, draws)

    def __iter__(self) -> Iterator[Batch]:
        numbers = grain.MapDataset.range(len(self._batches))
        return iter(numbers.map(self._read).to_iter_dataset(_read_options()))
