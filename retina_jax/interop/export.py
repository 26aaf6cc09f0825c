"""Exports weights for torchvision and Detectron2, if their models can represent the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from retina_jax.config import CLASSIFICATION_LOSSES, leaves, resolve
from retina_jax.config.backbones import BACKBONES, InvertedKind
from retina_jax.config.fields import BOX_LOSSES
from retina_jax.errors import UserError
from retina_jax.interop import names
from retina_jax.interop.fit import reorder_anchors
from retina_jax.interop.structure import class_outputs, flatten
from retina_jax.interop.weights import CLASSES, PIXEL_SCALE, made_for
from retina_jax.ops.anchors import LEVELS, level_sizes

SYSTEMS = ("torchvision", "detectron2", "retina_jax")
ANCHOR_ORDER = {"torchvision": "ratio_major", "detectron2": "size_major"}

_ADMITTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "model.norm": (("frozen", "batch"), "has batch norm in its backbone"),
    "model.head_norm": (("none", "group"), "shares the norms of a head across levels"),
    "model.class_specific_boxes": ((False,), "predicts one box for all classes"),
    "model.centerness": ((False,), "predicts no centerness"),
    "model.box_scale_per_level": ((False,), "does not scale the outputs of its box head"),
    "loss.classification": (
        tuple(name for name in CLASSIFICATION_LOSSES if name != "softmax_focal"),
        "scores each class with a sigmoid",
    ),
    "loss.box": (
        tuple(name for name in BOX_LOSSES if name != "dfl"),
        "predicts deltas, not distributions",
    ),
    "anchors.offset": ((0.0,), "centres anchors at k · stride"),
}
_ADMITTED_BY = {
    "torchvision": _ADMITTED
    | {
        "model.width": ((64,), "has a backbone of the published width"),
        "model.stride_in_1x1": ((False,), "has the stride in the 3x3 convolution"),
        "model.head_convs": ((4,), "has four convolutions in each head"),
        "data.pixel_order": (("RGB",), "takes RGB images"),
        "coder.weights": (((1.0, 1.0, 1.0, 1.0),), "encodes boxes with weights of 1"),
    },
    "detectron2": _ADMITTED
    | {
        "model.backbone": (
            tuple(n for n, kind in BACKBONES.items() if not isinstance(kind, InvertedKind)),
            "has a ResNet as its backbone",
        ),
        "model.norm_eps": ((1e-5,), "uses an eps of 1e-5 in every norm"),
        "model.p6_from": (("C5",), "computes P6 from C5"),
    },
    "retina_jax": {},
}


def check_expressible(config: ml_collections.ConfigDict, system: str) -> None:
    """Raises `UserError` for the first field whose value ``system`` cannot represent."""
    fields = leaves(config)
    for field, (admitted, reason) in _ADMITTED_BY[system].items():
        if field in fields and fields[field] not in admitted:
            _refuse(system, field, fields[field], reason)
    if system == "retina_jax":
        return
    model = config.model
    if model.head_channels != model.fpn_channels:
        reason = f"uses the pyramid's channels in the heads, {model.fpn_channels}"
        _refuse(system, "model.head_channels", model.head_channels, reason)
    if model.head_norm == "group" and model.head_channels % 32:
        _refuse(
            system, "model.head_channels", model.head_channels, "uses 32 groups in a group norm"
        )
    c5_channels = BACKBONES[model.backbone].stage_channels(model.width)[-1]
    if system == "torchvision" and model.p6_from == "C5" and c5_channels == model.fpn_channels:
        reason = f"computes P6 from P5 if both have the same number of channels ({c5_channels})"
        _refuse(system, "model.p6_from", model.p6_from, reason)


def _refuse(system: str, field: str, value: Any, reason: str) -> None:
    raise UserError(
        f"{system} cannot represent config.{field}={value!r}: its RetinaNet {reason}; "
        "set --to=retina_jax, which supports every network"
    )


def export_names(
    tree: dict[str, Any], system: str, batch_counters: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of ``tree`` with the names and layout of ``system``, bit for bit.

    The inverse of `read_weights`; does not reorder anchors. ``batch_counters`` adds the
    ``num_batches_tracked`` that torch stores with batch norms. Raises `UserError` for arrays
    without a name in the system.
    """
    flat = {name: np.asarray(value) for name, value in flatten(tree).items()}
    if system == "retina_jax":
        return dict(sorted(flat.items()))
    theirs_of = {ours: theirs for theirs, ours in _pairs(system, flat)}
    without = [name for name in flat if name not in theirs_of]
    if without:
        more = f" and {len(without) - 8} more" if len(without) > 8 else ""
        raise UserError(
            f"{system} has no parameters for {', '.join(without[:8])}{more}; "
            "set --to=retina_jax, which supports every network"
        )
    arrays = {theirs_of[n]: names.to_their_layout(n, value) for n, value in flat.items()}
    if system == "detectron2":  # its convolutions have a bias even before a group norm
        for head in ("class_head", "box_head"):
            for name in [n for n in flat if re.fullmatch(rf"params/{head}/conv\d+/kernel", n)]:
                bias = name.replace("/kernel", "/bias")
                zeros = np.zeros(flat[name].shape[-1], np.float32)
                arrays.setdefault(theirs_of[bias], zeros)
    if batch_counters:
        for name in [n for n in arrays if n.endswith(".running_mean")]:
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            arrays[counter] = np.zeros((), np.int64)
    return dict(sorted(arrays.items()))


