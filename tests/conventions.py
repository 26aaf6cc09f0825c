"""The published table of conventions (../shared/reference.md), read as fields of a config."""

import math
import re
from fractions import Fraction

SYSTEMS = {
    "coco": ("paper", 0),
    "coco_torchvision_v1": ("torchvision v1 → v2", 0),
    "coco_torchvision_v2": ("torchvision v1 → v2", 1),
    "coco_detectron2": ("Detectron2", 0),
    "coco_detectron2:1x": ("Detectron2", 0),
    "coco_detectron2:3x": ("Detectron2", 0),
    "coco_tf_model_garden": ("TF Model Garden", 0),
}
"""Experiment to its column, and to its side of an arrow there."""
_EPOCH, _WHOLE_EPOCH = 117_266 / 16, 118_287 // 256
"""Steps: COCO's training images with boxes in batches of 16, and all of them in batches of 256."""
_IMAGENET = {
    "data.mean": (123.675, 116.28, 103.53),
    "data.std": (58.395, 57.12, 57.375),
    "data.pixel_order": "RGB",
}


def read_table(text, experiment):
    """Row to cell of an experiment's column; rows that say nothing of it ("–") are left out."""
    column, side = SYSTEMS[experiment]
    lines = text[text.index("## Conventions") :].splitlines()[1:]
    lines = [line.strip("| \n").split(" | ") for line in lines[: lines.index("")]]
    place = [name.strip() for name in lines[0]].index(column) + 1
    cells = {}
    for row in lines[2:]:
        sides = row[place].split(" → ")
        cell = sides[min(side, len(sides) - 1)].strip()
        if cell != "–":
            cells[row[0].strip()] = cell
    return cells


def numbers(cell):
    return [float(number) for number in re.findall(r"\d*\.?\d+(?:e-?\d+)?", cell)]


def _anchor_size(cell):
    if "stride" in cell:  # 4·stride
        scale = numbers(cell)[0]
    elif "–" in cell:  # 32 px on the smallest level, whose stride is 8, to 512 on the largest
        smallest, largest = numbers(cell)[:2]
        assert largest / smallest == 128 / 8
        scale = smallest / 8
    else:  # torchvision's x is 32, …
        scale = 4.0
    return {
        "anchors.scale": scale,
        "anchors.octaves": (0.0, 1 / 3, 2 / 3),
        "anchors.truncate_sizes": "int(" in cell,
    }


def _ratios(cell):
    if ":" in cell:
        return {"anchors.ratios": tuple(float(Fraction(*map(int, p))) for p in
                                        re.findall(r"(\d):(\d)", cell))}  # fmt: skip
    ratios = (0.5, 1.0, 2.0)
    if "w/h" in cell:
        return {"anchors.ratios": tuple(1 / ratio for ratio in ratios)}
    return {
        "anchors.ratios": ratios,
        "anchors.order": re.search(r"(\w+)-major", cell)[1] + "_major",
    }


def _coder(cell):
    if cell == "none":
        return {"coder.clamp": 88.0}  # exp(88) is float32's last: no clamp
    return {"coder.weights": (1.0,) * 4, "coder.clamp": math.log(1000 / 16)}


def _box_loss(cell):
    if match := re.fullmatch(r"Huber (\S+) × (\d+)", cell):
        # Huber is its delta times smooth L1, and the mean of four numbers
        delta, weight = map(float, match.groups())
        return {
            "loss.box": "smooth_l1", "loss.smooth_l1_beta": delta,
            "loss.box_weight": weight * delta / 4,
        }  # fmt: skip
    name = re.match(r"smooth L1|L1|GIoU", cell)[0]
    return {"loss.box": name.lower().replace(" ", "_"), "loss.box_weight": 1.0}


def _normaliser(cell):
    if cell.startswith("EMA"):
        initial, momentum = numbers(cell)[:2]
        return {
            "loss.normalizer": "ema", "loss.ema_initial": initial, "loss.ema_momentum": momentum
        }  # fmt: skip
    names = {"positives": "foreground", "per image": "per_image", "sum + 1": "foreground_plus_1"}
    return {"loss.normalizer": next(v for k, v in names.items() if cell.startswith(k))}


def _backbone_norm(cell):
    if "BN" in cell:
        return {"model.norm": "batch"}
    fields = {"model.norm": "frozen", "model.stride_in_1x1": "stride in 1x1" in cell}
    if match := re.search(r"(\d) stages trained", cell):  # of the stem and four stages
        return fields | {"model.frozen_stages": 5 - int(match[1])}
    return fields | {"model.frozen_stages": int(re.search(r"first (\d)", cell)[1])}


def _resize(cell):
    if "²" in cell:  # a square letterbox, and factors
        side, *scales = numbers(cell.replace("–", " "))
        return {
            "data.short_side": int(side), "data.long_side": int(side),
            "data.scale_range": tuple(scales),
        }  # fmt: skip
    if cell == "multi-scale":  # torchvision's references/detection/presets.py: 480 to 800 by 32
        return {"data.train_short_sides": tuple(range(480, 801, 32)), "data.rounding": "floor"}
    if match := re.match(r"(\d+)…(\d+) step (\d+) / (\d+)", cell):
        low, high, step, long = map(int, match.groups())
        return {
            "data.train_short_sides": tuple(range(low, high + 1, step)),
            "data.short_side": high, "data.long_side": long,
            "data.antialias": "PIL" in cell, "data.rounding": "nearest",
        }  # fmt: skip
    sides = [int(n) for n in re.findall(r"\d{3,}", cell)]
    fields = dict(zip(("data.short_side", "data.long_side"), sides, strict=False))
    if "floor" in cell:
        fields |= {"data.rounding": "floor", "data.antialias": False}
    return fields | {"data.train_short_sides": ()}


