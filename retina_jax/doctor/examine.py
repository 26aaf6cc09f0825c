"""The doctor: contents of a prepared data set, its problems, and its anchor recall.

`examine` reads every record and every image. `short_form` samples the boxes; training calls it
before step 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import Bool, Float

from retina_jax.config import resolve
from retina_jax.data.data_set import Split
from retina_jax.data.loader import placements
from retina_jax.data.plan import padding_share
from retina_jax.doctor import checks
from retina_jax.doctor.anchor_advice import Suggestion, suggest
from retina_jax.doctor.anchor_recall import (
    LEAST_BOXES,
    InputBoxes,
    at_input,
    best_anchor_iou,
    group_recall,
)
from retina_jax.doctor.buckets import BucketRow, bucket_rows, check_buckets, check_shrinking
from retina_jax.doctor.checks import Finding, percent
from retina_jax.doctor.contents import Contents, read_contents, spread_rows
from retina_jax.doctor.fit_anchors import ENOUGH
from retina_jax.doctor.reach import Boxes, Rule, reach_at, reached, rule_of
from retina_jax.ops.anchors import LEVELS, level_sizes

SIZES = ("small", "medium", "large")
"""COCO's: areas under 32² and 96² pixels, and above."""
_SIZE_LIMITS = (32.0**2, 96.0**2)
_BUCKETS = "data.buckets"
_LEAST_RECALL = 0.1
_MOST_GROUPS = 5  # groups with low recall that are reported individually


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """Statistics of a class in a split."""

    name: str
    category_id: int
    images: int
    boxes: int
    """Without crowds."""
    crowds: int
    foreground: float | None
    """Share of matched boxes (`BoxMatch`); None: no boxes."""
    background: float | None
    """Share of boxes that are matched or nearly so."""


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """Statistics of a size group; recall refers to the size at the input."""

    name: str
    original: int
    """Number of boxes by annotated area."""
    at_input: int
    """Number of boxes by box area at the network input."""
    foreground: float | None
    background: float | None


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Statistics of a split."""

    name: str
    images: int
    empty: int
    """Number of images without boxes."""
    boxes: int
    crowds: int
    most_boxes: int
    padding: float
    classes: tuple[ClassRow, ...]
    sizes: tuple[SizeRow, ...]
    buckets: tuple[BucketRow, ...]


@dataclasses.dataclass(frozen=True)
class BoxMatch:
    """The best anchor IoU of the boxes of a split that training matches."""

    places: np.ndarray
    """Indices of the boxes in `Contents`: finite, with area, not crowds."""
    shown: InputBoxes
    iou: Float[np.ndarray, "n"]
    """IoU with the best anchor."""
    matched: Bool[np.ndarray, "n"]
    """With an anchor at ``matching.foreground_iou`` or more, or by ATSS (`reach.reached`)."""
    nearly: Bool[np.ndarray, "n"]
    """The same for ``matching.background_iou``, or an anchor's centre inside."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `examine`."""

    directory: Path
    summaries: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]
    suggestion: Suggestion | None
    rule: Rule
    contents: tuple[Contents, ...]
    """Contents of the training and the evaluation split, for plots."""
    matches: tuple[BoxMatch, ...]

    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict:
        """As JSON, without the boxes."""
        return {
            "directory": str(self.directory),
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "splits": [dataclasses.asdict(s) for s in self.summaries],
            "matching": self.rule.facts,
            "suggestion": self.suggestion
            and dataclasses.asdict(self.suggestion) | {"flags": self.suggestion.flags()},
        }  # fmt: skip


def match(contents: Contents, config: ml_collections.ConfigDict) -> BoxMatch:
    """The best anchor IoU of every box that training matches."""
    valid_label = (contents.labels >= 0) & (contents.labels < len(contents.split.class_names))
    places = np.flatnonzero(contents.sound & valid_label)
    shown = at_input(contents.split, contents.row_of[places], contents.cut[places], config)
    iou = best_anchor_iou(shown, resolve(config).buckets, config.anchors)
    return BoxMatch(places, shown, iou, *reached(shown, iou, config))


def size_of(areas: Float[np.ndarray, "n"]) -> np.ndarray:
    """Index in `SIZES` of each area, pixels²."""
    return np.searchsorted(_SIZE_LIMITS, areas, side="right")


def _input_areas(matched: BoxMatch) -> Float[np.ndarray, "n"]:
    return (matched.shown.boxes[:, 2:] - matched.shown.boxes[:, :2]).prod(axis=1)