def _pairs(system: str, flat: dict[str, np.ndarray]) -> Iterable[tuple[str, str]]:
    if system == "torchvision":
        return names.torchvision_retinanet("params/backbone/stem_block/depthwise/kernel" in flat)
    return names.detectron2_retinanet("params/class_head/norm0/scale" in flat)


def export_weights(
    tree: dict[str, Any], config: ml_collections.ConfigDict, system: str
) -> dict[str, np.ndarray]:
    """The arrays that ``system`` loads, with its names, layout and anchor order.

    Raises `UserError` for a config that it cannot represent.
    """
    check_expressible(config, system)
    order = ANCHOR_ORDER.get(system, config.anchors.order)
    if order != config.anchors.order:
        octaves, ratios = len(config.anchors.octaves), len(config.anchors.ratios)
        tree = reorder_anchors(tree, octaves, ratios, order)
    return export_names(tree, system, config.model.norm == "batch" and system != "retina_jax")


def note_of(
    config: ml_collections.ConfigDict,
    system: str,
    classes: Sequence[tuple[int, str]] | None = None,
    pixel_scale: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """The note to store in the file, for `read_weights`; empty for other systems.

    ``classes``: category id and name of each class, by label; None: not known. ``pixel_scale``: the
    16-bit or float values that map to 0 and 255; None: no such images.

    Files of other systems need no note: their names imply anchors and pixel normalisation.
    """
    if system != "retina_jax":
        return {}
    known = {} if classes is None else {CLASSES: [list(pair) for pair in classes]}
    if pixel_scale is not None:
        known[PIXEL_SCALE] = list(pixel_scale)
    return made_for(leaves(config)) | known


def how_to_load(
    tree: dict[str, Any], config: ml_collections.ConfigDict, system: str, path: str
) -> list[str]:
    """Lines of Python (for retina_jax: a flag) that load ``path`` in ``system``."""
    classes = (class_outputs(tree) or 0) // resolve(config).anchors_per_place
    return {
        "torchvision": _load_in_torchvision,
        "detectron2": _load_in_detectron2,
        "retina_jax": lambda *_: [f"--config.model.init_from={path}"],
    }[system](config, classes, path)


def _anchor_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[float, ...], ...]:
    anchors = config.anchors
    return tuple(
        level_sizes(level, anchors.scale, anchors.octaves, anchors.truncate_sizes)
        for level in LEVELS
    )


