"""Fits a config to a data set: image sizes, anchors, ``max_boxes`` and the length of the run.

Reads only the index of the data set. Every process of a run computes the same values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

import ml_collections
import numpy as np

from retina_jax.config import resolve
from retina_jax.config.shell import field_flag
from retina_jax.config.values import changed_config
from retina_jax.data.data_set import Split
from retina_jax.data.loader import check_not_empty, placements
from retina_jax.data.plan import padding_share
from retina_jax.doctor.anchor_advice import ANCHORS, anchors_matter, fitted_anchors
from retina_jax.doctor.buckets import bucket_rows
from retina_jax.doctor.checks import percent
from retina_jax.doctor.contents import read_contents, spread_rows
from retina_jax.doctor.fit_anchors import ENOUGH
from retina_jax.doctor.fit_sizes import fit_sizes
from retina_jax.doctor.fit_steps import fit_schedule, fit_steps
from retina_jax.doctor.reach import Boxes, reach_of
from retina_jax.wording import counted

_SIZES = ("data.short_side", "data.long_side", "data.buckets")
_SCHEDULE = (
    "eval.every", "train.checkpoint_every", "optimizer.warmup_steps", "optimizer.decay_at"
)  # fmt: skip
FITTED = (*_SIZES, *ANCHORS, "data.max_boxes", "train.steps", *_SCHEDULE)
"""The fields that ``data.fit`` chooses, unless they are set."""
_MOST_ROWS = 20_000  # images whose boxes are read
_ROUND = 8  # boxes: max_boxes is a multiple
_LARGER = (2, 4, 8, 16)  # times the pixel budget, tried if boxes are out of reach


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fields chosen for a data set, and why."""

    fields: dict[str, Any]
    lines: tuple[str, ...] = ()
    """For the user: the fields as flags, each with its reason."""