def class_group(name: str) -> str:
    """Name, for messages, of the boxes of a class."""
    return f"boxes of class {name}"


def size_group(name: str) -> str:
    """Name, for messages, of the boxes of a size."""
    return f"{name} boxes (at the input)"


def groups_of(contents: Contents, matched: BoxMatch) -> dict[str, np.ndarray]:
    """Masks over the matched boxes: one per class, and one per size at the input."""
    labels, sizes = contents.labels[matched.places], size_of(_input_areas(matched))
    by_class = {
        class_group(name): labels == label for label, name in enumerate(contents.split.class_names)
    }
    by_size = {size_group(name): sizes == i for i, name in enumerate(SIZES)}
    return by_class | by_size


def summarise(
    contents: Contents, matched: BoxMatch, config: ml_collections.ConfigDict
) -> SplitSummary:
    """Statistics of a split."""
    split = contents.split
    recalls = [
        group_recall(within, groups_of(contents, matched), least=1)
        for within in (matched.matched, matched.nearly)
    ]

    def recall_of(group: str) -> tuple[float | None, float | None]:
        return recalls[0].get(group), recalls[1].get(group)

    objects = ~contents.is_crowd
    classes = []
    for label, name in enumerate(split.class_names):
        mine = contents.labels == label
        classes.append(
            ClassRow(
                name,
                int(split.category_ids[label]),
                len(np.unique(contents.row_of[mine])),
                int((mine & objects).sum()),
                int((mine & ~objects).sum()),
                *recall_of(class_group(name)),
            )
        )
    original = np.bincount(size_of(contents.areas[objects]), minlength=3)
    at_the_input = np.bincount(size_of(_input_areas(matched)), minlength=3)
    sizes = [
        SizeRow(n, int(original[i]), int(at_the_input[i]), *recall_of(size_group(n)))
        for i, n in enumerate(SIZES)
    ]
    placed = placements(split, config)
    return SplitSummary(
        name=split.name,
        images=len(split),
        empty=int((split.box_counts == 0).sum()),
        boxes=int(objects.sum()),
        crowds=int(contents.is_crowd.sum()),
        most_boxes=int(split.box_counts.max(initial=0)),
        padding=padding_share(placed, resolve(config).buckets),
        classes=tuple(classes),
        sizes=tuple(sizes),
        buckets=bucket_rows(split, placed, config),
    )


def check_recall(
    contents: Contents,
    matched: BoxMatch,
    config: ml_collections.ConfigDict,
    anchors_fitted: bool = False,
) -> tuple[list[Finding], Suggestion | None]:
    """Finds classes and sizes that the anchors cannot match; also suggests a change.

    ``anchors_fitted``: ``data.fit`` has chosen the anchors and said what they reach, so only errors
    are reported.
    """
    if not len(matched.places):
        return [], None
    rule, groups, places = rule_of(config), groups_of(contents, matched), matched.places
    labels = contents.labels[places]
    boxes = Boxes(contents.split, contents.row_of[places], contents.cut[places], labels)
    now = reach_at(config, matched.matched, labels)
    suggestion = None if anchors_fitted else suggest(boxes, groups, now)
    name, found = contents.split.name, []
    overall = float(matched.nearly.mean())
    if overall < _LEAST_RECALL and len(matched.places) >= LEAST_BOXES:
        message = (
            f"{name}: only {percent(overall)} of {len(matched.places)} boxes {rule.are_nearly}, "
            "so few can be learned; "
            + (suggestion.text() if suggestion else "check the boxes and data.short_side")
        )
        found.append(Finding("error", "anchor_recall", message))
    if anchors_fitted or now.is_enough:
        return found, suggestion
    nearly = group_recall(matched.nearly, groups)
    recalls = group_recall(matched.matched, groups)
    low = {group: recall for group, recall in recalls.items() if recall < ENOUGH}
    worst = sorted(low.items(), key=lambda item: item[1])[:_MOST_GROUPS]
    for group, recall in worst:
        fix = rule.hopeless
        if suggestion:
            promised = percent(suggestion.after[group])
            flags = suggestion.text() if group == worst[0][0] else "with the same flags"
            fix = f"{promised} {flags}"
        message = (
            f"{name}: {percent(recall)} of {int(groups[group].sum())} {group} {rule.are_matched} "
            f"({percent(nearly[group])} {rule.and_nearly}); {fix}"
        )
        found.append(Finding("warning", "anchor_recall", message))
    if len(low) > _MOST_GROUPS:
        message = f"{name}: more groups of boxes with low anchor recall: {len(low) - _MOST_GROUPS}"
        found.append(Finding("warning", "anchor_recall", message))
    return found, suggestion


