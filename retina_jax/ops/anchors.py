"""Anchor boxes, computed with NumPy at trace time from static shapes: constants of the program.

Each convention that differs between systems (centres, rounding, order) is an argument.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from retina_jax.errors import UserError

LEVELS = (3, 4, 5, 6, 7)
ORDERS = ("size_major", "ratio_major")
STRIDES_FROM = ("level", "grid")


def feature_grid(image_size: tuple[int, int], level: int) -> tuple[int, int]:
    """Rows and columns of pyramid level P``level`` for an input of ``(height, width)`` pixels.

    With torch's padding, every layer of stride 2 rounds its output size up.
    """
    height, width = image_size
    return -(-height // 2**level), -(-width // 2**level)


def pyramid_grids(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """`feature_grid` of P3 to P7."""
    return [feature_grid(image_size, level) for level in LEVELS]


def level_sizes(
    level: int, scale: float, octaves: Sequence[float], truncate: bool
) -> tuple[float, ...]:
    """Anchor sizes (square root of the area, pixels) of one level: ``scale · stride · 2^octave``.

    ``truncate`` drops the fraction, like torchvision's ``int(x * 2 ** (1 / 3))``.
    """
    base = scale * 2**level
    sizes = tuple(base * 2.0**octave for octave in octaves)
    # 1e-9: rounding errors of octaves must not reduce a whole number by one
    return tuple(float(int(size + 1e-9)) for size in sizes) if truncate else sizes


def base_anchors(
    sizes: Sequence[float], ratios: Sequence[float], order: str, rounded: bool
) -> Float[np.ndarray, "b 4"]:
    """Anchors of one cell, centred on the origin: float32, xyxy, pixels.

    Args:
      sizes: square roots of the areas.
      ratios: height over width.
      order: "size_major" (Detectron2: all ratios of the first size first) or "ratio_major"
        (torchvision).
      rounded: round corners to whole pixels, half to even (torchvision).
    """
    if order == "size_major":
        pairs = [(size, ratio) for size in sizes for ratio in ratios]
    elif order == "ratio_major":
        pairs = [(size, ratio) for ratio in ratios for size in sizes]
    else:
        raise UserError(f"anchors.order={order!r} must be one of {', '.join(ORDERS)}")
    half = []
    for size, ratio in pairs:
        width = np.sqrt(size**2 / ratio)
        half.append((width / 2, ratio * width / 2))
    half = np.asarray(half, np.float64)
    anchors = np.concatenate([-half, half], axis=1).astype(np.float32)
    return np.round(anchors) if rounded else anchors


def grid_anchors(
    base: Float[np.ndarray, "b 4"],
    grid: tuple[int, int],
    stride: tuple[int, int],
    offset: float,
) -> Float[np.ndarray, "a 4"]:
    """`base` shifted to every cell of a grid, row by row: ``a = rows · columns · b``.

    Centres are at ``(k + offset) · stride`` pixels; ``stride`` is (vertical, horizontal).
    """
    rows, columns = grid
    y = (np.arange(rows, dtype=np.float32) + np.float32(offset)) * stride[0]
    x = (np.arange(columns, dtype=np.float32) + np.float32(offset)) * stride[1]
    shift_y, shift_x = (s.reshape(-1) for s in np.meshgrid(y, x, indexing="ij"))
    shifts = np.stack([shift_x, shift_y, shift_x, shift_y], axis=1)
    return (shifts[:, None] + base[None]).reshape(-1, 4)


def level_strides(image_size: tuple[int, int], stride_from: str = "level") -> list[tuple[int, int]]:
    """(vertical, horizontal) distance of the anchor centres of P3 to P7, pixels.

    ``stride_from="grid"`` divides the input size by the grid size (torchvision); "level" is
    ``2^level``.
    """
    if stride_from not in STRIDES_FROM:
        raise UserError(f"anchors.stride_from={stride_from!r} must be one of level, grid")
    if stride_from == "level":
        return [(2**level, 2**level) for level in LEVELS]
    height, width = image_size
    return [(height // rows, width // columns) for rows, columns in pyramid_grids(image_size)]


def pyramid_anchors(
    image_size: tuple[int, int],
    *,
    scale: float = 4.0,
    octaves: Sequence[float] = (0.0, 1 / 3, 2 / 3),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    offset: float = 0.0,
    order: str = "size_major",
    rounded: bool = False,
    truncate_sizes: bool = False,
    stride_from: str = "level",
) -> list[Float[np.ndarray, "_ 4"]]:
    """Anchors of P3 to P7 for an input of ``(height, width)`` pixels, one array per level.

    The defaults follow section 4 of the paper: areas of 32² to 512² with three octaves and three
    ratios. `level_strides` gives the distances of their centres.
    """
    levels = []
    for level, stride in zip(LEVELS, level_strides(image_size, stride_from), strict=True):
        base = base_anchors(
            level_sizes(level, scale, octaves, truncate_sizes), ratios, order, rounded
        )
        levels.append(grid_anchors(base, feature_grid(image_size, level), stride, offset))
    return levels
