"""The rows of each study: name, fields, and, for the paper's own studies, its AP on COCO."""

from __future__ import annotations

import dataclasses

import ml_collections

from retina_jax.config import resolve
from retina_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of a study; rows with the same fields share their runs."""

    name: str
    fields: dict[str, object]
    paper: float | None = None
    """The paper's COCO box AP (ResNet-50 at 600 px; OHEM: ResNet-101); None: not reported."""
    variant_of: str = ""
    """In a study whose rows build on each other, the row that this one changes instead of the last
    one; no row builds on it."""

    def slug(self) -> str:
        """Name of the row's folder, from its fields."""
        pairs = [f"{name.split('.', 1)[-1]}={value}" for name, value in sorted(self.fields.items())]
        return ",".join(pairs).replace(" ", "").replace("/", "_") or "as_it_is"


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of rows."""

    title: str
    rows: tuple[Row, ...]


def _focal(gamma: float, alpha: float) -> dict[str, object]:
    return {"loss.classification": "focal", "loss.gamma": gamma, "loss.alpha": alpha}


def _ohem(examples: int, nms_iou: float, negatives: float = 0.0) -> dict[str, object]:
    return {
        "loss.classification": "ohem",
        "loss.ohem_examples": examples,
        "loss.ohem_nms_iou": nms_iou,
        "loss.ohem_negatives": negatives,
    }


_CE = {"loss.classification": "cross_entropy"}
_PRIOR = Study(
    "(a) Cross entropy without and with the prior",
    (
        Row("CE, prior 0.5", {**_CE, "model.prior": 0.5}),
        Row("CE, prior 0.01", {**_CE, "model.prior": 0.01}, 30.2),
    ),
)
_ALPHA = Study(
    "(a) Balanced cross entropy: α",
    tuple(
        Row(f"balanced CE, α {alpha}", _focal(0.0, alpha), paper)
        for alpha, paper in (
            (0.1, 0.0), (0.25, 10.8), (0.5, 30.2), (0.75, 31.1), (0.9, 30.8), (0.99, 28.7),
            (0.999, 25.1),
        )
    ),
)  # fmt: skip
_FOCAL = Study(
    "(b) Focal loss: γ, with the paper's best α for each",
    tuple(
        Row(f"FL, γ {gamma}, α {alpha}", _focal(gamma, alpha), paper)
        for gamma, alpha, paper in (
            (0.0, 0.75, 31.1), (0.1, 0.75, 31.4), (0.2, 0.75, 31.9), (0.5, 0.5, 32.9),
            (1.0, 0.25, 33.7), (2.0, 0.25, 34.0), (5.0, 0.25, 32.2),
        )
    ),
)  # fmt: skip
_OHEM = Study(
    "(d) OHEM and focal loss",
    (
        *(
            Row(f"OHEM, {examples} anchors, NMS {nms_iou}", _ohem(examples, nms_iou), paper)
            for nms_iou, examples, paper in (
                (0.7, 128, 31.1), (0.7, 256, 31.8), (0.7, 512, 30.6),
                (0.5, 128, 32.8), (0.5, 256, 31.0), (0.5, 512, 27.6),
            )
        ),
        *(
            Row(f"OHEM 1:3, {examples} anchors, NMS 0.5", _ohem(examples, 0.5, 3.0), paper)
            for examples, paper in ((128, 31.1), (256, 28.3), (512, 24.0))
        ),
        Row("FL, γ 2.0, α 0.25", _focal(2.0, 0.25), 36.0),
    ),
)  # fmt: skip
_BOXES = Study(
    "One box for all classes, or one box per class",
    (
        Row("class-agnostic", {"model.class_specific_boxes": False}),
        Row("class-specific", {"model.class_specific_boxes": True}),
    ),
)
_LOSSES = Study(
    "Classification losses",
    (
        Row("CE", _CE),
        Row("balanced CE, α 0.75", _focal(0.0, 0.75)),
        Row("FL, γ 2.0, α 0.25", _focal(2.0, 0.25)),
        Row("FL*, γ 2, β 1", {"loss.classification": "focal_star"}),
        Row("softmax FL, γ 2.0, α 0.25", {"loss.classification": "softmax_focal"}),
    ),
)


def _anchors(config: ml_collections.ConfigDict) -> Study:
    rows = []
    for scales, ratios, paper in (
        (1, 1, 30.3), (2, 1, 31.9), (3, 1, 31.8), (1, 3, 32.4), (2, 3, 34.2), (3, 3, 34.0),
        (4, 3, 33.8),
    ):  # fmt: skip
        fields = {
            "anchors.octaves": tuple(k / scales for k in range(scales)),
            "anchors.ratios": (1.0,) if ratios == 1 else (0.5, 1.0, 2.0),
        }
        rows.append(Row(f"{scales} scales × {ratios} ratios", fields, paper))
    return Study("(c) Anchors: scales × ratios", tuple(rows))


PAPER_SIZES = {
    ("resnet50", 0.5): 30.5, ("resnet50", 0.625): 32.5, ("resnet50", 0.75): 34.3,
    ("resnet50", 0.875): 35.1, ("resnet50", 1.0): 35.7, ("resnet101", 0.5): 31.9,
    ("resnet101", 0.625): 34.4, ("resnet101", 0.75): 36.0, ("resnet101", 0.875): 37.1,
    ("resnet101", 1.0): 37.8,
}  # fmt: skip
"""AP in Table 1e, by backbone and image scale / 800 px."""


def _speed(config: ml_collections.ConfigDict) -> Study:
    deeper = {
        "resnet18": "resnet34", "resnet34": "resnet50", "resnet50": "resnet101",
        "resnet101": "resnet152", "resnext50_32x4d": "resnext101_32x8d",
    }  # fmt: skip
    rows = []
    for backbone in (config.model.backbone, deeper.get(config.model.backbone)):
        for share in (0.5, 0.625, 0.75, 0.875, 1.0):
            if backbone is None:
                continue
            fields = {
                "model.backbone": backbone,
                "data.short_side": round(config.data.short_side * share),
                "data.long_side": round(config.data.long_side * share),
                "data.buckets": tuple(
                    tuple(max(32, -(-int(side * share) // 32) * 32) for side in bucket)
                    for bucket in resolve(config).buckets
                ),
            }
            name = f"{backbone}, {fields['data.short_side']} px"
            rows.append(Row(name, fields, PAPER_SIZES.get((backbone, share))))
    return Study("(e) Backbone depth, image size and speed", tuple(rows))


def _modern(config: ml_collections.ConfigDict) -> Study:
    """What was added to RetinaNet since, one switch after the other, at the config's learning rate.

    Row by row what arXiv:1912.02424 (ATSS) and arXiv:2006.04388 (QFL and DFL) add up. As there,
    nothing else changes between rows. The single anchor has twice the size of the nine's smallest,
    8 strides on COCO, as in these papers. GIoU has their weight of 2.

    A config with a norm in its heads needs it from the first row on: in narrow heads, initial
    weights of std 0.01 let activations vanish. Then the row without it comes last.
    """
    nine = {
        "anchors.octaves": (0.0, 1 / 3, 2 / 3),
        "anchors.ratios": (0.5, 1.0, 2.0),
        "anchors.scale": float(config.anchors.scale),
    }
    one = {
        "anchors.octaves": (0.0,),
        "anchors.ratios": (1.0,),
        "anchors.scale": 2 * float(config.anchors.scale),
    }
    norm = config.model.head_norm
    fields: dict[str, object] = {
        **nine,
        "matching.kind": "iou",
        "loss.classification": "focal",
        "loss.box": "smooth_l1",
        "loss.box_weight": 1.0,
        "model.head_norm": norm,
        "model.centerness": False,
        "model.box_scale_per_level": False,
        "train.ema": 0.0,
    }
    switches: list[tuple[str, dict[str, object]]] = [
        ("+ one anchor", one),
        ("+ ATSS", {"matching.kind": "atss"}),
        ("+ GIoU", {"loss.box": "giou", "loss.box_weight": 2.0}),
        ("+ QFL", {"loss.classification": "qfl"}),
        ("+ DFL", {"loss.box": "dfl"}),
        ("+ EMA", {"train.ema": 0.9998}),
    ]
    if norm == "none":
        switches.insert(3, ("+ group norm", {"model.head_norm": "group"}))
    rows = [Row("RetinaNet, nine anchors", fields)]
    for name, switch in switches:
        fields = {**fields, **switch}
        rows.append(Row(name, fields))
    base = next(row for row in rows if row.name == ("+ group norm" if norm == "none" else "+ GIoU"))
    variants: list[tuple[str, dict[str, object]]] = [
        ("ATSS and GIoU, but nine anchors", nine),
        ("ATSS and GIoU, and centerness", {"model.centerness": True}),
    ]
    if norm != "none":
        variants.append(("ATSS and GIoU, no norm in the heads", {"model.head_norm": "none"}))
    rows += [
        Row(name, {**base.fields, **change}, variant_of=base.name) for name, change in variants
    ]
    return Study("From RetinaNet to one anchor, step by step", tuple(rows))


_STUDIES = {
    "prior": _PRIOR,
    "alpha": _ALPHA,
    "focal": _FOCAL,
    "anchors": _anchors,
    "ohem": _OHEM,
    "speed": _speed,
    "boxes": _BOXES,
    "losses": _LOSSES,
    "modern": _modern,
}
NAMES = tuple(_STUDIES)


def study(name: str, config: ml_collections.ConfigDict) -> Study:
    """The study with this name for an experiment; `UserError` for an unknown name."""
    if name not in _STUDIES:
        raise UserError(f"--study={name} must be one of {', '.join(NAMES)}")
    entry = _STUDIES[name]
    return entry if isinstance(entry, Study) else entry(config)
