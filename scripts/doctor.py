"""Examine a prepared data set and the anchors that a config puts on it.

usage: python scripts/doctor.py --config=experiments/custom.py --config.data.dir=DIR [--out=doctor]
           [--config.path.to.field=value ...]

Reads every record and says what is wrong: duplicates, boxes outside or of no area, wrong units,
classes without boxes, pictures that are in both splits, classes that the anchors cannot match (with
the flags that help), padding. Writes OUT/doctor.html (one page with plots) and OUT/doctor.json.
Exit code 2 where training would be meaningless.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_OUT = flags.DEFINE_string("out", "doctor", "Folder of the page and the JSON.")
_PANEL = 480  # pixels, the long side of a picture on the page
_EXAMPLES, _WORST = 6, 6  # pictures
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def draw_picture(contents, row: int, caption_of: dict[int, str]) -> bytes:
    """PNG of a row with its boxes; ``caption_of``: place of a box in ``contents`` to its tag."""
    from retina_jax.data.transforms import decode_image
    from retina_jax.visualize import draw_boxes

    image = decode_image(contents.split[row].image)
    if image is None:
        return b""
    mine = np.flatnonzero((contents.row_of == row) & np.isfinite(contents.boxes).all(axis=1))
    picture = draw_boxes(
        image,
        contents.cut[mine],
        contents.labels[mine].tolist(),
        [caption_of.get(int(place), "") for place in mine],
        _PANEL / max(image.shape[:2]),
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def draw_pictures(report) -> list[tuple[str, str, bytes]]:
    """Section, caption and PNG: some of the training split, and where its anchors fit worst."""
    contents, matched = report.contents[0], report.matches[0]
    names = contents.split.class_names
    drawn = []
    for row in contents.rows[np.linspace(0, len(contents.rows) - 1, _EXAMPLES).astype(int)]:
        row = int(row)
        mine = np.flatnonzero(contents.row_of == row)
        tags = {int(p): names[contents.labels[p]] for p in mine
                if len(mine) <= 12 and 0 <= contents.labels[p] < len(names)}  # fmt: skip
        caption = f"{contents.name(row)}, {len(mine)} boxes"
        drawn.append(("Pictures of the training split", caption, draw_picture(contents, row, tags)))
    rows_of_worst: dict[int, list[int]] = {}
    for order in np.argsort(matched.iou, kind="stable"):
        if matched.iou[order] >= report.foreground_iou or len(rows_of_worst) == _WORST:
            break
        rows_of_worst.setdefault(int(contents.row_of[matched.places[order]]), []).append(order)
    for row in rows_of_worst:
        here = np.flatnonzero(
            (contents.row_of[matched.places] == row) & (matched.iou < report.foreground_iou)
        )
        here = here[np.argsort(matched.iou[here])]
        tags = {
            int(matched.places[i]): f"{names[contents.labels[matched.places[i]]]} "
            f"{matched.iou[i]:.2f}"
            for i in here[:12]
        }
        caption = f"{contents.name(row)}: {len(here)} boxes out of reach; tags: IoU of their best "
        section = "Boxes that the anchors match worst"
        drawn.append((section, caption + "anchor", draw_picture(contents, row, tags)))
    return [entry for entry in drawn if entry[2]]


def draw_batch(config, split) -> list[tuple[str, str, bytes]]:
    """Section, caption and PNG: pictures of the first batch, scaled, cut and coloured."""
    from retina_jax.data.loader import TrainLoader
    from retina_jax.visualize import draw_boxes

    batch = next(TrainLoader(split, config).batches(0, 1))
    drawn = []
    for i in range(min(_EXAMPLES, len(batch.images))):
        truth = batch.ground_truth
        boxes = truth.boxes[i][truth.valid[i]]
        image = batch.images[i].clip(0, 255).astype(np.uint8)
        labels = truth.labels[i][truth.valid[i]].tolist()
        scale = min(1.0, _PANEL / max(image.shape[:2]))
        picture = draw_boxes(image, boxes, labels, [""] * len(boxes), scale)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        gone = int(batch.cut_away[i])
        caption = f"image {split.image_ids[batch.index[i]]}, {len(boxes)} boxes"
        caption += f", {gone} cut away" if gone else ""
        drawn.append(("As training sees them: the first batch", caption, buffer.getvalue()))
    return drawn


def doctor(config) -> int:
    from rich.console import Console
    from rich.text import Text

    from retina_jax.data.sources import open_data_set, open_split
    from retina_jax.doctor import plots
    from retina_jax.doctor import report as pages
    from retina_jax.doctor.examine import examine
    from retina_jax.metrics import ProgressBar

    out = Path(_OUT.value).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={_OUT.value}: {error.strerror}; give another folder") from None
    directory = open_data_set(config.data.dir, config.data.name)
    splits = [open_split(directory, s) for s in (config.data.train_split, config.data.eval_split)]
    for split in splits:
        if not len(split):
            raise UserError(f"{split.label()} is empty; prepare it from annotations with images")
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with ProgressBar(progress, "examining", sum(map(len, splits))) as bar:
        report = examine(*splits, config, advance=lambda count: bar.advance("records", count))
    (out / "doctor.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
    drawn, pictures = plots.draw_all(report, config), draw_pictures(report)
    if not report.failed():
        pictures += draw_batch(config, splits[0])
    (out / "doctor.html").write_text(pages.page(report, drawn, pictures), encoding="utf-8")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file has no edge
    for table in pages.text_tables(report):
        console.print(table)
    for finding in report.findings:
        line = Text.assemble((f"{finding.level}: ", _STYLES[finding.level]), finding.message)
        console.print(line, soft_wrap=True)
    console.print(f"{pages.count_text(report.findings)}; page: {out / 'doctor.html'}",
                  soft_wrap=True)  # fmt: skip
    return 2 if report.failed() else 0


def main(argv: list[str]) -> int:
    if command_line.wants_help(argv):
        print(__doc__)
        return 0
    try:
        return doctor(command_line.parse(argv, _CONFIG, required={}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
