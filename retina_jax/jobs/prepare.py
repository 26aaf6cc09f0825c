"""Turn annotations and images into a TFDS data set that retina_jax trains on.

usage: retina-jax prepare coco --images DIR --annotations train.json --annotations val.json
           --out DIR
       retina-jax prepare voc --tree VOCdevkit/VOC2007 --split train --split val --out DIR
       retina-jax prepare yolo --tree DIR --out DIR          (DIR holds data.yaml)
       retina-jax prepare tfds --catalogue voc/2007 --out DIR
       retina-jax prepare tfds --directory DIR/NAME/VERSION --out DIR   (TFRecord, for example)

COCO: each annotation file becomes a split named after it: …train… is train, …val… is validation,
…test… is test; write SPLIT=FILE to name it yourself; --split of the others likewise. The result is
OUT/NAME/1.0.0. Every record is read and every image decoded; after a stop, the same command
continues where it was.

What cannot be used (a cut JPEG, a missing file, a box that is no box) stops the command, with file
and record, and no data set is written. --on-bad=skip leaves such records out instead, as long as
they are no more than --max-bad of all; left_out.txt in the data set lists them with the reason, and
the command exits with code 3. Pictures of 16 bits or floats become 8 bits by one scale for the
whole data set, --pixel-range; it stands in the data set, so that prediction can use it too.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from retina_jax.config.flags import ArgumentParser
from retina_jax.config.shell import command, field_flag
from retina_jax.errors import DONE, LEFT_OUT, UserError
from retina_jax.prepare.handling import ADVICE, Handling, RecordError

if TYPE_CHECKING:
    from retina_jax.prepare.build import Prepared
    from retina_jax.progress import Reporter


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(prog="retina-jax prepare", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, help="folder of data sets")
    shared.add_argument("--name", default="", help="name of the data set (default: the format's)")
    shared.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="what to do about records that cannot be used (default: stop)",
    )
    shared.add_argument(
        "--max-bad",
        type=float,
        default=Handling.max_bad,
        metavar="SHARE",
        help="with --on-bad=skip: stop all the same above this share of all records (default: "
        "%(default)s)",
    )
    shared.add_argument(
        "--allow-truncated",
        action="store_true",
        help="keep cut JPEGs that can be decoded; what is missing becomes grey",
    )
    shared.add_argument(
        "--pixel-range",
        default="",
        metavar="LOW,HIGH",
        help="values of 16-bit and float pictures that become 0 and 255, such as 0,4095 (default: "
        "the smallest of 8, 10, 12, 14 and 16 bits, or 0 to 1 of floats, that holds all of them)",
    )
    formats = parser.add_subparsers(dest="format", required=True)
    coco = formats.add_parser("coco", parents=[shared], help="COCO JSON and a folder of images")
    coco.add_argument(
        "--images",
        type=Path,
        action="append",
        required=True,
        help="folder of the images; once, or once for each --annotations",
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
    return parser.parse_args(argv)


def run(options: argparse.Namespace, report: Reporter) -> Prepared:
    """Prepares what ``options``, of `parse`, describe."""
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
    report.say(f"prepared {prepared.directory}; examine it, then train on it:")
    fields = [field_flag(name, value) for name, value in prepared.fields().items()]
    for words in ("doctor --config=experiments/custom.py",
                  "train --config=experiments/custom.py --workdir=runs/custom"):  # fmt: skip
        report.say(f"  {command(*words.split())} {' '.join(fields)}")
    if prepared.left_out:
        report.note(f"{prepared.left_out} records were left out", "warning")
        return LEFT_OUT
    return DONE


def _name_of(options: argparse.Namespace) -> str:
    """The format's name; of TFDS the data set's own, its configuration behind it."""
    if options.format != "tfds":
        return options.format
    if options.catalogue:
        return re.sub(r"[^a-z0-9_]+", "_", options.catalogue.lower())
    from retina_jax.prepare.build import home_of

    return home_of(options.directory).absolute().parent.name
