"""What can be wrong with a data set: each check looks for one thing and says it in a line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import Int

from retina_jax.data.data_set import Split
from retina_jax.doctor.contents import Contents
from retina_jax.doctor.picture_hash import repeats, same_bytes, same_pictures

LEVELS = ("error", "warning", "note")
NEAR_IDENTICAL = 0.95
"""IoU of two boxes of a class that are most likely one, annotated twice."""
_MOST_NEIGHBOURS = 2000  # boxes a box is compared with; 100,000 on one image must not take for ever
_LEAST_FOR_UNITS = 10  # boxes
_MANY_CROWDS = 0.5
"""Share of boxes from which it is worth a warning that they are ignored."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found, in a line that names it and the fix."""

    level: str
    """error (training would be meaningless), warning or note."""
    check: str
    message: str


def percent(share: float) -> str:
    """For messages: never 100 % of what is not whole, nor 0 % of what is there."""
    if 0.9995 <= share < 1:
        return ">99.9 %"
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.3g} %"


def check_numbers(split: Split, config: ml_collections.ConfigDict, trains: bool) -> list[Finding]:
    """No objects at all, or more boxes on an image than are kept; from the index alone."""
    found = _check_objects(split, trains)
    most = int(split.box_counts.max(initial=0))
    if trains and most > config.data.max_boxes:  # evaluation keeps every box
        image = int(split.image_ids[int(split.box_counts.argmax())])
        message = (
            f"{split.name}: image {image} has {most} boxes, config.data.max_boxes="
            f"{config.data.max_boxes}; set --config.data.max_boxes={most}"
        )
        found.append(Finding("error", "max_boxes", message))
    return found


def _check_objects(split: Split, trains: bool) -> list[Finding]:
    """Splits and classes without an object: crowds are ignored, so nothing is learnt from them."""
    boxes, objects = int(split.box_counts.sum()), int(split.object_counts.sum())
    level, what = ("error", "nothing can be learned") if trains else ("warning", "it has no AP")
    if not boxes:
        message = f"{split.name}: no box on {len(split)} images: {what}; prepare it with its boxes"
        return [Finding(level, "boxes", message)]
    if not objects:
        message = (
            f"{split.name}: all {boxes} boxes are crowds (or difficult, or ignored), which "
            f"training ignores: {what}; prepare it with objects"
        )
        return [Finding(level, "boxes", message)]
    found = []
    if boxes - objects > _MANY_CROWDS * boxes:
        message = (
            f"{split.name}: {percent((boxes - objects) / boxes)} of {boxes} boxes are crowds (or "
            "difficult, or ignored): training ignores them"
        )
        found.append(Finding("warning", "boxes", message))
    counts = split.label_counts() if trains else None
    if counts is not None:
        only_crowds = (counts[0] == 0) & (counts[1] > 0)
        if only_crowds.any():
            names = [split.class_names[i] for i in np.flatnonzero(only_crowds)]
            message = (
                f"{split.name}: every box of class {', '.join(names[:8])} is a crowd (or "
                "difficult, or ignored): nothing can be learned of it; prepare it with objects or "
                "without it"
            )
            found.append(Finding("error", "boxes", message))
    return found


def check_image_ids(split: Split, scores: bool) -> list[Finding]:
    """Ids that two images bear; in the eval split results could not be told apart."""
    ids, counts = np.unique(split.image_ids, return_counts=True)
    twice = ids[counts > 1]
    if not len(twice):
        return []
    listed = ", ".join(str(int(i)) for i in twice[:3])
    message = (
        f"{split.name}: {len(twice)} image ids stand for several images (such as {listed}); "
        "give every image an id of its own and prepare it anew"
    )
    return [Finding("error" if scores else "warning", "image_ids", message)]


def check_category_ids(split: Split) -> list[Finding]:
    """Category ids that do not run on: nothing wrong, and good to know."""
    ids = sorted(split.category_ids)
    if not ids or ids == list(range(ids[0], ids[0] + len(ids))):
        return []
    message = (
        f"category ids run from {ids[0]} to {ids[-1]} with gaps, for {len(ids)} classes; labels "
        "are 0, 1, … in their order, detections.json bears the ids"
    )
    return [Finding("note", "category_ids", message)]


def check_labels(contents: Contents) -> list[Finding]:
    """Labels that are no class."""
    classes = len(contents.split.class_names)
    outside = (contents.labels < 0) | (contents.labels >= classes)
    rows = np.concatenate([contents.unlabelled, contents.row_of[outside]])
    if not len(rows):
        return []
    bad = contents.labels[outside]
    which = f" (such as {int(bad[0])})" if len(bad) else ""
    message = (
        f"{contents.split.name}: labels{which} outside 0 to {classes - 1} on "
        f"{contents.names(rows)}; prepare the data set anew with all its classes"
    )
    return [Finding("error", "labels", message)]


