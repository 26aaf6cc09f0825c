"""Prepare a data set from annotations and images, and report what was found and fixed."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from retina_jax.config import default_config
from retina_jax.data.deep import FEW_LEVELS
from retina_jax.data.records import Index, data_set_directory
from retina_jax.errors import UserError
from retina_jax.prepare.annotations import Annotations
from retina_jax.prepare.coco_json import read_coco
from retina_jax.prepare.handling import Handling, LeftOut
from retina_jax.prepare.names import Folder, is_picture
from retina_jax.prepare.reader import AnnotationReader
from retina_jax.prepare.survey import survey
from retina_jax.prepare.voc_xml import read_voc
from retina_jax.prepare.writer import LEFT_OUT_COUNT, REPORT, Rows, check_name, write_data_set
from retina_jax.prepare.yolo_tree import SPLITS as YOLO_SPLITS
from retina_jax.prepare.yolo_tree import read_yolo
from retina_jax.progress import Reporter
from retina_jax.wording import counted

Folders = dict[str, tuple[Annotations, Path]]
"""Maps each split to its annotations and its image folder."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The input of a data set."""

    rows: Mapping[str, Rows]
    """By split."""
    class_names: Sequence[str]
    category_ids: Sequence[int]
    description: str
    found: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Counts of files in the folders."""
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """By split: unusable records, one line each."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that was written."""

    directory: Path
    """``out/NAME/VERSION``."""
    splits: tuple[str, ...]
    max_boxes: int
    """The maximum number of boxes on one image."""
    left_out: int = 0
    """Number of unusable records; left_out.txt in the directory lists them."""

    def fields(self) -> dict[str, object]:
        """Returns the config fields that training needs to read this data set."""
        fields = {
            "data.dir": str(self.directory.parent.parent),
            "data.name": self.directory.parent.name,
        }
        default = default_config().data
        train = _first(("train", "trainval", *self.splits), self.splits)
        if train != default.train_split:
            fields["data.train_split"] = train
        others = [split for split in self.splits if split != train]
        evaluated = _first(("validation", "test", *others, train), self.splits)
        if evaluated != default.eval_split:
            fields["data.eval_split"] = evaluated
        if self.max_boxes > default.max_boxes:
            fields["data.max_boxes"] = self.max_boxes
        return fields


def _first(wanted: Sequence[str], there: Sequence[str]) -> str:
    return next(split for split in wanted if split in there)


