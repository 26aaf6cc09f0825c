"""Small data sets, each with something to find."""

from pathlib import Path

import cv2
import numpy as np

from retina_jax.data.data_set import Split
from retina_jax.doctor import examine as doctor

HEIGHT, WIDTH = 96, 160


def picture(seed, height=HEIGHT, width=WIDTH):
    """Coarse noise: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, suffix=".png", *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def image_of(seed, boxes, labels=None, **other):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    entry = {"boxes": boxes, "labels": labels, "crowds": np.zeros(len(boxes), bool), "id": seed,
             "size": (HEIGHT, WIDTH), "picture": None, "seed": seed}  # fmt: skip
    return entry | other


def split_of(name, images, classes=("cat", "dog"), directory=Path("made"), ids=(1, 2)):
    records = []
    for image in images:
        height, width = image["size"]
        stored = image["boxes"][:, [1, 0, 3, 2]] / [height, width, height, width]
        content = image["picture"] or encoded(picture(image["seed"], height, width))
        records.append(
            {
                "image": content,
                "objects": {
                    "bbox": stored.astype(np.float32),
                    "label": image["labels"],
                    "is_crowd": image["crowds"],
                },
            }
        )
    return Split(
        name=name,
        directory=directory,
        class_names=tuple(classes),
        category_ids=tuple(ids),
        image_ids=np.array([i["id"] for i in images], np.int64),
        sizes=np.array([i["size"] for i in images], np.int32).reshape(-1, 2),
        box_counts=np.array([len(i["boxes"]) for i in images], np.int64),
        file_names=np.array([f"{name}_{i['id']}.png" for i in images], str),
        _records=records,
    )


def healthy(first=0, count=12):
    """Images with two boxes that default anchors match: one of each class."""
    return [
        image_of(first + i, [[10 + i, 20, 52 + i, 60], [90, 30 + i, 130, 70 + i]], [0, 1])
        for i in range(count)
    ]


def examined(config, train, evaluation=None):
    if evaluation is None:
        evaluation = split_of("validation", healthy(1000, 4))
    train = train if isinstance(train, Split) else split_of("train", train)
    return doctor.examine(train, evaluation, config)


def told(findings, check, level=None):
    """The only message of a check."""
    (found,) = [f for f in findings if f.check == check and level in (None, f.level)]
    assert "\n" not in found.message
    return found.message


def both_say(config, train, check, level):
    """What the whole examination and the short form say, which is the same."""
    report = examined(config, train)
    split = train if isinstance(train, Split) else split_of("train", train)
    short = doctor.short_form(split, split_of("validation", healthy(1000, 4)), config)
    message = told(report.findings, check, level)
    assert message == told(short, check, level)
    assert report.failed() == (level == "error")
    return message
