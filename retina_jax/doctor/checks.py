"""Checks of a data set: each looks for one kind of problem and reports it in one line."""

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
from retina_jax.wording import counted

LEVELS = ("error", "warning", "note")
NEAR_IDENTICAL = 0.95
"""IoU above which two boxes of a class are most likely one object, annotated twice."""
_MOST_NEIGHBOURS = 2000  # comparisons per box; limits the time for an image with 100,000 boxes
_LEAST_FOR_UNITS = 10  # boxes
_MANY_CROWDS = 0.5
"""Share of crowd boxes above which a warning is reported."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem; the message states it and the fix in one line."""

    level: str
    """error (training would be meaningless), warning or note."""
    check: str
    message: str


def percent(share: float) -> str:
    """For messages; never rounds to 100 % or 0 % unless exact."""
    if 0.9995 <= share < 1:
        return ">99.9 %"
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.3g} %"


def check_numbers(split: Split, config: ml_collections.ConfigDict, trains: bool) -> list[Finding]:
    """Finds splits without objects, and images with too many boxes; uses only the index."""
    found = _check_objects(split, trains)
    most = int(split.box_counts.max(initial=0))
    if trains and most > config.data.max_boxes:  # evaluation keeps every box
        image = int(split.image_ids[int(split.box_counts.argmax())])
        message = (
            f"{split.name}: image {image} has {most} boxes, more than config.data.max_boxes="
            f"{config.data.max_boxes}; set --config.data.max_boxes={most}"
        )
        found.append(Finding("error", "max_boxes", message))
    return found


def _check_objects(split: Split, trains: bool) -> list[Finding]:
    """Finds splits and classes without objects; crowds are ignored, so they do not count."""
    boxes, objects = int(split.box_counts.sum()), int(split.object_counts.sum())
    level, what = ("error", "nothing can be learned") if trains else ("warning", "AP is undefined")
    if not boxes:
        message = (
            f"{split.name}: no boxes on {counted(len(split), 'image')}, so {what}; prepare "
            "the split from annotations with boxes"
        )
        return [Finding(level, "boxes", message)]
    if not objects:
        message = (
            f"{split.name}: all boxes ({boxes}) are crowds (or difficult, or ignored), so {what}; "
            "prepare the split from annotations with other boxes"
        )
        return [Finding(level, "boxes", message)]
    found = []
    if boxes - objects > _MANY_CROWDS * boxes:
        message = (
            f"{split.name}: {percent((boxes - objects) / boxes)} of {boxes} boxes are crowds (or "
            "difficult, or ignored); training ignores them"
        )
        found.append(Finding("warning", "boxes", message))
    counts = split.label_counts() if trains else None
    if counts is not None:
        only_crowds = (counts[0] == 0) & (counts[1] > 0)
        if only_crowds.any():
            names = [split.class_names[i] for i in np.flatnonzero(only_crowds)]
            message = (
                f"{split.name}: every box of class {', '.join(names[:8])} is a crowd (or "
                "difficult, or ignored), so the class cannot be learned; add other boxes of the "
                "class, or remove the class"
            )
            found.append(Finding("error", "boxes", message))
    return found


def check_image_ids(split: Split, scores: bool) -> list[Finding]:
    """Finds image ids that occur twice; in the eval split, results would be ambiguous."""
    ids, counts = np.unique(split.image_ids, return_counts=True)
    twice = ids[counts > 1]
    if not len(twice):
        return []
    listed = ", ".join(str(int(i)) for i in twice[:3])
    message = (
        f"{split.name}: image ids that are not unique: {len(twice)} (such as {listed}); give every "
        "image a unique id and prepare the data set again"
    )
    return [Finding("error" if scores else "warning", "image_ids", message)]


def check_category_ids(split: Split) -> list[Finding]:
    """Notes category ids with gaps, which are valid."""
    ids = sorted(split.category_ids)
    if not ids or ids == list(range(ids[0], ids[0] + len(ids))):
        return []
    message = (
        f"category ids run from {ids[0]} to {ids[-1]} with gaps, for {len(ids)} classes; labels "
        "are 0, 1, … in this order, and detections.json contains the ids"
    )
    return [Finding("note", "category_ids", message)]


