"""Convert annotations and images to a TFDS data set that retina_jax can train on.

usage: retina-jax prepare coco --images DIR --annotations train.json --annotations val.json
           --out DIR
       retina-jax prepare voc --tree VOCdevkit/VOC2007 --split train --split val --out DIR
       retina-jax prepare yolo --tree DIR --out DIR          (data.yaml, classes.txt or obj.names)
       retina-jax prepare tfds --catalogue voc/2007 --out DIR
       retina-jax prepare tfds --directory DIR/NAME/VERSION --out DIR   (TFRecord, for example)

COCO: each annotation file becomes one split, named after the file: …train… gives train, …val… gives
validation, …test… gives test. To choose another name, write SPLIT=FILE; --split of voc and tfds
takes the same prefix. VOC without ImageSets/Main: --split names folders of .xml files, such as
train; if the folders have other names, all files become the one split that you name.

The result is OUT/NAME/1.0.0. The command reads every record and decodes every image. If it is
interrupted, run it again: it continues where it stopped.

An unusable record (a truncated JPEG, a missing file, an invalid box) stops the command with an
error that names the file and the record, and no data set is written. --on-bad=skip leaves such
records out instead, provided that their share does not exceed --max-bad. It lists them, with the
reasons, in left_out.txt in the data set, and exits with code 3. 16-bit and float images are
converted to 8 bits with one scale for the whole data set (--pixel-range). The data set stores this
scale, because prediction needs the same one.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from retina_jax.config.flags import ArgumentParser
from retina_jax.config.shell import command, field_flag
from retina_jax.errors import DONE, LEFT_OUT, UserError, check_local
from retina_jax.prepare.handling import ADVICE, Handling, RecordError

if TYPE_CHECKING:
    from retina_jax.prepare.build import Prepared
    from retina_jax.progress import Reporter


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(prog="retina-jax prepare", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=_folder, required=True, help="output folder for data sets")
    shared.add_argument("--name", default="", help="name of the data set (default: the format)")
    shared.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with unusable records (default: stop)",
    )
    shared.add_argument(
        "--max-bad",
        type=float,
        default=Handling.max_bad,
        metavar="SHARE",
        help="with --on-bad=skip: largest share of records that may be left out (default: "
        "%(default)s)",
    )
    shared.add_argument(
        "--allow-truncated",
        action="store_true",
        help="keep truncated JPEGs that can be decoded; the missing part becomes grey",
    )
    shared.add_argument(
        "--pixel-range",
        default="",
        metavar="LOW,HIGH",
        help="values that become 0 and 255 in 16-bit and float images, such as 0,4095 (default: "
        "the smallest usual range that contains all values: 8, 10, 12, 14 or 16 bits, 0 to 1 "
        "for floats)",
    )
    formats = parser.add_subparsers(dest="format", required=True)
    coco = formats.add_parser("coco", parents=[shared], help="COCO JSON files and image folders")
    coco.add_argument(
        "--images",
        type=Path,
        action="append",
        required=True,
        help="image folder: one for all annotation files, or one for each, in the same order",
    )
    coco.add_argument(
        "--annotations",
        action="append",
        required=True,
        help="[SPLIT=]FILE; repeat the flag for each split",
    )
    voc = formats.add_parser(
        "voc", parents=[shared], help="Pascal VOC: .xml files, images, ImageSets/Main"
    )
    voc.add_argument(
        "--split",
        action="append",
        required=True,
        help="[SPLIT=]LIST in ImageSets/Main, without .txt, or a folder of .xml files in a tree "
        "without lists; repeat the flag for each split",
    )
    yolo = formats.add_parser(
        "yolo", parents=[shared], help="YOLO: data.yaml, classes.txt or obj.names; images, labels"
    )
    for tree in (voc, yolo):
        tree.add_argument("--tree", type=Path, required=True, help="folder of the data set")
    for tree in (coco, voc, yolo):
        tree.add_argument(
            "--follow-links", action="store_true", help="follow links that lead outside the folder"
        )
    catalogue = formats.add_parser(
        "tfds", parents=[shared], help="a data set from the TFDS catalogue, or one that TFDS wrote"
    )
    which = catalogue.add_mutually_exclusive_group(required=True)
    which.add_argument("--catalogue", default="", help="TFDS name, such as voc/2007 or coco/2017")
    which.add_argument(
        "--directory", type=Path, help="version folder of a TFDS data set (ArrayRecord or TFRecord)"
    )
    catalogue.add_argument(
        "--split",
        action="append",
        default=[],
        help="SPLIT=TFDS_SPLIT, such as train=train+validation; repeat the flag for each split",
    )
    catalogue.add_argument(
        "--catalogue-dir", type=Path, default=None, help="folder in which TFDS stores its own copy"
    )
    return parser.parse_args(argv)


def run(options: argparse.Namespace, report: Reporter) -> Prepared:
    """Prepares a data set with the ``options`` from `parse`."""
    from retina_jax.prepare.writer import RecordsError

    handling = Handling(
        options.on_bad == "skip",
        options.max_bad,
        options.allow_truncated,
        _pixel_range(options.pixel_range),
    )
    try:
        return _run(options, handling, report)
    except (RecordError, RecordsError) as error:
        if handling.skip_bad:
            raise
        raise UserError(f"{error}; {ADVICE}", error.details) from None


def _run(options: argparse.Namespace, handling: Handling, report: Reporter) -> Prepared:
    from retina_jax.prepare import build

    skip = handling.skip_bad
    out = build.home_of(options.out)
    name = options.name or _name_of(options)
    build.check_target(out, name)
    if options.format == "coco":
        source = build.coco_source(options.images, options.annotations, options.follow_links, skip)
    elif options.format == "voc":
        source = build.voc_source(options.tree, options.split, options.follow_links, skip)
    elif options.format == "yolo":
        source = build.yolo_source(options.tree, options.follow_links, skip)
    else:
        source = build.tfds_source(
            options.catalogue, options.directory, options.split, options.catalogue_dir
        )
    return build.prepare(source, out, name, report, handling)


def _folder(text: str) -> Path:
    check_local(text, "--out")
    return Path(text)


def _pixel_range(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"--pixel-range={text} must be two numbers, the smaller first, such as 0,4095"
        ) from None
    return low, high


def main(argv: list[str]) -> int:
    options = parse(argv)
    from retina_jax.progress import Reporter

    report = Reporter.on_stderr()
    prepared = run(options, report)
    report.say(f"prepared {prepared.directory}; check it, then train on it:")
    fields = [field_flag(name, value) for name, value in prepared.fields().items()]
    for words in ("doctor --config=experiments/custom.py",
                  "train --config=experiments/custom.py --workdir=runs/custom"):  # fmt: skip
        report.say(f"  {command(*words.split())} {' '.join(fields)}")
    if prepared.left_out:
        report.note(f"records left out: {prepared.left_out}", "warning")
        return LEFT_OUT
    return DONE


def _name_of(options: argparse.Namespace) -> str:
    """The format, or for TFDS the name and configuration of the data set."""
    if options.format != "tfds":
        return options.format
    if options.catalogue:
        return re.sub(r"[^a-z0-9_]+", "_", options.catalogue.lower())
    from retina_jax.prepare.build import home_of

    return home_of(options.directory).absolute().parent.name
