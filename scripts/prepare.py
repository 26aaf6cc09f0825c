"""Turn annotations and pictures into a TFDS data set that retina_jax trains on.

usage: python scripts/prepare.py coco --images DIR --annotations train.json --annotations val.json
           --out DIR
       python scripts/prepare.py voc --tree VOCdevkit/VOC2007 --split train --split val --out DIR
       python scripts/prepare.py yolo --tree DIR --out DIR          (DIR holds data.yaml)
       python scripts/prepare.py tfds --catalogue voc/2007 --out DIR
       python scripts/prepare.py tfds --directory DIR/NAME/VERSION --out DIR   (TFRecord, say)

COCO: each annotation file becomes a split named after it: …train… is train, …val… is validation,
…test… is test; write SPLIT=FILE to name it yourself; --split of the others likewise. The result is
OUT/NAME/1.0.0: train on it with
    python -m retina_jax.main --config=experiments/custom.py --config.data.dir=OUT --workdir=DIR
Every record is read and every picture decoded; run again after a stop, it goes on where it was.
"""

import argparse
import collections
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from retina_jax.errors import UserError

_COMMON_MAX_BOXES = 100  # data.max_boxes as it is; above, the user must set it


def home_of(path: Path) -> Path:
    """A path whose ~ is resolved."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


def split_of(flag: str, argument: str) -> tuple[str, str]:
    """``SPLIT=WHAT``, or something whose name tells its split."""
    name, equals, what = argument.partition("=")
    if equals:
        if not re.fullmatch(r"[a-z]\w*", name) or name == "all":
            raise UserError(
                f"{flag} {argument}: {name!r} cannot name a split; use for example train="
            )
        return name, what
    stem = Path(argument).stem.lower()
    for word, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        if word in stem:
            return split, argument
    raise UserError(f"{flag} {argument}: its name does not tell its split; write train={argument}")


def named_splits(flag: str, arguments: list[str]) -> dict[str, str]:
    """Split to what makes it, in the order given."""
    splits: dict[str, str] = {}
    for argument in arguments:
        split, what = split_of(flag, argument)
        if split in splits:
            raise UserError(
                f"{flag} {what} and {splits[split]} are both split {split!r}; name one yourself: "
                f"{flag} NAME={what}"
            )
        splits[split] = what
    return splits


def coco_splits(options: argparse.Namespace) -> dict:
    """Split to its annotations and the folder of its pictures."""
    from retina_jax.data.coco_json import read_coco

    folders = [home_of(folder) for folder in options.images]
    if len(folders) == 1:
        folders = folders * len(options.annotations)
    if len(folders) != len(options.annotations):
        raise UserError(
            f"{len(folders)} --images for {len(options.annotations)} --annotations; give one for "
            "all, or one for each in the same order"
        )
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--images {folder} is not a folder")
    files = named_splits("--annotations", options.annotations)
    return {
        split: (read_coco(home_of(Path(file))), folder)
        for (split, file), folder in zip(files.items(), folders, strict=True)
    }


def voc_splits(options: argparse.Namespace) -> dict:
    from retina_jax.data.voc_xml import read_voc

    tree = home_of(options.tree)
    found = read_voc(tree, named_splits("--split", options.split), options.follow_links)
    return {split: (annotations, tree / "JPEGImages") for split, annotations in found.items()}


def yolo_splits(options: argparse.Namespace) -> dict:
    from retina_jax.data.yolo_tree import read_yolo

    return read_yolo(home_of(options.tree), options.follow_links)


def tfds_rows(options: argparse.Namespace) -> tuple[dict, list[str], list[int]]:
    """Rows of each split, class names and their ids."""
    from retina_jax.data.catalogue import open_catalogue, open_directory

    splits = named_splits("--split", options.split)
    if options.directory:
        return open_directory(home_of(options.directory), splits)
    return open_catalogue(options.catalogue, splits, options.catalogue_dir)


def tree_rows(splits: dict, follow_links: bool) -> tuple[dict, list[str], list[int], dict]:
    """Annotations of all splits, checked against each other and their folders, as rows.

    Also class names, their ids, and what was found in the folders, by split.
    """
    from retina_jax.data.reader import AnnotationReader, unnamed_pictures

    annotations = [found for found, _ in splits.values()]
    categories = annotations[0].categories
    for other in annotations:
        if other.categories != categories:
            raise UserError(
                f"{other.path} has categories {other.categories}, the first file {categories}; "
                "all splits must share theirs"
            )
    category_ids = sorted(categories)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    readers = {
        split: AnnotationReader(found, folder, labels, follow_links)
        for split, (found, folder) in splits.items()
    }
    for reader in readers.values():
        reader.check_files()
    named = collections.defaultdict(set)
    for found, folder in splits.values():
        named[folder] |= {str(Path(image["file_name"])) for image in found.images}
    found_in = {}
    for folder, names in named.items():
        unnamed = unnamed_pictures(folder, names)
        if unnamed:
            found_in[f"pictures in {folder.name} that no annotation names, left out"] = len(unnamed)
    return readers, [categories[i] for i in category_ids], category_ids, found_in


def prepare(options: argparse.Namespace, console: Console) -> Path:
    """To a data set; `UserError` names file and record of what cannot be used."""
    from retina_jax.data.records import data_set_directory
    from retina_jax.data.writer import REPORT, RecordsError, check_name, write_data_set
    from retina_jax.metrics import ProgressBar

    options.out = home_of(options.out)
    name = options.name or _name_of(options)
    check_name(name)
    target = data_set_directory(options.out, name)
    if target.exists():
        raise UserError(f"{target} is there already; remove it, or give another --name or --out")
    found_in = {}
    if options.format == "tfds":
        rows, class_names, category_ids = tfds_rows(options)
        source = f"TFDS {options.catalogue or options.directory}"
    else:
        splits = READERS[options.format](options)
        rows, class_names, category_ids, found_in = tree_rows(splits, options.follow_links)
        source = f"{options.format}: " + ", ".join(str(found.path) for found, _ in splits.values())
    with ProgressBar(console, "preparing", sum(map(len, rows.values()))) as bar:
        try:
            directory, _ = write_data_set(
                options.out, name, rows, class_names, category_ids, source,
                lambda count: bar.advance("images", by=count),
                {"folders": found_in} if found_in else {},
            )  # fmt: skip
        except RecordsError as error:
            for line in error.lines[1:]:
                console.print(f"  {line}", markup=False)
            raise
    say(json.loads((directory / REPORT).read_text()), directory, console)
    return directory


def say(report: dict, directory: Path, console: Console) -> None:
    """What was found and mended, split by split."""
    from retina_jax.data.records import Index

    for split, counts in report.items():
        counts = collections.Counter(counts)
        if split == "folders":
            console.print(f"{split}:")
        else:
            console.print(f"{split}: {counts.pop('images')} images, {counts.pop('boxes', 0)} boxes")
            index = Index.load(directory, split)
            row, most = int(index.box_counts.argmax()), int(index.box_counts.max())
            if most > _COMMON_MAX_BOXES:
                counts[f"boxes on image {index.image_ids[row]}, the most: to train on it set "
                       f"--config.data.max_boxes={most}"] = most  # fmt: skip
        for what, count in counts.items():
            console.print(f"  {count} {what}", markup=False)


def _name_of(options: argparse.Namespace) -> str:
    """The format's name; of TFDS the data set's own, its configuration behind it."""
    if options.format != "tfds":
        return options.format
    if options.catalogue:
        return re.sub(r"[^a-z0-9_]+", "_", options.catalogue.lower())
    return home_of(options.directory).absolute().parent.name


READERS = {"coco": coco_splits, "voc": voc_splits, "yolo": yolo_splits}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, help="folder of data sets")
    shared.add_argument("--name", default="", help="name of the data set; else the format's")
    formats = parser.add_subparsers(dest="format", required=True)
    coco = formats.add_parser("coco", parents=[shared], help="COCO JSON and a folder of pictures")
    coco.add_argument(
        "--images",
        type=Path,
        action="append",
        required=True,
        help="folder of the pictures; once, or once for each --annotations",
    )
    coco.add_argument(
        "--annotations", action="append", required=True, help="[SPLIT=]FILE; once for each split"
    )
    voc = formats.add_parser("voc", parents=[shared], help="Annotations/, JPEGImages/, ImageSets/")
    voc.add_argument(
        "--split", action="append", required=True, help="[SPLIT=]LIST of ImageSets/Main, w/o .txt"
    )
    yolo = formats.add_parser("yolo", parents=[shared], help="data.yaml, images/, labels/")
    for tree in (voc, yolo):
        tree.add_argument("--tree", type=Path, required=True, help="folder of all of it")
    for tree in (coco, voc, yolo):
        tree.add_argument(
            "--follow-links", action="store_true", help="read links that lead out of the folder"
        )
    catalogue = formats.add_parser("tfds", parents=[shared], help="what TFDS has or can make")
    which = catalogue.add_mutually_exclusive_group(required=True)
    which.add_argument("--catalogue", default="", help="such as voc/2007 or coco/2017")
    which.add_argument("--directory", type=Path, help="of a data set's version; TFRecord too")
    catalogue.add_argument(
        "--split", action="append", default=[], help="SPLIT=TFDS_SPLIT, as train=train+validation"
    )
    catalogue.add_argument(
        "--catalogue-dir", type=Path, default=None, help="where TFDS keeps its own copy"
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        directory = prepare(options, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    console.print(f"prepared {directory}; look at it, then train on it, with")
    for command in (
        "scripts/doctor.py --config=experiments/custom.py",
        "-m retina_jax.main --config=experiments/custom.py --workdir=runs/custom",
    ):
        console.print(
            f"  python {command} --config.data.dir={options.out} "
            f"--config.data.name={directory.parent.name}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
