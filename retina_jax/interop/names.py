"""Parameter names of backbones, FPNs and heads in other systems.

Each function yields pairs of their name and ours, for every name that a network of the family may
have; export uses the pairs in reverse. Our names are joined by "/" and begin with params or
batch_stats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

Pairs = Iterator[tuple[str, str]]

_BLOCKS = [(stage, block) for stage in (2, 3, 4, 5) for block in range(48)]
_CONVS = range(16)
"""Convolutions of a head; all published heads have four."""


def conv(theirs: str, ours: str) -> Pairs:
    yield f"{theirs}.weight", f"params/{ours}/kernel"
    yield f"{theirs}.bias", f"params/{ours}/bias"


def norm(theirs: str, ours: str) -> Pairs:
    """Names of a norm; group norm only has the first two."""
    yield f"{theirs}.weight", f"params/{ours}/scale"
    yield f"{theirs}.bias", f"params/{ours}/bias"
    yield f"{theirs}.running_mean", f"batch_stats/{ours}/mean"
    yield f"{theirs}.running_var", f"batch_stats/{ours}/var"


def torchvision_resnet(prefix: str = "") -> Pairs:
    yield from conv(f"{prefix}conv1", "backbone/stem_conv")
    yield from norm(f"{prefix}bn1", "backbone/stem_norm")
    for stage, block in _BLOCKS:
        theirs, ours = f"{prefix}layer{stage - 1}.{block}", f"backbone/stage{stage}_block{block}"
        for n in (1, 2, 3):
            yield from conv(f"{theirs}.conv{n}", f"{ours}/conv{n}")
            yield from norm(f"{theirs}.bn{n}", f"{ours}/norm{n}")
        yield from conv(f"{theirs}.downsample.0", f"{ours}/shortcut_conv")
        yield from norm(f"{theirs}.downsample.1", f"{ours}/shortcut_norm")


_MOBILENET = {1: "stem_block"} | {
    feature: f"stage{stage}_block{feature - first}"
    for stage, first, end in ((2, 2, 4), (3, 4, 7), (4, 7, 14), (5, 14, 18))
    for feature in range(first, end)
}
"""Our block for each of torchvision's features after the stem."""


def torchvision_mobilenet(prefix: str = "features.") -> Pairs:
    """MobileNetV2; features 1 to 17 are blocks, of which the first has no widening convolution."""
    yield from conv(f"{prefix}0.0", "backbone/stem_conv")
    yield from norm(f"{prefix}0.1", "backbone/stem_norm")
    for feature, block in _MOBILENET.items():
        theirs, ours = f"{prefix}{feature}.conv", f"backbone/{block}"
        layers = ["depthwise"] if feature == 1 else ["expand", "depthwise"]
        for n, layer in enumerate(layers):
            yield from conv(f"{theirs}.{n}.0", f"{ours}/{layer}")
            yield from norm(f"{theirs}.{n}.1", f"{ours}/{layer}_norm")
        yield from conv(f"{theirs}.{len(layers)}", f"{ours}/project")
        yield from norm(f"{theirs}.{len(layers) + 1}", f"{ours}/project_norm")


_TORCHVISION_HEADS = (
    ("head.classification_head", "cls_logits", "class_head"),
    ("head.regression_head", "bbox_reg", "box_head"),
)


def torchvision_retinanet(mobilenet: bool) -> Pairs:
    """v1 and v2; the heads of v2 have a group norm after each convolution.

    ``mobilenet``: the backbone is a MobileNetV2, whose stem has another name than a ResNet's.
    """
    backbone = torchvision_mobilenet if mobilenet else torchvision_resnet
    yield from backbone("backbone.body.")
    for index, level in enumerate((3, 4, 5)):
        yield from conv(f"backbone.fpn.inner_blocks.{index}.0", f"fpn/lateral{level}")
        yield from conv(f"backbone.fpn.layer_blocks.{index}.0", f"fpn/output{level}")
    for level in (6, 7):
        yield from conv(f"backbone.fpn.extra_blocks.p{level}", f"fpn/p{level}")
    for theirs, predict, ours in _TORCHVISION_HEADS:
        for n in _CONVS:
            yield from conv(f"{theirs}.conv.{n}.0", f"{ours}/conv{n}")
            yield from norm(f"{theirs}.conv.{n}.1", f"{ours}/norm{n}")
        yield from conv(f"{theirs}.{predict}", f"{ours}/predict")


def torchvision_retinanet_before_0_13() -> Pairs:
    """Names in older files; read, never written."""
    for index, level in enumerate((3, 4, 5)):
        yield from conv(f"backbone.fpn.inner_blocks.{index}", f"fpn/lateral{level}")
        yield from conv(f"backbone.fpn.layer_blocks.{index}", f"fpn/output{level}")
    for theirs, _, ours in _TORCHVISION_HEADS:
        for n in _CONVS:
            yield from conv(f"{theirs}.conv.{2 * n}", f"{ours}/conv{n}")