def _load_in_torchvision(config: ml_collections.ConfigDict, classes: int, path: str) -> list[str]:
    model, data, evaluation = config.model, config.data, config.eval
    norm = "nn.BatchNorm2d" if model.norm == "batch" else "misc.FrozenBatchNorm2d"
    p6_channels = model.fpn_channels if model.p6_from == "P5" else "channels[-1]"
    mean, std = ([round(v / 255, 6) for v in values] for values in (data.mean, data.std))
    ratios = (tuple(config.anchors.ratios),) * len(LEVELS)
    group_norm = f"functools.partial(nn.GroupNorm, 32, eps={model.norm_eps})"
    head_norm = f", norm_layer={group_norm}" if model.head_norm == "group" else ""
    if isinstance(BACKBONES[model.backbone], InvertedKind):
        body = [
            f"body = torchvision.models.{model.backbone}(norm_layer=norm).features[:18]",
            f"channels = {list(BACKBONES[model.backbone].stage_channels(model.width))}",
            'stages = {"6": "0", "13": "1", "17": "2"}',
        ]
    else:
        body = [
            f"body = torchvision.models.{model.backbone}(norm_layer=norm)",
            "channels = [body.fc.in_features // n for n in (4, 2, 1)]",
            'stages = {"layer2": "0", "layer3": "1", "layer4": "2"}',
        ]
    load = (
        f"safetensors.torch.load_file({path!r})"
        if path.endswith(".safetensors")
        else f"torch.load({path!r}, weights_only=True)"
    )
    return [
        "import functools, safetensors.torch, torch, torchvision",
        "from torch import nn",
        "from torchvision.models.detection import anchor_utils, backbone_utils, retinanet",
        "from torchvision.ops import feature_pyramid_network as fpn, misc",
        f"norm = functools.partial({norm}, eps={model.norm_eps})",
        *body,
        f"top = fpn.LastLevelP6P7({p6_channels}, {model.fpn_channels})",
        "backbone = backbone_utils.BackboneWithFPN(",
        f"    body, stages, channels, {model.fpn_channels}, top)",
        "anchors = anchor_utils.AnchorGenerator(",
        f"    {_anchor_sizes(config)}, {ratios})",
        f"head = retinanet.RetinaNetHead({model.fpn_channels}, "
        f"{resolve(config).anchors_per_place}, {classes}{head_norm})",
        f"model = retinanet.RetinaNet(backbone, {classes}, anchor_generator=anchors, head=head,",
        f"    min_size={data.short_side}, max_size={data.long_side}, "
        f"image_mean={mean}, image_std={std},",
        f"    score_thresh={evaluation.score_threshold}, nms_thresh={evaluation.nms_iou}, "
        f"detections_per_img={evaluation.max_detections}, topk_candidates={evaluation.top_k})",
        f"model.load_state_dict({load})",
    ]


def _load_in_detectron2(config: ml_collections.ConfigDict, classes: int, path: str) -> list[str]:
    model, data, evaluation = config.model, config.data, config.eval
    kind = BACKBONES[model.backbone]
    fields = {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.WEIGHTS": path,
        "MODEL.RESNETS.DEPTH": int(re.search(r"net(\d+)", model.backbone)[1]),
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.RESNETS.NORM": "BN" if model.norm == "batch" else "FrozenBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": bool(model.stride_in_1x1),
        "MODEL.RESNETS.NUM_GROUPS": kind.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": model.width * kind.width_per_group // 64,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": model.width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": model.width * (4 if kind.bottleneck else 1),
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": model.fpn_channels,
        "MODEL.RETINANET.IN_FEATURES": [f"p{level}" for level in LEVELS],
        "MODEL.RETINANET.NUM_CLASSES": classes,
        "MODEL.RETINANET.NUM_CONVS": model.head_convs,
        "MODEL.RETINANET.NORM": "GN" if model.head_norm == "group" else "",
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": list(config.coder.weights),
        "MODEL.RETINANET.SCORE_THRESH_TEST": evaluation.score_threshold,
        "MODEL.RETINANET.NMS_THRESH_TEST": evaluation.nms_iou,
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(sizes) for sizes in _anchor_sizes(config)],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(config.anchors.ratios)],
        "MODEL.PIXEL_MEAN": list(data.mean),
        "MODEL.PIXEL_STD": list(data.std),
        "INPUT.FORMAT": data.pixel_order,
        "INPUT.MIN_SIZE_TEST": data.short_side,
        "INPUT.MAX_SIZE_TEST": data.long_side,
    }
    lines = ["from detectron2.config import get_cfg", "cfg = get_cfg()", "cfg.merge_from_list(["]
    lines += [f"    {name!r}, {value!r}," for name, value in fields.items()]
    return [*lines, "])"]