def check_labels(contents: Contents) -> list[Finding]:
    """Finds labels that are not a valid class."""
    classes = len(contents.split.class_names)
    outside = (contents.labels < 0) | (contents.labels >= classes)
    rows = np.concatenate([contents.unlabelled, contents.row_of[outside]])
    if not len(rows):
        return []
    bad = contents.labels[outside]
    which = f" (such as {int(bad[0])})" if len(bad) else ""
    message = (
        f"{contents.split.name}: labels{which} outside 0 to {classes - 1} on "
        f"{contents.names(rows)}; prepare the data set again with all its classes"
    )
    return [Finding("error", "labels", message)]


def check_units(contents: Contents) -> list[Finding]:
    """Finds boxes that were not annotated in pixels as xywh, from the stored coordinates."""
    name, boxes = contents.split.name, contents.boxes[np.isfinite(contents.boxes).all(axis=1)]
    if len(boxes) < _LEAST_FOR_UNITS:
        return []
    within = float((np.abs(boxes).max(axis=1) <= 1.5).mean())
    if within > 0.95:
        message = (
            f"{name}: {percent(within)} of {len(boxes)} boxes lie within 1.5 pixels of the corner, "
            "so coordinates are probably normalised; multiply them by width and height and prepare "
            "the data set again"
        )
        return [Finding("error", "units", message)]
    finite = np.isfinite(contents.boxes).all(axis=1)
    sizes = contents.split.sizes[contents.row_of[finite]].astype(np.float64)
    beyond = float((boxes[:, 2:] > 2 * sizes[:, ::-1]).any(axis=1).mean())
    if beyond > 0.5:
        message = (
            f"{name}: {percent(beyond)} of {len(boxes)} boxes end beyond twice the size of their "
            "image, so coordinates have another unit or refer to another image size; convert them "
            "and prepare the data set again"
        )
        return [Finding("error", "units", message)]
    return _corners_taken_for_sizes(name, boxes, sizes)


def _corners_taken_for_sizes(name: str, boxes: np.ndarray, sizes: np.ndarray) -> list[Finding]:
    """Finds xyxy read as xywh: x2 is taken as the width, so ``x + x2`` exceeds 2x or the border."""
    start, end, border = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1]
    at_border = end >= border - 1
    fits = at_border | (end - start >= start)  # true for every misread box
    telling = start >= border / 4  # a box near the left or top may fit by chance
    count, share = int(telling.sum()), 0.0
    if count >= _LEAST_FOR_UNITS:
        share = float(at_border[telling].mean())
    if count < _LEAST_FOR_UNITS or fits.mean() < 0.98 or share < 0.5:
        return []
    message = (
        f"{name}: boxes extend to the right or bottom border ({percent(share)} of those that begin "
        "beyond a quarter of the image), so they are probably [x1, y1, x2, y2] where [x, y, width, "
        "height] is expected; convert them and prepare the data set again"
    )
    return [Finding("error", "units", message)]


def check_shapes(contents: Contents) -> list[Finding]:
    """Finds boxes that are not finite, have no area, or extend outside their image."""
    boxes = contents.boxes
    finite = np.isfinite(boxes).all(axis=1)
    area = finite & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    left = (contents.cut[:, 2:] > contents.cut[:, :2]).all(axis=1)
    crosses = (np.abs(contents.cut - boxes) > 0.5).any(axis=1)  # half a pixel: tools round
    found = []
    for mask, what, fate in (
        (~finite, "that are not finite", "training drops them"),
        (finite & ~area, "without area", "training drops them"),
        (area & ~left, "completely outside their image", "training drops them"),
        (area & left & crosses, "partly outside their image", "training clips them"),
    ):
        count = int(mask.sum())
        if count:
            message = (
                f"{contents.split.name}: boxes {what}: {count} of {len(boxes)}, on "
                f"{contents.names(contents.row_of[mask])}; {fate}"
            )
            useless = count > len(boxes) / 2 and "drops" in fate
            found.append(Finding("error" if useless else "warning", "box_shapes", message))
    return found