def detectron2_resnet(prefix: str = "") -> Pairs:
    yield from conv(f"{prefix}stem.conv1", "backbone/stem_conv")
    yield from norm(f"{prefix}stem.conv1.norm", "backbone/stem_norm")
    for stage, block in _BLOCKS:
        theirs, ours = f"{prefix}res{stage}.{block}", f"backbone/stage{stage}_block{block}"
        for n in (1, 2, 3):
            yield from conv(f"{theirs}.conv{n}", f"{ours}/conv{n}")
            yield from norm(f"{theirs}.conv{n}.norm", f"{ours}/norm{n}")
        yield from conv(f"{theirs}.shortcut", f"{ours}/shortcut_conv")
        yield from norm(f"{theirs}.shortcut.norm", f"{ours}/shortcut_norm")


DETECTRON2_HEADS = (
    ("head.cls_subnet", "head.cls_score", "class_head"),
    ("head.bbox_subnet", "head.bbox_pred", "box_head"),
)


def detectron2_retinanet(group_norm_heads: bool) -> Pairs:
    """Numbers in a head count convolutions, norms and ReLUs, so they depend on the norm."""
    yield from detectron2_resnet("backbone.bottom_up.")
    for level in (3, 4, 5):
        yield from conv(f"backbone.fpn_lateral{level}", f"fpn/lateral{level}")
        yield from conv(f"backbone.fpn_output{level}", f"fpn/output{level}")
    for level in (6, 7):
        yield from conv(f"backbone.top_block.p{level}", f"fpn/p{level}")
    for theirs, predict, ours in DETECTRON2_HEADS:
        for n in _CONVS:
            if group_norm_heads:
                yield from conv(f"{theirs}.{3 * n}", f"{ours}/conv{n}")
                yield from norm(f"{theirs}.{3 * n + 1}", f"{ours}/norm{n}")
            else:
                yield from conv(f"{theirs}.{2 * n}", f"{ours}/conv{n}")
        yield from conv(predict, f"{ours}/predict")


_CAFFE2_NORMS = (("s", "b", "rm", "riv"), ("gamma", "beta", "running_mean", "running_var"))


def caffe2_resnet() -> Pairs:
    """MSRA's and FAIR's ImageNet models, with the norms of Detectron and those of Detectron2's zoo.

    Detectron2's `convert_basic_c2_names` reads both spellings.
    """

    def layer(theirs: str, their_norm: str, ours: str, our_norm: str) -> Pairs:
        yield f"{theirs}_w", f"params/{ours}/kernel"
        for scale, bias, mean, var in _CAFFE2_NORMS:
            yield f"{their_norm}_{scale}", f"params/{our_norm}/scale"
            yield f"{their_norm}_{bias}", f"params/{our_norm}/bias"
            yield f"{their_norm}_{mean}", f"batch_stats/{our_norm}/mean"
            yield f"{their_norm}_{var}", f"batch_stats/{our_norm}/var"

    yield from layer("conv1", "res_conv1_bn", "backbone/stem_conv", "backbone/stem_norm")
    for stage, block in _BLOCKS:
        theirs, ours = f"res{stage}_{block}", f"backbone/stage{stage}_block{block}"
        branches = [("branch1", "shortcut_conv", "shortcut_norm")]
        branches += [(f"branch2{'abc'[n]}", f"conv{n + 1}", f"norm{n + 1}") for n in range(3)]
        for branch, our_conv, our_norm in branches:
            theirs_here = f"{theirs}_{branch}"
            yield from layer(
                theirs_here, f"{theirs_here}_bn", f"{ours}/{our_conv}", f"{ours}/{our_norm}"
            )


TORCHVISION_IGNORED = re.compile(
    r"(.*\.)?num_batches_tracked|fc\.(weight|bias)"
    r"|(features\.18\.\d|classifier\.1)\.(weight|bias|running_mean|running_var)"
)
"""What classifies images, among it the last convolution of MobileNetV2."""
DETECTRON2_IGNORED = re.compile(
    r"(.*\.)?num_batches_tracked|pixel_(mean|std)|anchor_generator\.cell_anchors\.\d+"
    r"|(backbone\.bottom_up\.)?(stem\.fc|linear)\.(weight|bias)"
)
# conv1_b: in MSRA's models, but not used by Detectron2
CAFFE2_IGNORED = re.compile(r".*_momentum|lr|model_iter|weight_order|(fc1000|pred)_[wb]|conv1_b")


def to_our_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Converts the value of our ``name``: kernels from OIHW to HWIO, others unchanged."""
    is_kernel = name.endswith("/kernel") and value.ndim == 4
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if is_kernel else value


def to_their_layout(name: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_our_layout`."""
    is_kernel = name.endswith("/kernel") and value.ndim == 4
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if is_kernel else value
