"""Fit imported weights to the network of a config: classes, anchor order, what stays fresh."""

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
from retina_jax.interop.graft import BOX_LAYER, CLASS_LAYER, MisfitError, graft
from retina_jax.interop.structure import box_outputs, class_outputs, flatten
from retina_jax.interop.weights import Imported

_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(i for i in range(1, 91) if i not in _GAPS)
"""The 80 category ids of COCO 2017."""
COCO_SLOTS = 91
"""Outputs of torchvision's COCO models: one for every id up to 90, and 0 for the background."""
STRUCTURE = (
    "backbone width norm fpn_channels p6_from head_convs head_channels head_norm "
    "class_specific_boxes"
).split()


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights in the shape of the network, and what was done to them."""

    tree: dict[str, Any]
    fresh: tuple[str, ...]
    """Arrays, or whole groups, that stayed as they were initialised."""
    notes: tuple[str, ...]
    """What was taken otherwise than as it stood."""
    differs: tuple[str, ...]
    """Fields whose value is not the one that the weights were made for, with the flag."""

    def report(self) -> list[str]:
        """What was done, a line each; ``differs`` are for the user to heed."""
        lines = list(self.notes)
        if self.fresh:
            lines.append(f"fresh: {', '.join(self.fresh)}{self._why()}")
        return lines

    def _why(self) -> str:
        if any(name.startswith((CLASS_LAYER, BOX_LAYER)) for name in self.fresh):
            return " (the classes differ)"
        return " (the weights are of a backbone alone)"


def fit(
    imported: Imported,
    fresh: dict[str, Any],
    config: ml_collections.ConfigDict,
    category_ids: Sequence[int],
    source: str,
    class_names: Sequence[str] = (),
) -> Fitted:
    """``imported`` instead of ``fresh``, the variables of the network that ``config`` makes.

    Args:
      class_names: of the data set, by label; where the weights are known to be of others (or of
        the same in another order), the layers of classes stay fresh.
      category_ids: COCO's own ids of the data set's classes, in the order of its labels; with
        exactly COCO's 80 they are taken out of torchvision's 91 slots.
      source: for messages.

    Raises `MisfitError` for what does not fit; its message says which fields of the config would.
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
            "the weights do not say the order of their anchors: taken as "
            f"config.anchors.order={config.anchors.order}"
        )
    wanted, given = class_outputs(fresh), class_outputs(tree)
    if (
        given == COCO_SLOTS * per_place
        and wanted == len(COCO_IDS) * per_place
        and set(category_ids) == set(COCO_IDS)
    ):
        tree = take_classes(tree, category_ids, COCO_SLOTS)
        notes.append("80 of 91 classes taken: the slots of COCO's category ids")
    try:
        of_classes = _layers_of_classes(tree, wanted, config)
        merged, stayed = graft(fresh, tree, source, imported.unknown, of_classes)
        if _are_others(imported.classes, category_ids, class_names):
            merged, stayed = _with_fresh(merged, fresh, stayed, _all_layers_of_classes(config))
    except MisfitError as error:
        flags = [
            f"--config.model.{name}={imported.expects[field]}"
            for name in STRUCTURE
            if (field := f"model.{name}") in imported.expects
            and not _agree(field, imported.expects[field], fields.get(field))
        ]
        advice = f"its {imported.system} wants {' '.join(flags)}; " if flags else ""
        raise MisfitError(source, error.wrong, advice) from None
    differs = [
        f"these weights were made with {field}={field_value(value)}, the config has "
        f"{field_value(fields[field])}; set {field_flag(field, value)}"
        for field, value in imported.expects.items()
        if field in fields and field != "anchors.order" and not _agree(field, value, fields[field])
        and (class_outputs(tree) or not field.startswith(("anchors.", "coder.")))
    ]  # fmt: skip
    return Fitted(merged, tuple(stayed), tuple(notes), tuple(differs))


def _are_others(
    classes: Sequence[tuple[int, str]] | None, category_ids: Sequence[int], names: Sequence[str]
) -> bool:
    """Whether weights are known to be of other classes than the data set's."""
    if classes is None or not names:
        return False
    return list(classes) != [(int(i), str(n)) for i, n in zip(category_ids, names, strict=True)]


def _all_layers_of_classes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return (CLASS_LAYER, BOX_LAYER) if config.model.class_specific_boxes else (CLASS_LAYER,)


def _with_fresh(
    merged: dict[str, Any], fresh: dict[str, Any], unmatched: Sequence[str], layers: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """``merged`` with the arrays of ``layers`` out of ``fresh``, and all names that stay fresh."""
    flat = flatten(fresh)
    taken = {name: value for name, value in flat.items() if name.startswith(layers)}
    tree = flax.traverse_util.unflatten_dict({**flatten(merged), **taken}, sep="/")
    return {**fresh, **tree}, list(dict.fromkeys([*unmatched, *taken]))


def _layers_of_classes(
    tree: dict[str, Any], wanted: int | None, config: ml_collections.ConfigDict
) -> tuple[str, ...]:
    """Layers that another number of classes alone makes another shape.

    The last one of the boxes too, where both networks have a box for each class.
    """
    given = class_outputs(tree)
    if not config.model.class_specific_boxes or given in (None, wanted):
        return (CLASS_LAYER,)
    resolved = resolve(config)
    boxes = given - resolved.background_logits * resolved.anchors_per_place
    return (CLASS_LAYER, BOX_LAYER) if box_outputs(tree) == 4 * boxes else (CLASS_LAYER,)


def reorder_anchors(tree: dict[str, Any], octaves: int, ratios: int, order: str) -> dict[str, Any]:
    """The predicting layers of both heads with the anchors of a place in the other ``order``.

    Without effect where the layer's outputs are not a multiple of the anchors.
    """
    rows, columns = (ratios, octaves) if order == "size_major" else (octaves, ratios)

    def reorder(value: np.ndarray) -> np.ndarray:
        lead, outputs = value.shape[:-1], value.shape[-1]
        if outputs % (rows * columns):
            return value
        value = value.reshape(*lead, rows, columns, -1)
        return np.ascontiguousarray(value.swapaxes(-3, -2)).reshape(*lead, outputs)

    return _map_predictions(tree, ("class_head", "box_head"), reorder)


def take_classes(tree: dict[str, Any], ids: Sequence[int], slots: int) -> dict[str, Any]:
    """The class layer with the classes ``ids`` alone, in their order, out of ``slots``.

    The box layer too, where it has a box for each slot.
    """
    of_slots = box_outputs(tree) == 4 * class_outputs(tree)

    def take(value: np.ndarray, numbers: int) -> np.ndarray:
        lead = value.shape[:-1]
        value = value.reshape(*lead, -1, slots, numbers)[..., list(ids), :]
        return np.ascontiguousarray(value).reshape(*lead, -1)

    taken = _map_predictions(tree, ("class_head",), lambda value: take(value, 1))
    return (
        _map_predictions(taken, ("box_head",), lambda value: take(value, 4)) if of_slots else taken
    )


def _map_predictions(tree, heads: tuple[str, ...], change) -> dict[str, Any]:
    layers = tuple(f"params/{head}/predict/" for head in heads)
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