def fit(train: Split, evaluation: Split, config: ml_collections.ConfigDict, free: Set[str]) -> Fit:
    """Values for the ``free`` ones of the fields in `FITTED`; ``config`` holds the others.

    Raises `UserError` for a training split without images.
    """
    check_not_empty(train)
    fields: dict[str, Any] = {}
    lines = []
    turned = bool(config.data.get("turn", False))
    if sizes := _fit_sizes(train, config, free, config.data.pixel_budget, turned):
        fields |= sizes
        lines.append(flags(sizes) + ": " + _about_sizes(train, changed_config(config, fields)))
    if free & set(ANCHORS) and not anchors_matter(config):
        lines.append(
            "anchors: unchanged, because with matching.kind=atss each box sets its own threshold, "
            "whatever the size and number of the anchors"
        )
    elif free & set(ANCHORS) and len((boxes := _boxes_of(train)).rows):
        sized = changed_config(config, fields)
        anchors = fitted_anchors(boxes, sized, free)
        fields |= anchors
        lines += _about_anchors(boxes, sized, anchors, free, turned)
    if "data.max_boxes" in free:
        most = max(int(s.box_counts.max(initial=0)) for s in (train, evaluation))
        limit = {"data.max_boxes": max(_ROUND, -(-most // _ROUND) * _ROUND)}
        fields |= limit
        lines.append(f"{flags(limit)}: the most on one image are {most}")
    if "train.steps" in free:
        fields["train.steps"] = fit_steps(len(train), config.train.batch_size)
    schedule = fit_schedule(changed_config(config, fields), free)
    fields |= schedule
    timed = {n: v for n, v in fields.items() if n == "train.steps" or n in schedule}
    if timed:
        train_of = changed_config(config, fields).train
        steps = counted(f"{train_of.steps:,}", "step")
        epochs = f"{train_of.steps * train_of.batch_size / len(train):.3g}"
        lines.append(
            f"{flags(timed)}: {steps} of {train_of.batch_size} are "
            f"{counted(epochs, 'epoch')} of {counted(len(train), 'image')}"
        )
    return Fit({name: fields[name] for name in FITTED if name in fields}, tuple(lines))


def flags(fields: dict[str, Any]) -> str:
    """The fields as flags, quoted for a shell."""
    return " ".join(field_flag(name, value) for name, value in fields.items())


def _boxes_of(split: Split) -> Boxes:
    contents = read_contents(split, spread_rows(split, _MOST_ROWS), index_only=True)
    known = (contents.labels >= 0) & (contents.labels < len(split.class_names))
    places = np.flatnonzero(contents.sound & known)
    return Boxes(split, contents.row_of[places], contents.cut[places], contents.labels[places])


def _fit_sizes(
    split: Split, config: ml_collections.ConfigDict, free: Set[str], budget: int, turned: bool
) -> dict[str, Any]:
    data = config.data
    kept = {name: data[name.partition(".")[2]] for name in _SIZES if name not in free}
    if len(kept) == len(_SIZES):
        return {}
    short = kept.get("data.short_side", 0)
    if data.train_short_sides:  # the buckets must have room for the largest
        short = max(short, *(round(side) for side in data.train_short_sides))
    chosen = fit_sizes(
        split.sizes,
        budget,
        config.train.batch_size,
        short,
        kept.get("data.long_side", 0),
        tuple(kept.get("data.buckets", ())),
        turned,
    )
    values = zip(_SIZES, (chosen.short_side, chosen.long_side, chosen.buckets), strict=True)
    return {name: value for name, value in values if name in free}


def _about_sizes(split: Split, config: ml_collections.ConfigDict) -> str:
    placed, buckets = placements(split, config), resolve(config).buckets
    rows = bucket_rows(split, placed, config)
    shares = ", ".join(
        f"{row.height}×{row.width} for {percent(row.images / len(split))} of the images"
        for row in rows
    )
    low, high = (
        min(r.least_scale for r in rows if r.images),
        max(r.largest_scale for r in rows if r.images),
    )
    scales = f"{low:.3g}" if round(low, 3) == round(high, 3) else f"{low:.3g} to {high:.3g}"
    return f"{shares}; scaled by {scales}; {percent(padding_share(placed, buckets))} padding"


def _about_anchors(
    boxes: Boxes,
    config: ml_collections.ConfigDict,
    anchors: dict[str, Any],
    free: Set[str],
    turned: bool,
) -> list[str]:
    """The reached recall and, if it is too low, the boxes out of reach and a remedy."""
    before = reach_of(boxes, config)
    reached = reach_of(boxes, changed_config(config, anchors))
    lines = [
        f"{flags(anchors)}: {percent(reached.overall)} of {counted(len(boxes.rows), 'box')} "
        f"within reach of an anchor at IoU {config.matching.foreground_iou:g} "
        f"({percent(before.overall)} without the fit)"
    ]
    if reached.is_enough:
        return lines
    names, missed = boxes.split.class_names, ~reached.matched
    shown = boxes.at_input(config).boxes
    sides = np.sqrt((shown[:, 2:] - shown[:, :2]).prod(axis=1))
    listed = []
    counts = np.bincount(boxes.labels[missed], minlength=len(names))
    low = [label for label, recall in reached.by_class.items() if recall < ENOUGH]
    low = low or np.flatnonzero(counts).tolist()
    for label in sorted(low, key=lambda label: (-counts[label], label))[:5]:
        mine = missed & (boxes.labels == label)
        listed.append(
            f"{names[label]} ({int(mine.sum())} boxes, median side {np.median(sides[mine]):.3g} px "
            "at the input)"
        )
    lines.append(f"out of reach: {', '.join(listed)}; {_remedy(boxes, config, free, turned)}")
    return lines


def _remedy(boxes: Boxes, config: ml_collections.ConfigDict, free: Set[str], turned: bool) -> str:
    """The smallest pixel budget that brings enough boxes within reach."""
    budget = config.data.pixel_budget
    for factor in _LARGER:
        sizes = _fit_sizes(boxes.split, config, free, factor * budget, turned)
        larger = changed_config(config, sizes)
        reached = reach_of(boxes, changed_config(larger, fitted_anchors(boxes, larger, free)))
        if reached.is_enough:
            flag = field_flag("data.pixel_budget", factor * budget)
            return f"{flag} ({factor} times the pixels) reaches {percent(reached.overall)}"
    return f"no budget up to {_LARGER[-1]} times as large reaches {percent(ENOUGH)}"
