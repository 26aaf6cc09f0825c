"""Which boxes the configured anchors reach, by the rule of ``matching.kind``, and its words."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool, Float

from retina_jax.config import resolve
from retina_jax.doctor.anchor_recall import InputBoxes
from retina_jax.ops.anchors import pyramid_anchors, pyramid_grids
from retina_jax.ops.atss import atss_candidates

_CHUNK = 1024  # boxes per call of the compiled program


@dataclasses.dataclass(frozen=True)
class Rule:
    """What makes a box matched, or nearly so, in the words of reports."""

    matched: str
    """Heading of the share of matched boxes."""
    nearly: str
    plot: str
    """Legend of the matched boxes in plots."""
    are_matched: str
    """Predicate: "have an anchor with IoU 0.5 or more"."""
    are_nearly: str
    and_nearly: str
    """The same, after `are_matched`."""
    hopeless: str
    """What to do if no change of the anchors or the input helps."""
    facts: dict[str, Any]
    """For the report as JSON."""


def rule_of(config: ml_collections.ConfigDict) -> Rule:
    """The rule of a config's ``matching`` group."""
    matching = config.matching
    if matching.kind == "atss":
        return Rule(
            matched="ATSS",
            nearly="centre inside",
            plot="has positive anchors by ATSS",
            are_matched="have a positive anchor by ATSS",
            are_nearly="have the centre of an anchor inside",
            and_nearly="have the centre of an anchor inside",
            hopeless="boxes narrower than the stride of P3, 8 px, can lie between the centres of "
            "anchors; raise --config.data.short_side and --config.data.long_side",
            facts={"kind": "atss", "atss_candidates": matching.atss_candidates},
        )
    foreground, background = matching.foreground_iou, matching.background_iou
    return Rule(
        matched=f"IoU {foreground:g}",
        nearly=f"IoU {background:g}",
        plot=f"best anchor has IoU {foreground:g} or more",
        are_matched=f"have an anchor with IoU {foreground:g} or more",
        are_nearly=f"have an anchor with IoU {background:g} or more",
        and_nearly=f"with {background:g}",
        hopeless="none of the tried changes to the anchors or the input size helps",
        facts={"kind": "iou", "foreground_iou": foreground, "background_iou": background},
    )


def reached(
    shown: InputBoxes, iou: Float[np.ndarray, "n"], config: ml_collections.ConfigDict
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Whether each box is matched, and whether it is nearly so.

    ``iou``: of each box with its best anchor. By ATSS, a box is matched if it gets a positive
    anchor when it is alone on its image, and nearly so if the centre of an anchor lies inside.
    """
    matching = config.matching
    if matching.kind == "iou":
        return iou >= matching.foreground_iou, iou >= matching.background_iou
    matched, nearly = np.zeros(len(iou), bool), np.zeros(len(iou), bool)
    for number, bucket in enumerate(resolve(config).buckets):
        members = np.flatnonzero(shown.bucket == number)
        if not len(members):
            continue
        anchors = np.concatenate(pyramid_anchors(bucket, **config.anchors))
        grids = pyramid_grids(bucket)

        @jax.jit
        def find(boxes, anchors=anchors, grids=grids):
            found = atss_candidates(anchors, boxes, grids, matching.atss_candidates)
            return found.positive.any(axis=1), found.inside.any(axis=1)

        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            boxes = np.zeros((_CHUNK, 4), np.float32)
            boxes[: len(chunk)] = shown.boxes[chunk]
            positive, inside = (np.asarray(x)[: len(chunk)] for x in find(boxes))
            matched[chunk], nearly[chunk] = positive, inside
    return matched, nearly