def check_units(contents: Contents) -> list[Finding]:
    """Coordinates in another unit or form than pixels, xywh, as the boxes stored betray it."""
    name, boxes = contents.split.name, contents.boxes[np.isfinite(contents.boxes).all(axis=1)]
    if len(boxes) < _LEAST_FOR_UNITS:
        return []
    within = float((np.abs(boxes).max(axis=1) <= 1.5).mean())
    if within > 0.95:
        message = (
            f"{name}: {percent(within)} of {len(boxes)} boxes lie within 1.5 pixels of the corner: "
            "normalised coordinates where pixels are expected; multiply them by width and height "
            "and prepare it anew"
        )
        return [Finding("error", "units", message)]
    finite = np.isfinite(contents.boxes).all(axis=1)
    sizes = contents.split.sizes[contents.row_of[finite]].astype(np.float64)
    beyond = float((boxes[:, 2:] > 2 * sizes[:, ::-1]).any(axis=1).mean())
    if beyond > 0.5:
        message = (
            f"{name}: {percent(beyond)} of {len(boxes)} boxes end beyond twice their picture: "
            "coordinates in another unit or of another size of the pictures; prepare it anew"
        )
        return [Finding("error", "units", message)]
    return _corners_taken_for_sizes(name, boxes, sizes)


def _corners_taken_for_sizes(name: str, boxes: np.ndarray, sizes: np.ndarray) -> list[Finding]:
    """xyxy read as xywh: x2 stands for the width, so ``x + x2`` passes 2x or the border."""
    start, end, border = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1]
    at_border = end >= border - 1
    fits = at_border | (end - start >= start)  # true of every such box, whatever was annotated
    telling = start >= border / 4  # a box at the left or top would fit by chance
    count, share = int(telling.sum()), 0.0
    if count >= _LEAST_FOR_UNITS:
        share = float(at_border[telling].mean())
    if count < _LEAST_FOR_UNITS or fits.mean() < 0.98 or share < 0.5:
        return []
    message = (
        f"{name}: boxes run on to the right or bottom border ({percent(share)} of those that begin "
        "beyond a quarter): [x1, y1, x2, y2] where [x, y, width, height] is expected; convert them "
        "and prepare it anew"
    )
    return [Finding("error", "units", message)]


def check_shapes(contents: Contents) -> list[Finding]:
    """Boxes that are not finite, have no area, or lie outside their picture."""
    boxes = contents.boxes
    finite = np.isfinite(boxes).all(axis=1)
    area = finite & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    left = (contents.cut[:, 2:] > contents.cut[:, :2]).all(axis=1)
    crosses = (np.abs(contents.cut - boxes) > 0.5).any(axis=1)  # half a pixel: tools round
    found = []
    for mask, what, fate in (
        (~finite, "not finite", "training drops them"),
        (finite & ~area, "of no area", "training drops them"),
        (area & ~left, "wholly outside their picture", "training drops them"),
        (area & left & crosses, "partly outside their picture", "training cuts them to it"),
    ):
        count = int(mask.sum())
        if count:
            message = (
                f"{contents.split.name}: {count} of {len(boxes)} boxes are {what}, on "
                f"{contents.names(contents.row_of[mask])}; {fate}"
            )
            useless = count > len(boxes) / 2 and "drops" in fate
            found.append(Finding("error" if useless else "warning", "box_shapes", message))
    return found