def home_of(path: Path) -> Path:
    """Returns the path with ~ expanded."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


def named_splits(
    flag: str, arguments: Sequence[str], exists: Callable[[str], bool] = lambda what: False
) -> dict[str, str]:
    """Maps each split to its source, in the order given.

    An argument is ``SPLIT=WHAT``, or a name that shows the split. ``flag`` is used in messages.
    ``exists`` tells whether a file exists, because file names may contain "=".
    """
    splits: dict[str, str] = {}
    for argument in arguments:
        split, what = _split_of(flag, argument, exists)
        if split in splits:
            raise UserError(
                f"{flag} {what} and {splits[split]} both become split {split!r}; give one of them "
                f"another name: {flag} NAME={what}"
            )
        splits[split] = what
    return splits


def _split_of(flag: str, argument: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    name, equals, what = argument.partition("=")
    names_split = re.fullmatch(r"[a-z]\w*", name, re.ASCII) and name != "all"
    if equals and names_split and (exists(what) or not exists(argument)):
        return name, what
    if equals and not names_split and not re.search(r"[\\/.]", name) and not exists(argument):
        raise UserError(f"{flag} {argument}: {name!r} is not a valid split name; write train=FILE")
    path = Path(argument)
    for text in (path.stem, path.parent.name):  # train/_annotations.coco.json, as Roboflow has it
        for word, split in (("train", "train"), ("val", "validation"), ("test", "test")):
            if word in text.lower():
                return split, argument
    raise UserError(f"{flag} {argument}: no train, val or test in the name; write train={argument}")


def coco_source(
    images: Sequence[Path],
    annotations: Sequence[str],
    follow_links: bool = False,
    skip_bad: bool = False,
) -> Source:
    """Reads COCO JSON files and their image folders.

    ``annotations`` are arguments of `named_splits`. ``images`` has one folder for all files, or
    one per file in the same order.
    """
    folders = [home_of(folder) for folder in images]
    if len(folders) == 1:
        folders = folders * len(annotations)
    if len(folders) != len(annotations):
        raise UserError(
            f"got {len(folders)} --images for {len(annotations)} --annotations; give --images "
            "once, or once for each --annotations in the same order"
        )
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--images {folder} is not a folder")
    files = named_splits("--annotations", annotations, lambda file: home_of(Path(file)).exists())
    splits = {
        split: (read_coco(home_of(Path(file)), LeftOut(skip_bad)), folder)
        for (split, file), folder in zip(files.items(), folders, strict=True)
    }
    return source_of("coco", splits, follow_links, skip_bad)


def voc_source(
    tree: Path, split: Sequence[str], follow_links: bool = False, skip_bad: bool = False
) -> Source:
    """Reads a Pascal VOC tree; ``split`` names lists in ImageSets/Main, or folders."""
    tree = home_of(tree)
    lists = tree / "ImageSets" / "Main"
    named = named_splits("--split", split, lambda name: (lists / f"{name}.txt").is_file())
    left_out = {name: LeftOut(skip_bad) for name in named}
    return source_of("voc", read_voc(tree, named, follow_links, left_out), follow_links, skip_bad)


def yolo_source(tree: Path, follow_links: bool = False, skip_bad: bool = False) -> Source:
    """Reads a YOLO tree, with a data.yaml or as `settings_without_yaml` describes it."""
    left_out = {split: LeftOut(skip_bad) for split in YOLO_SPLITS.values()}
    splits = read_yolo(home_of(tree), follow_links, left_out)
    return source_of("yolo", splits, follow_links, skip_bad)


def tfds_source(
    catalogue: str, directory: Path | None, split: Sequence[str], catalogue_dir: Path | None
) -> Source:
    """Reads a data set from the TFDS catalogue, or one that TFDS wrote to ``directory``."""
    from retina_jax.prepare.catalogue import open_catalogue, open_directory

    splits = named_splits("--split", split)
    if directory:
        rows, class_names, category_ids = open_directory(home_of(directory), splits)
    else:
        rows, class_names, category_ids = open_catalogue(catalogue, splits, catalogue_dir)
    return Source(rows, class_names, category_ids, f"TFDS {catalogue or directory}")


def source_of(kind: str, splits: Folders, follow_links: bool, skip_bad: bool) -> Source:
    """Checks the annotations of all splits against each other and their image folders."""
    annotations = [found for found, _ in splits.values()]
    categories = annotations[0].categories
    for other in annotations:
        if other.categories != categories:
            raise UserError(
                f"{other.path} has categories {other.categories}, but the first file has "
                f"{categories}; all splits must have the same categories"
            )
    category_ids = sorted(categories)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    readers = {
        split: AnnotationReader(found, folder, labels, follow_links)
        for split, (found, folder) in splits.items()
    }
    if not skip_bad:
        for reader in readers.values():
            reader.check_files()
    used = collections.defaultdict(set)
    for split, (_, folder) in splits.items():
        used[folder] |= readers[split].used_files()
    found_in = {}
    for folder, names in used.items():
        pictures = (name for name in Folder(folder).files if is_picture(name))
        unnamed = [name for name in pictures if str(Path(name)) not in names]
        if unnamed:
            found_in[f"images in {folder.name} that the annotations do not mention, left out"] = (
                len(unnamed)
            )
    return Source(
        rows=readers,
        class_names=[categories[i] for i in category_ids],
        category_ids=category_ids,
        description=f"{kind}: " + ", ".join(str(found.path) for found in annotations),
        found=found_in,
        left_out={split: found.left_out for split, (found, _) in splits.items()},
    )


def check_target(out: Path, name: str) -> None:
    """Raises `UserError` if a data set with this name cannot be written."""
    check_name(name)
    target = data_set_directory(out, name)
    if target.exists():
        raise UserError(f"{target} already exists; remove it, or set another --name or --out")


def prepare(
    source: Source,
    out: Path,
    name: str,
    report: Reporter | None = None,
    handling: Handling | None = None,
) -> Prepared:
    """Writes the data set ``out/name`` and reports what was found and fixed in each split.

    Raises `UserError` that names the file and the record of everything that cannot be used.
    """
    report, handling = report or Reporter(), handling or Handling()
    check_target(out, name)
    total = sum(map(len, source.rows.values()))
    with report.progress("reading image sizes and bit depths", total) as bar:
        scale = survey(
            source.rows, handling.pixel_scale, lambda count: bar.advance("images", by=count)
        )
    stored = next((s for rows in source.rows.values() if (s := rows.stored_scale)), None)
    handling = dataclasses.replace(handling, pixel_scale=scale or stored)
    found = {split: dict(rows.counts()) for split, rows in source.rows.items()}
    for rows in source.rows.values():
        rows.handling = handling
    with report.progress("preparing", total) as bar:
        directory, _ = write_data_set(
            out, name, source.rows, source.class_names, source.category_ids, source.description,
            lambda count: bar.advance("images", by=count),
            found | ({"folders": source.found} if source.found else {}),
            handling,
            source.left_out,
        )  # fmt: skip
    reported = json.loads((directory / REPORT).read_text())
    _say(reported, directory, handling, report)
    indexes = [Index.load(directory, split) for split in source.rows]
    most = max(int(index.box_counts.max(initial=0)) for index in indexes)
    left_out = sum(counts.get(LEFT_OUT_COUNT, 0) for counts in reported.values())
    return Prepared(directory, tuple(source.rows), most, left_out)


def _say(
    reported: Mapping[str, Mapping[str, int]], directory: Path, handling: Handling, report: Reporter
) -> None:
    common = default_config().data.max_boxes  # above it, the user must set the field
    few = 0
    for split, counts in reported.items():
        counts = collections.Counter(counts)
        few += counts.pop(FEW_LEVELS, 0)
        if split == "folders":
            report.say(f"{split}:")
        else:
            images, boxes = counts.pop("images"), counts.pop("boxes", 0)
            report.say(f"{split}: {counted(images, 'image')}, {counted(boxes, 'box')}")
            index = Index.load(directory, split)
            row, most = int(index.box_counts.argmax()), int(index.box_counts.max())
            if most > common:
                counts[f"most boxes on one image (image {index.image_ids[row]}; to train on it, "
                       f"set --config.data.max_boxes={most})"] = most  # fmt: skip
        for what, count in counts.items():
            report.say(f"  {what}: {count}")
    if handling.pixel_scale:
        low, high = handling.pixel_scale
        report.say(
            f"values {low:g} to {high:g} of 16-bit and float images become 0 to 255 (--pixel-range)"
        )
    if few:
        low, high = handling.pixel_scale or (0, 0)
        report.note(
            f"{FEW_LEVELS}: {few}; they are nearly black or nearly uniform; if the source range "
            f"is not {low:g} to {high:g}, set --pixel-range=LOW,HIGH",
            "warning",
        )
