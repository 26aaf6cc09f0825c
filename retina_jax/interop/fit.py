"""Fits imported weights to the network of a config: classes, anchor order, missing layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from retina_jax.config import leaves, resolve
from retina_jax.config.shell import field_flag, field_value
from retina_jax.interop.graft import (
    BOX_LAYER,
    BOX_SCALES,
    CENTERNESS_LAYER,
    CLASS_LAYER,
    MisfitError,
    graft,
)
from retina_jax.interop.structure import box_outputs, class_outputs, flatten
from retina_jax.interop.weights import Imported

_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(i for i in range(1, 91) if i not in _GAPS)
"""The 80 category ids of COCO 2017."""
COCO_SLOTS = 91
"""Class outputs of torchvision's COCO models: ids up to 90, and 0 for background."""
STRUCTURE = (
    "backbone width norm fpn_channels p6_from head_convs head_channels head_norm "
    "class_specific_boxes centerness box_scale_per_level"
).split()


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights that fit the network, and a report of the changes."""

    tree: dict[str, Any]
    fresh: tuple[str, ...]
    """Arrays, or whole modules, that keep their random initialisation."""
    notes: tuple[str, ...]
    """Changes made to the weights, and assumptions."""
    differs: tuple[str, ...]
    """Warnings: fields that differ from those the weights were trained with, and the flags."""
    box_head: str = ""
    """How the box heads differ, with the flag; empty if the box layer was taken."""

    def report(self) -> list[str]:
        """The changes, one line each, without the warnings in ``differs``."""
        lines = list(self.notes)
        if self.fresh:
            lines.append(f"initialised randomly ({self._why()}): {', '.join(self.fresh)}")
        return lines

    def _why(self) -> str:
        layers = [CLASS_LAYER] if self.box_head else [CLASS_LAYER, BOX_LAYER]
        reasons = ["the classes differ"] * any(
            name.startswith(tuple(layers)) for name in self.fresh
        )
        reasons += [self.box_head] * bool(self.box_head)
        if reasons:
            return "; ".join(reasons)
        return "the weights contain only a backbone"


def fit(
    imported: Imported,
    fresh: dict[str, Any],
    config: ml_collections.ConfigDict,
    category_ids: Sequence[int],
    source: str,
    class_names: Sequence[str] = (),
) -> Fitted:
    """Replaces ``fresh``, the initial variables of the network of ``config``, by ``imported``.

    Args:
      category_ids: COCO category ids of the data set's classes, by label. If they are exactly
        COCO's 80, the 80 classes are selected from torchvision's 91 outputs.
      source: for messages.
      class_names: of the data set, by label. If the weights are known to have other classes, or
        the same in another order, the class layers keep their initial values.

    Raises `MisfitError` for weights that do not fit; the message lists fields that would.
    """
    fields = leaves(config)
    per_place = resolve(config).anchors_per_place
    tree, notes = imported.tree, []
    order = imported.expects.get("anchors.order")
    if order not in (None, config.anchors.order) and class_outputs(tree):
        tree = reorder_anchors(
            tree, len(config.anchors.octaves), len(config.anchors.ratios), config.anchors.order
        )
        notes.append(f"anchors reordered from {order} to {config.anchors.order}")
    if order is None and class_outputs(tree):
        notes.append(
            "the weights do not state the order of their anchors; assuming "
            f"config.anchors.order={config.anchors.order}"
        )
    required, outputs = class_outputs(fresh), class_outputs(tree)
    if (
        outputs == COCO_SLOTS * per_place
        and required == len(COCO_IDS) * per_place
        and set(category_ids) == set(COCO_IDS)
    ):
        tree = take_classes(tree, category_ids, COCO_SLOTS)
        notes.append("selected COCO's 80 classes from 91 class outputs")
    box_head = _other_box_head(imported, config)
    try:
        of_classes, may_lack = _layers_of_classes(tree, required, config), ()
        if box_head:  # the scales of the levels multiply the outputs of the other layer
            of_classes, may_lack = (CLASS_LAYER, BOX_LAYER), (BOX_SCALES,)
            tree = _without(tree, BOX_SCALES)
        merged, unmatched = graft(fresh, tree, source, imported.unknown, of_classes, may_lack)
        if _are_others(imported.classes, category_ids, class_names):
            layers = _all_layers_of_classes(config)
            merged, unmatched = _with_fresh(merged, fresh, unmatched, layers)
    except MisfitError as error:
        flags = [
            f"--config.model.{name}={imported.expects[field]}"
            for name in STRUCTURE
            if (field := f"model.{name}") in imported.expects
            and not _agree(field, imported.expects[field], fields.get(field))
        ]
        advice = f"set {' '.join(flags)} for this {imported.system}; " if flags else ""
        raise MisfitError(source, error.wrong, advice) from None
    differs = [
        f"the weights were trained with {field}={field_value(value)}, but the config has "
        f"{field_value(fields[field])}; set {field_flag(field, value)}"
        for field, value in imported.expects.items()
        if field in fields and field != "anchors.order" and not _agree(field, value, fields[field])
        and (class_outputs(tree) or not field.startswith(("anchors.", "coder.")))
    ]  # fmt: skip
    return Fitted(merged, tuple(unmatched), tuple(notes), tuple(differs), box_head)


def _are_others(
    classes: Sequence[tuple[int, str]] | None, category_ids: Sequence[int], names: Sequence[str]
) -> bool:
    """Whether the weights are known to have other classes than the data set."""
    if classes is None or not names:
        return False
    return list(classes) != [(int(i), str(n)) for i, n in zip(category_ids, names, strict=True)]


def _all_layers_of_classes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return (CLASS_LAYER, BOX_LAYER) if config.model.class_specific_boxes else (CLASS_LAYER,)


def _with_fresh(
    merged: dict[str, Any], fresh: dict[str, Any], unmatched: Sequence[str], layers: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """``merged`` with ``layers`` from ``fresh``, and the names of all arrays from ``fresh``."""
    flat = flatten(fresh)
    taken = {name: value for name, value in flat.items() if name.startswith(layers)}
    tree = flax.traverse_util.unflatten_dict({**flatten(merged), **taken}, sep="/")
    return {**fresh, **tree}, list(dict.fromkeys([*unmatched, *taken]))


def _layers_of_classes(
    tree: dict[str, Any], required: int | None, config: ml_collections.ConfigDict
) -> tuple[str, ...]:
    """Layers whose shape depends on the number of classes.

    Includes the box layer if both networks predict one box per class.
    """
    outputs = class_outputs(tree)
    if not config.model.class_specific_boxes or outputs in (None, required):
        return (CLASS_LAYER,)
    resolved = resolve(config)
    boxes = outputs - resolved.background_logits * resolved.anchors_per_place
    return (CLASS_LAYER, BOX_LAYER) if box_outputs(tree) == 4 * boxes else (CLASS_LAYER,)


def _other_box_head(imported: Imported, config: ml_collections.ConfigDict) -> str:
    """How the box heads differ, if only one predicts distributions, or both with other bins."""
    if class_outputs(imported.tree) is None:
        return ""
    there, here = imported.expects.get("loss.dfl_bins", 0), resolve(config).box_bins
    if there == here:
        return ""
    flags = (
        f"{field_flag('loss.box', 'dfl')} {field_flag('loss.dfl_bins', there)}"
        if there
        else f"{field_flag('loss.box', 'giou')} or another loss of deltas"
    )
    return (
        f"the box head of the weights predicts {4 * (there + 1)} values per box, this one "
        f"{4 * (here + 1)}; to keep it, set {flags}"
    )


def _without(tree: dict[str, Any], start: str) -> dict[str, Any]:
    kept = {name: value for name, value in flatten(tree).items() if not name.startswith(start)}
    return {**tree, **flax.traverse_util.unflatten_dict(kept, sep="/")}


def reorder_anchors(tree: dict[str, Any], octaves: int, ratios: int, order: str) -> dict[str, Any]:
    """The predicting layers of the heads with the anchors of a cell in ``order``, from the other.

    A layer whose outputs are not a multiple of the number of anchors is unchanged.
    """
    rows, columns = (ratios, octaves) if order == "size_major" else (octaves, ratios)

    def reorder(value: np.ndarray) -> np.ndarray:
        lead, outputs = value.shape[:-1], value.shape[-1]
        if outputs % (rows * columns):
            return value
        value = value.reshape(*lead, rows, columns, -1)
        return np.ascontiguousarray(value.swapaxes(-3, -2)).reshape(*lead, outputs)

    return _map_predictions(tree, (CLASS_LAYER, BOX_LAYER, CENTERNESS_LAYER), reorder)


def take_classes(tree: dict[str, Any], ids: Sequence[int], slots: int) -> dict[str, Any]:
    """Selects the classes ``ids``, in this order, from a class layer with ``slots`` classes.

    Also selects in the box layer if it has a box per class.
    """
    of_slots = box_outputs(tree) == 4 * class_outputs(tree)

    def take(value: np.ndarray, numbers: int) -> np.ndarray:
        lead = value.shape[:-1]
        value = value.reshape(*lead, -1, slots, numbers)[..., list(ids), :]
        return np.ascontiguousarray(value).reshape(*lead, -1)

    taken = _map_predictions(tree, (CLASS_LAYER,), lambda value: take(value, 1))
    return (
        _map_predictions(taken, (BOX_LAYER,), lambda value: take(value, 4)) if of_slots else taken
    )


def _map_predictions(tree, layers: tuple[str, ...], change) -> dict[str, Any]:
    flat = {
        name: change(np.asarray(value)) if name.startswith(layers) else value
        for name, value in flatten(tree).items()
    }
    return {**tree, **flax.traverse_util.unflatten_dict(flat, sep="/")}


def _agree(field: str, one: Any, other: Any) -> bool:
    if field == "model.norm":  # frozen and batch share their names
        return (one == "group") == (other == "group")
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(
            _agree(field, a, b) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