def near_identical(contents: Contents) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of boxes of one class on one image whose IoU passes `NEAR_IDENTICAL`; crowds aside.

    With x1 ascending a pair needs ``x1' - x1 <= (1 - NEAR_IDENTICAL) · width``, so each box is
    compared with the few that follow it, all images at once.
    """
    places = np.flatnonzero(contents.sound)
    x1 = contents.boxes[places, 0]
    order = np.lexsort((x1, contents.labels[places], contents.row_of[places]))
    places = places[order]
    boxes = contents.boxes[places]
    group = contents.row_of[places] * (int(contents.labels.max(initial=0)) + 1)
    group = group + contents.labels[places]
    reach = boxes[:, 0] + (1 - NEAR_IDENTICAL) * (boxes[:, 2] - boxes[:, 0])
    alive, pairs = np.arange(len(places)), []
    for shift in range(1, _MOST_NEIGHBOURS):
        alive = alive[alive + shift < len(places)]
        other = alive + shift
        alive = alive[(group[other] == group[alive]) & (boxes[other, 0] <= reach[alive])]
        if not len(alive):
            break
        same = _iou(boxes[alive], boxes[alive + shift]) > NEAR_IDENTICAL
        pairs.append(np.stack([places[alive[same]], places[alive[same] + shift]], axis=1))
    return np.concatenate([np.zeros((0, 2), np.int64), *pairs])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of boxes of area, pair by pair."""
    shared = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(shared, 0).prod(axis=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def check_near_identical(contents: Contents) -> list[Finding]:
    """Objects annotated twice."""
    pairs = near_identical(contents)
    if not len(pairs):
        return []
    first = pairs[0, 0]
    box = ", ".join(f"{v:g}" for v in contents.boxes[first])
    message = (
        f"{contents.split.name}: {len(pairs)} pairs of boxes of one class overlap by more than IoU "
        f"{NEAR_IDENTICAL} on {contents.names(contents.row_of[pairs[:, 0]])}, such as [{box}] on "
        f"{contents.name(int(contents.row_of[first]))}: annotated twice?"
    )
    return [Finding("warning", "near_identical", message)]


def check_classes(contents: Contents, trains: bool) -> list[Finding]:
    """Classes with no box or hardly any."""
    split = contents.split
    labels = contents.labels[contents.sound]
    counts = np.bincount(labels[(labels >= 0) & (labels < len(split.class_names))],
                         minlength=len(split.class_names))  # fmt: skip

    def named(chosen: np.ndarray) -> str:
        names = [split.class_names[i] for i in np.flatnonzero(chosen)]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    found = []
    if not counts.any():
        return found
    if (counts == 0).any():
        fate = "it can never be detected" if trains else "it has no AP"
        message = f"{split.name}: no box of class {named(counts == 0)}: {fate}"
        found.append(Finding("warning" if trains else "note", "classes", message))
    few = (counts > 0) & (counts < 10)
    if trains and few.any():
        message = f"{split.name}: fewer than 10 boxes of class {named(few)}"
        found.append(Finding("note", "classes", message))
    return found


def check_prepare_report(directory: Path) -> list[Finding]:
    """What prepare mended and found, from its own report."""
    path = directory / "prepare_report.json"
    try:
        report = json.loads(path.read_text())
        lines = {split: dict(counts) for split, counts in report.items()}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, TypeError):
        return [Finding("note", "prepare", f"{path} cannot be read")]
    found = []
    for split, counts in lines.items():
        total = counts.get("boxes", 0)
        for what, count in counts.items():
            if what in ("images", "boxes") or not count:
                continue
            lost = "dropped" in what or "cut" in what or "outside" in what
            often = lost and isinstance(total, int) and isinstance(count, int)
            often = often and count > 0.05 * (total + count)
            message = f"{split}: prepare found {count} {what}"
            found.append(Finding("warning" if often else "note", "prepare", message))
    return found


def check_pictures(contents: Contents) -> list[Finding]:
    """Pictures that cannot be decoded, and those that stand in a split twice."""
    split, found = contents.split, []
    bad = contents.rows[[not picture.readable for picture in contents.pictures]]
    if len(bad):
        message = f"{split.name}: {len(bad)} pictures cannot be decoded: {contents.names(bad)}"
        found.append(Finding("error", "pictures", message + "; prepare it anew"))
    pairs = repeats(contents.pictures)
    if len(pairs):
        example = " = ".join(contents.name(int(contents.rows[p])) for p in pairs[0])
        message = f"{split.name}: {len(pairs)} pictures stand there more than once ({example})"
        found.append(Finding("warning", "pictures", message))
    return found


def check_leaks(train: Contents, evaluation: Contents) -> list[Finding]:
    """Pictures of the eval split that training sees too: the scores would flatter."""
    equal = same_bytes(train.pictures, evaluation.pictures)
    alike = same_pictures(train.pictures, evaluation.pictures)
    alike = alike[~np.isin(alike[:, 1], equal[:, 1])]
    total = len(evaluation.pictures)
    found = []
    for pairs, how in (
        (equal, "byte for byte"),
        (alike, "as good as the same (resized, encoded anew)"),
    ):
        if not len(pairs):
            continue
        examples = ", ".join(
            f"{evaluation.name(int(evaluation.rows[e]))} = {train.name(int(train.rows[t]))}"
            for t, e in pairs[:3]
        )
        message = (
            f"{len(pairs)} of {total} pictures of {evaluation.split.name} are in "
            f"{train.split.name} too, {how}: {examples}; take them out of one"
        )
        found.append(Finding("warning", "leaks", message))
    if total and len(equal) + len(alike) == total:
        message = (
            f"every picture of {evaluation.split.name} is in {train.split.name} too: its scores "
            "say nothing; evaluate on pictures that training does not see"
        )
        found.insert(0, Finding("error", "leaks", message))
    return found