def _check_smallest_anchor(
    name: str, matched: BoxMatch, config: ml_collections.ConfigDict
) -> list[Finding]:
    """Finds boxes that are smaller than every anchor at the input; ATSS matches them as well."""
    if config.matching.kind == "atss" or not len(matched.places):
        return []
    anchors = config.anchors
    smallest = min(level_sizes(LEVELS[0], anchors.scale, anchors.octaves, anchors.truncate_sizes))
    below = float((np.sqrt(_input_areas(matched)) < smallest).mean())
    if not below:
        return []
    message = (
        f"{name}: {percent(below)} of {len(matched.places)} boxes are smaller than the smallest "
        f"anchor, {smallest:g} px at the input"
    )
    return [Finding("note", "small_boxes", message)]


def _anchors_are(fitted: Collection[str]) -> bool:
    return any(name.startswith("anchors.") for name in fitted)


def _ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: checks.LEVELS.index(f.level)))


def _check_boxes(contents: Contents, trains: bool) -> list[Finding]:
    return [
        *checks.check_labels(contents),
        *checks.check_units(contents),
        *checks.check_shapes(contents),
        *checks.check_near_identical(contents),
        *checks.check_classes(contents, trains),
    ]


def examine(
    train: Split,
    evaluation: Split,
    config: ml_collections.ConfigDict,
    advance: Callable[[int], None] = lambda count: None,
    fitted: Collection[str] = (),
) -> Report:
    """Reads every record of both splits and decodes every image at low resolution.

    The splits must be opened with ``labels="dense"``, so that every class exists in the data.
    ``advance`` counts rows. ``fitted``: the fields that ``data.fit`` chose; what it said of them is
    not reported again.
    """
    findings = checks.check_prepare_report(train.directory)
    findings += checks.check_category_ids(train)
    contents, matches, summaries = [], [], []
    for split, trains in ((train, True), (evaluation, False)):
        read = read_contents(split, np.arange(len(split)), pictures=True, advance=advance)
        matched = match(read, config)
        summary = summarise(read, matched, config)
        findings += checks.check_numbers(split, config, trains)
        findings += checks.check_image_ids(split, scores=not trains)
        findings += _check_boxes(read, trains)
        findings += checks.check_pictures(read)
        if trains:
            findings += check_buckets(split.name, len(split), summary.buckets, config)
            findings += [] if _BUCKETS in fitted else check_shrinking(split, config)
        contents.append(read)
        matches.append(matched)
        summaries.append(summary)
    findings += checks.check_leaks(*contents)
    found, suggestion = check_recall(contents[0], matches[0], config, _anchors_are(fitted))
    findings += _check_smallest_anchor(train.name, matches[0], config)
    return Report(
        directory=train.directory,
        summaries=tuple(summaries),
        findings=_ordered([*findings, *found]),
        suggestion=suggestion,
        rule=rule_of(config),
        contents=tuple(contents),
        matches=tuple(matches),
    )


def short_form(
    train: Split,
    evaluation: Split,
    config: ml_collections.ConfigDict,
    limit: int = 2000,
    fitted: Collection[str] = (),
) -> list[Finding]:
    """Quick checks before step 0, errors first; takes a second or two and decodes no image.

    Checks ids and box counts of all rows, and boxes of at most ``limit`` rows of each split.
    ``fitted``: as for `examine`.
    """
    findings = []
    for split, trains in ((train, True), (evaluation, False)):
        findings += checks.check_numbers(split, config, trains)
        findings += checks.check_image_ids(split, scores=not trains)
        read = read_contents(split, spread_rows(split, limit))
        findings += checks.check_labels(read) + checks.check_units(read)
        findings += checks.check_shapes(read)
        if trains:
            findings += [] if _BUCKETS in fitted else check_shrinking(split, config)
            anchors = _anchors_are(fitted)
            findings += check_recall(read, match(read, config), config, anchors)[0]
    if (train.directory, train.name) == (evaluation.directory, evaluation.name):
        message = (
            f"data.train_split and data.eval_split are both {train.name!r}, so scores do not "
            "measure generalisation; set --config.data.eval_split to another split"
        )
        findings.append(Finding("warning", "leaks", message))
    return list(_ordered(findings))