def near_identical(contents: Contents) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of boxes of one class on one image with an IoU above `NEAR_IDENTICAL`; no crowds.

    Sorted by x1, such a pair has ``x1' - x1 <= (1 - NEAR_IDENTICAL) · width``, so each box is only
    compared with the few that follow it; all images are processed together.
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
    """IoU of each pair ``a[i], b[i]`` of boxes with area."""
    shared = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(shared, 0).prod(axis=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def check_near_identical(contents: Contents) -> list[Finding]:
    """Finds objects annotated twice."""
    pairs = near_identical(contents)
    if not len(pairs):
        return []
    first = pairs[0, 0]
    box = ", ".join(f"{v:g}" for v in contents.boxes[first])
    message = (
        f"{contents.split.name}: pairs of boxes of one class with an IoU above {NEAR_IDENTICAL}: "
        f"{len(pairs)}, on {contents.names(contents.row_of[pairs[:, 0]])}, such as [{box}] on "
        f"{contents.name(int(contents.row_of[first]))}; objects may be annotated twice"
    )
    return [Finding("warning", "near_identical", message)]


def check_classes(contents: Contents, trains: bool) -> list[Finding]:
    """Finds classes with no boxes or few."""
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
        fate = "training cannot learn them" if trains else "their AP is undefined"
        message = f"{split.name}: classes without boxes: {named(counts == 0)}; {fate}"
        found.append(Finding("warning" if trains else "note", "classes", message))
    few = (counts > 0) & (counts < 10)
    if trains and few.any():
        message = f"{split.name}: classes with fewer than 10 boxes: {named(few)}"
        found.append(Finding("note", "classes", message))
    return found


def check_prepare_report(directory: Path) -> list[Finding]:
    """Repairs and problems that `prepare` reported."""
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
            lost = any(word in what for word in ("dropped", "cut", "outside", "truncated JPEGs"))
            often = lost and isinstance(total, int) and isinstance(count, int)
            often = often and count > 0.05 * (total + count)
            message = f"{split}: prepare reported {what}: {count}"
            found.append(Finding("warning" if often else "note", "prepare", message))
    return found


def check_pictures(contents: Contents) -> list[Finding]:
    """Finds images that cannot be decoded, and images that occur twice in a split."""
    split, found = contents.split, []
    bad = contents.rows[[not picture.readable for picture in contents.pictures]]
    if len(bad):
        message = (
            f"{split.name}: images that cannot be decoded: {len(bad)} ({contents.names(bad)}); "
            "prepare the data set again"
        )
        found.append(Finding("error", "pictures", message))
    pairs = repeats(contents.pictures)
    if len(pairs):
        example = " = ".join(contents.name(int(contents.rows[p])) for p in pairs[0])
        message = f"{split.name}: images that occur more than once: {len(pairs)} ({example})"
        found.append(Finding("warning", "pictures", message))
    return found


def check_leaks(train: Contents, evaluation: Contents) -> list[Finding]:
    """Finds images of the eval split that are also in the training split: they inflate scores."""
    equal = same_bytes(train.pictures, evaluation.pictures)
    alike = same_pictures(train.pictures, evaluation.pictures)
    alike = alike[~np.isin(alike[:, 1], equal[:, 1])]
    total = len(evaluation.pictures)
    found = []
    for pairs, how in (
        (equal, "byte for byte"),
        (alike, "nearly identical (resized or re-encoded)"),
    ):
        if not len(pairs):
            continue
        examples = ", ".join(
            f"{evaluation.name(int(evaluation.rows[e]))} = {train.name(int(train.rows[t]))}"
            for t, e in pairs[:3]
        )
        message = (
            f"images of {evaluation.split.name} that are also in {train.split.name}, {how}: "
            f"{len(pairs)} of {total} ({examples}); remove them from one split"
        )
        found.append(Finding("warning", "leaks", message))
    if total and len(equal) + len(alike) == total:
        message = (
            f"every image of {evaluation.split.name} is also in {train.split.name}, so its scores "
            "are meaningless; evaluate on images that are not used for training"
        )
        found.insert(0, Finding("error", "leaks", message))
    return found