def _pixels(cell):
    if cell.startswith("BGR"):
        *mean, std = numbers(cell)
        return {
            "data.pixel_order": "BGR", "data.mean": tuple(mean), "data.std": (std,) * 3
        }  # fmt: skip
    return _IMAGENET


def _optimiser(cell, experiment):
    if match := re.search(r"\((\dx): (.*)\)", cell):  # another schedule in brackets
        other = experiment.endswith(f":{match[1]}")
        cell = cell.split(",")[0] + ", " + match[2] if other else cell[: match.start()]
    fields = {"optimizer.name": cell.split()[0].lower()}
    if match := re.search(r"batch (\d+)", cell):
        fields |= {
            "train.batch_size": int(match[1]),
            "optimizer.learning_rate_batch": int(match[1]),
        }
    if match := re.match(r"SGD (\.9), ", cell):
        fields["optimizer.momentum"] = float(match[1])
    fields["optimizer.learning_rate"] = numbers(
        re.search(r"(?:SGD|AdamW|batch \d+,) (\.0\S*|\.3\S*|1e-4)", cell)[1]
    )[0]
    if match := re.search(r"wd (\S+)", cell):
        fields["optimizer.weight_decay"] = float(match[1])
    if match := re.search(r"(\d+)k (?:÷10 )?at (\d+)k/(\d+)k", cell):
        steps, *at = (1000 * int(number) for number in match.groups())
        fields |= {"train.steps": steps, "optimizer.decay_at": tuple(at)}
    if match := re.search(r"(\d+) ep\b", cell):
        epoch = _WHOLE_EPOCH if "batch 256" in cell else _EPOCH
        fields["train.steps"] = round(int(match[1]) * epoch)
        if at := re.search(r"at (\d+)/(\d+)", cell):
            fields["optimizer.decay_at"] = tuple(round(int(n) * epoch) for n in at.groups())
    if "÷10" in cell:
        fields["optimizer.decay_factor"] = 0.1
    return fields


def _warm_up(cell, learning_rate):
    steps, start = re.fullmatch(r"(\d+) it from (\S+)", cell).groups()
    factor = float(Fraction(start)) if "/" in start else float(start) / learning_rate
    return {"optimizer.warmup_steps": int(steps), "optimizer.warmup_factor": factor}


def _decay(cell):
    fields = {"optimizer.decay_biases": True} if "incl. bias" in cell else {}
    if match := re.search(r"\de-\d", cell):
        fields["optimizer.weight_decay"] = float(match[0])
    return fields


def _padded_to(cell, fields):
    """Sides of every bucket: multiples of a number, or one square."""
    buckets = fields["data.buckets"]
    if cell == "square":
        return {"data.buckets": tuple((height, height) for height, _ in buckets)}
    unit = int(cell)
    return {"data.buckets": tuple(tuple(-(-side // unit) * unit for side in b) for b in buckets)}


def conventions(text, experiment, fields):
    """Field to value, as the table has it for an experiment.

    ``fields`` are the experiment's own, with buckets as they are resolved: what the table says
    relative to another field, it says relative to these.
    """
    rows = {
        "anchor size": _anchor_size,
        "ratios (order)": _ratios,
        "rounding": lambda c: {"anchors.rounded": c != "none"},
        "centres": lambda c: {
            "anchors.offset": 0.5 if "½" in c else 0.0,
            "anchors.stride_from": "grid" if "grid" in c else "level",
        },
        "IoU fg / bg": lambda c: dict(
            zip(("matching.foreground_iou", "matching.background_iou"), numbers(c), strict=True)
        ),
        "low-quality match": lambda c: {"matching.low_quality": True} if c == "yes" else {},
        "coder weights, clamp": _coder,
        "box loss": _box_loss,
        "focal α, γ": lambda c: dict(zip(("loss.alpha", "loss.gamma"), numbers(c), strict=True)),
        "normaliser": _normaliser,
        "prior, init std": lambda c: dict(
            zip(("model.prior", "model.predictor_std"), numbers(c), strict=True)
        ),
        "P6 from": lambda c: {"model.p6_from": c},
        "head norm": lambda c: {
            "model.head_norm": {"none": "none", "GN(32)": "group", "BN per level": "batch"}[c]
        },
        "backbone norm": _backbone_norm,
        "classes": lambda c: {"data.labels": "category_ids" if c[:2] == "91" else "dense"},
        "score, top-k per level": lambda c: dict(
            zip(("eval.score_threshold", "eval.top_k"), numbers(c), strict=True)
        ),
        "NMS, detections": lambda c: dict(
            zip(("eval.nms_iou", "eval.max_detections"), numbers(c), strict=True)
        ),
        "resize": _resize,
        "pixels": _pixels,
        "padded to": lambda c: _padded_to(c, fields),
        "optimiser": lambda c: _optimiser(c, experiment),
        "warm-up": lambda c: _warm_up(c, fields["optimizer.learning_rate"]),
        "decay": _decay,
        "empty images": lambda c: {"data.drop_empty": c == "dropped"},
    }
    expected = {}
    for name, cell in read_table(text, experiment).items():
        expected |= rows[name](cell)
    return expected
