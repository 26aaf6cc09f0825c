"""Detect objects in images and videos with the model of a run or an exported model.

usage: retina-jax predict --workdir=RUN|--export=PATH --input=FILE|FOLDER|PATTERN|VIDEO --out=DIR
           [--threshold=0.5] [--classes=car,person] [--format=coco|yolo|voc|csv] [--no-images]
           [--tile=800 [--overlap=0.2]] [--nms=soft] [--class-agnostic] [--batch-size=N]
           [--checkpoint=best|latest]

Writes to DIR: detections.json (COCO results with the category ids of the run's data set),
images.json (the file of each image id), and drawn/ (the images and videos with boxes). The run's
data set is not needed. Without --threshold, the files hold every detection that scores above
eval.score_threshold of the run, and the drawings show those that score above 0.4.

If the command is interrupted, run it again to resume. Files that cannot be read are listed and left
out; the command then exits with code 3.
"""

from __future__ import annotations

from pathlib import Path

from retina_jax.config.flags import ArgumentParser
from retina_jax.errors import DONE, LEFT_OUT, UserError, check_local
from retina_jax.placement import check_alone
from retina_jax.wording import counted

FORMATS = ("coco", "yolo", "voc", "csv")


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="retina-jax predict", description=__doc__)
    add = made.add_argument
    weights = made.add_mutually_exclusive_group(required=True)
    weights.add_argument("--workdir", default="", help="folder of the run")
    weights.add_argument(
        "--export",
        default="",
        metavar="PATH",
        help="use an exported model instead of a run: the folder that retina-jax export wrote, or "
        "one of its models; they are code, so use them only if you trust their origin",
    )
    add(
        "--input",
        required=True,
        action="extend",
        nargs="+",
        metavar="PATH",
        help="images and videos: a file, a folder (with its subfolders), or a pattern such as "
        "'a/*.jpg'",
    )
    add(
        "--out",
        required=True,
        help="folder for the results: new or empty, or that of the interrupted command",
    )
    add(
        "--threshold",
        type=float,
        help="keep detections that score above this (default: eval.score_threshold of the run)",
    )
    add("--classes", default="", help="names of the classes to keep, separated by commas")
    add(
        "--format",
        choices=FORMATS,
        default="coco",
        help="coco: detections.json; yolo: labels/NAME.txt; voc: annotations/NAME.xml; csv: "
        "detections.csv (default: %(default)s)",
    )
    add("--no-images", action="store_true", help="do not write images and videos with boxes")
    add(
        "--batch-size",
        type=int,
        help="images per forward pass (default: eval.batch_size of the run, or less for few "
        "images)",
    )
    add(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="for images much larger than the network's input: detect in square tiles with this "
        "side",
    )
    add(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="overlap of neighbouring tiles, as a fraction of their side (default: 0.2)",
    )
    add(
        "--nms",
        choices=("hard", "soft"),
        help="hard: drop overlapping boxes; soft: lower their scores (default: eval.nms of the "
        "run)",
    )
    add(
        "--class-agnostic",
        action="store_true",
        default=None,
        help="apply NMS across classes instead of within each class (default: "
        "eval.class_agnostic of the run)",
    )
    add(
        "--checkpoint",
        choices=("best", "latest"),
        help="checkpoint to use: the best by AP, or the latest (default: best)",
    )
    return made


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(
            f"--threshold={options.threshold} must lie between 0 and 1; set --threshold=0.5"
        )
    if options.overlap is not None and options.tile is None:
        raise UserError(
            f"--overlap={options.overlap} needs tiles; add --tile=800 or remove --overlap"
        )
    if options.checkpoint is not None and options.export:
        raise UserError(
            f"--checkpoint={options.checkpoint} needs --workdir, because an export holds one "
            "checkpoint; remove --checkpoint"
        )
    check_alone("predict")
    check_local(options.out, "--out")
    from retina_jax.prediction.predict import Request, predict
    from retina_jax.progress import Reporter

    report = Reporter.on_stderr()
    request = Request(
        workdir=options.workdir,
        inputs=options.input,
        out=Path(options.out).expanduser(),
        checkpoint=options.checkpoint or "best",
        threshold=options.threshold,
        classes=[name.strip() for name in options.classes.split(",") if name.strip()],
        format=options.format,
        batch_size=options.batch_size,
        images=not options.no_images,
        tile=options.tile,
        overlap=0.2 if options.overlap is None else options.overlap,
        nms=options.nms,
        class_agnostic=options.class_agnostic,
        export=options.export,
    )
    result = predict(request, report)
    images = counted(result.pictures, "image")
    if result.signal:
        report.say(
            f"stopped by {result.signal.name} after {images}; run the same command again to resume"
        )
        return 128 + result.signal
    report.say(f"{counted(result.detections, 'detection')} in {images}: {result.path}")
    if request.images and result.pictures:
        shown = f"{result.drawn} of them score above {result.drawn_from:g} and are drawn"
        report.say(f"{shown}: {request.out / 'drawn'}")
    if result.left_out:
        report.note(f"left out {counted(len(result.left_out), 'file')}, see above", "warning")
        return LEFT_OUT
    return DONE
