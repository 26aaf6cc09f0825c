"""Infers config fields of a network from the shapes of its weights."""

from __future__ import annotations

import re
from typing import Any

import flax.traverse_util

from retina_jax.config.backbones import BACKBONES, InvertedKind, ResidualKind
from retina_jax.models.backbone import STAGES

_BACKBONE_OF = {
    (
        kind.blocks,
        kind.bottleneck,
        kind.groups,
        kind.width_per_group * kind.groups // 64,  # the 3x3's channels over a plain ResNet's
    ): name
    for name, kind in BACKBONES.items()
    if isinstance(kind, ResidualKind)
}


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def structure_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Fields such as ``{"model.backbone": "resnet50", "model.width": 64, "model.p6_from": "C5"}``.

    Contains only fields that the shapes determine. ``model.norm`` is "frozen" if there are
    statistics (batch norm has the same names) and "group" if there are none.
    """
    shapes = {name: value.shape for name, value in flatten(tree).items()}
    found: dict[str, Any] = {}
    stem = shapes.get("params/backbone/stem_conv/kernel")
    if stem and len(stem) == 4:
        found["model.norm"] = (
            "frozen" if "batch_stats/backbone/stem_norm/mean" in shapes else "group"
        )
    if name := _inverted(shapes):
        found["model.backbone"] = name
        if _has_published_width(shapes, name):  # other widths may share their channels
            found["model.width"] = 64
    elif stem and len(stem) == 4:
        found["model.width"] = stem[-1]
    if name := _backbone(shapes):
        found["model.backbone"] = name
    p6, p7 = shapes.get("params/fpn/p6/kernel"), shapes.get("params/fpn/p7/kernel")
    lateral = shapes.get("params/fpn/lateral5/kernel")
    if p6 and p7 and lateral:
        found["model.fpn_channels"] = p7[-1]
        if lateral[2] != p7[-1]:  # otherwise C5 and P5 have the same number of channels
            found["model.p6_from"] = "C5" if p6[2] == lateral[2] else "P5"
    if predict := shapes.get("params/class_head/predict/kernel"):
        tower = [n for n in shapes if re.fullmatch(r"params/class_head/conv\d+/kernel", n)]
        found["model.head_convs"] = len(tower)
        if tower:
            found["model.head_channels"] = predict[2]
            if "params/class_head/norm0/scale" in shapes:
                found["model.head_norm"] = "group"
            elif "params/class_head/level3_norm0/scale" in shapes:
                found["model.head_norm"] = "batch"
            elif "params/class_head/conv0/bias" in shapes:
                found["model.head_norm"] = "none"
    if "params/box_head/predict/kernel" in shapes:
        found["model.centerness"] = "params/box_head/centerness/kernel" in shapes
        found["model.box_scale_per_level"] = "params/box_head/scale3" in shapes
    return found


def groups_of(tree: dict[str, Any]) -> int:
    """Groups of the backbone's 3x3 convolutions: 1 except for ResNeXt."""
    return _groups({name: value.shape for name, value in flatten(tree).items()})


def class_outputs(tree: dict[str, Any]) -> int | None:
    """Outputs of the class layer per cell, anchors times classes; None without a class layer."""
    return _outputs(tree, "class_head")


def box_outputs(tree: dict[str, Any]) -> int | None:
    """Outputs of the box layer per cell: anchors times 4, or anchors times classes times 4."""
    return _outputs(tree, "box_head")


def _outputs(tree: dict[str, Any], head: str) -> int | None:
    bias = flatten(tree).get(f"params/{head}/predict/bias")
    return None if bias is None else int(bias.shape[0])


def has_bottlenecks(tree: dict[str, Any]) -> bool:
    return "params/backbone/stage2_block0/conv3/kernel" in flatten(tree)


def _groups(shapes: dict[str, tuple[int, ...]]) -> int:
    first = shapes.get("params/backbone/stage2_block0/conv1/kernel")
    second = shapes.get("params/backbone/stage2_block0/conv2/kernel")
    if not first or not second or len(first) != 4 or len(second) != 4:
        return 1
    return first[-1] // max(second[2], 1)


def _backbone(shapes: dict[str, tuple[int, ...]]) -> str | None:
    pattern = re.compile(r"params/backbone/stage(\d)_block(\d+)/conv1/kernel")
    blocks = [match.groups() for name in shapes if (match := pattern.fullmatch(name))]
    counts = tuple(sum(stage == s for s, _ in blocks) for stage in map(str, STAGES))
    second = shapes.get("params/backbone/stage2_block0/conv2/kernel")
    third = shapes.get("params/backbone/stage2_block0/conv3/kernel")
    if not second:
        return None
    relative = 4 * second[-1] // third[-1] if third else 1
    return _BACKBONE_OF.get((counts, third is not None, _groups(shapes), relative))


def _inverted(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The backbone of inverted residual blocks with these numbers of blocks."""
    pattern = re.compile(r"params/backbone/stage(\d)_block\d+/depthwise/kernel")
    stages = [match[1] for name in shapes if (match := pattern.fullmatch(name))]
    counts = tuple(stages.count(str(stage)) for stage in STAGES)
    for name, kind in BACKBONES.items():
        if isinstance(kind, InvertedKind):
            blocks = tuple(sum(n for _, n in stage) for stage in kind.stages)
            if blocks == counts:
                return name
    return None


def _has_published_width(shapes: dict[str, tuple[int, ...]], name: str) -> bool:
    kind = BACKBONES[name]
    ends = [sum(n for _, n in stage) - 1 for stage in kind.stages[1:]]
    kernels = [
        shapes.get(f"params/backbone/stage{stage}_block{end}/project/kernel")
        for stage, end in zip(STAGES[1:], ends, strict=True)
    ]
    return tuple(kernel[-1] for kernel in kernels if kernel) == kind.stage_channels(64)
