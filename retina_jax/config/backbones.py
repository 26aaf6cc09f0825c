"""The backbones: the parameters that distinguish them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ResidualKind:
    """A ResNet, ResNeXt or Wide ResNet."""

    blocks: tuple[int, int, int, int]
    """Number of blocks in stages C2 to C5."""
    bottleneck: bool = True
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution."""
    width_per_group: int = 64
    """Channels per group in C2, for a stem with 64 channels."""

    def stage_channels(self, width: int) -> tuple[int, int, int]:
        """Channels of C3, C4 and C5 for a ``model.width``."""
        c2 = width * (4 if self.bottleneck else 1)
        return 2 * c2, 4 * c2, 8 * c2


@dataclasses.dataclass(frozen=True)
class InvertedKind:
    """A MobileNetV2: inverted residual blocks (arXiv:1801.04381)."""

    stem: int
    """Channels of the first convolution."""
    stem_block: int
    """Channels of the block at stride 2, which does not expand."""
    stages: tuple[tuple[tuple[int, int], ...], ...]
    """C2 to C5, each as pairs of channels and number of blocks with them."""
    expansion: int = 6
    bottleneck: bool = False

    def channels(self, published: int, width: int) -> int:
        """Channels for a ``model.width``: scaled, a multiple of 8, at least 90 % of the product.

        torchvision's ``_make_divisible``, with the width multiplier ``width / 64``.
        """
        exact = published * width / 64
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * exact else rounded

    def stage_channels(self, width: int) -> tuple[int, int, int]:
        """Channels of C3, C4 and C5 for a ``model.width``."""
        c3, c4, c5 = (self.channels(stage[-1][0], width) for stage in self.stages[1:])
        return c3, c4, c5


BACKBONES: dict[str, ResidualKind | InvertedKind] = {
    "resnet18": ResidualKind((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResidualKind((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResidualKind((3, 4, 6, 3)),
    "resnet101": ResidualKind((3, 4, 23, 3)),
    "resnet152": ResidualKind((3, 8, 36, 3)),
    "resnext50_32x4d": ResidualKind((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": ResidualKind((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": ResidualKind((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": ResidualKind((3, 4, 6, 3), width_per_group=128),
    "mobilenet_v2": InvertedKind(
        stem=32,
        stem_block=16,
        stages=(((24, 2),), ((32, 3),), ((64, 4), (96, 3)), ((160, 3), (320, 1))),
    ),
}
"""By torchvision's name: ResNet (arXiv:1512.03385), ResNeXt (1611.05431), Wide ResNet
(1605.07146), MobileNetV2 (1801.04381; C3, C4 and C5 are its features 6, 13 and 17)."""
