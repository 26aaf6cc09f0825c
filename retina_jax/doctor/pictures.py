"""The images on the doctor's page: annotated, worst matched, and as training sees them."""

from __future__ import annotations

import io

import ml_collections
import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.data.images import decode_image
from retina_jax.data.loader import TrainLoader
from retina_jax.doctor.contents import Contents
from retina_jax.doctor.examine import Report
from retina_jax.draw import draw_boxes
from retina_jax.wording import counted

_PANEL = 480  # pixels, the long side of an image on the page
_EXAMPLES, _WORST = 6, 6  # images


def draw_picture(contents: Contents, row: int, caption_of: dict[int, str]) -> bytes:
    """PNG of a row with its boxes; ``caption_of``: index of a box in ``contents`` to caption."""
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


def draw_pictures(report: Report) -> list[tuple[str, str, bytes]]:
    """Section, caption and PNG of example training images and of those with the worst anchors."""
    contents, matched = report.contents[0], report.matches[0]
    names = contents.split.class_names
    drawn = []
    for row in contents.rows[np.linspace(0, len(contents.rows) - 1, _EXAMPLES).astype(int)]:
        row = int(row)
        mine = np.flatnonzero(contents.row_of == row)
        tags = {int(p): names[contents.labels[p]] for p in mine
                if len(mine) <= 12 and 0 <= contents.labels[p] < len(names)}  # fmt: skip
        caption = f"{contents.name(row)}, {counted(len(mine), 'box')}"
        drawn.append(("Images of the training split", caption, draw_picture(contents, row, tags)))
    rows_of_worst: dict[int, list[int]] = {}
    for order in np.argsort(matched.iou, kind="stable"):
        if len(rows_of_worst) == _WORST:
            break
        if matched.matched[order]:
            continue
        rows_of_worst.setdefault(int(contents.row_of[matched.places[order]]), []).append(order)
    for row in rows_of_worst:
        here = np.flatnonzero((contents.row_of[matched.places] == row) & ~matched.matched)
        here = here[np.argsort(matched.iou[here])]
        tags = {
            int(matched.places[i]): f"{names[contents.labels[matched.places[i]]]} "
            f"{matched.iou[i]:.2f}"
            for i in here[:12]
        }
        caption = (
            f"{contents.name(row)}: {counted(len(here), 'box')} without a matching anchor; the "
            "numbers are the IoU with the best anchor"
        )
        section = "Boxes that the anchors match worst"
        drawn.append((section, caption, draw_picture(contents, row, tags)))
    return [entry for entry in drawn if entry[2]]


def draw_batch(config: ml_collections.ConfigDict, split: Split) -> list[tuple[str, str, bytes]]:
    """Section, caption and PNG of the first training batch, after augmentation."""
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
        caption = f"image {split.image_ids[batch.index[i]]}, {counted(len(boxes), 'box')}"
        caption += f", {gone} removed by the crop" if gone else ""
        drawn.append(("As training sees them: the first batch", caption, buffer.getvalue()))
    return drawn
