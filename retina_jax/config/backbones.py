"""The backbones: the parameters that distinguish the residual networks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One entry of `BACKBONES`."""

    blocks: tuple[int, int, int, int]
    """Number of blocks in stages C2 to C5."""
    bottleneck: bool = True
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution."""
    width_per_group: int = 64
    """Channels per group in C2, for a stem with 64 channels."""


BACKBONES = {
    "resnet18": Backbone((2, 2, 2, 2), bottleneck=False),
    "resnet34": Backbone((3, 4, 6, 3), bottleneck=False),
    "resnet50": Backbone((3, 4, 6, 3)),
    "resnet101": Backbone((3, 4, 23, 3)),
    "resnet152": Backbone((3, 8, 36, 3)),
    "resnext50_32x4d": Backbone((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Backbone((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Backbone((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Backbone((3, 4, 6, 3), width_per_group=128),
}
"""By torchvision's name: ResNet (arXiv:1512.03385), ResNeXt (1611.05431), Wide ResNet
(1605.07146)."""
