"""The augmentation presets: named values of the augmentation fields."""

from __future__ import annotations

PRESETS: dict[str, dict[str, object]] = {
    "light": {
        "data.flip": True,
        "data.scale_range": (0.9, 1.1),
        "data.min_visible": 0.3,
        "data.color_jitter": (0.1, 0.1, 0.1, 0.02),
    },
    "detection": {
        "data.flip": True,
        "data.scale_range": (0.6, 1.6),
        "data.min_visible": 0.3,
        "data.color_jitter": (0.2, 0.2, 0.2, 0.05),
    },
    "aerial": {
        "data.flip": True,
        "data.turn": True,
        "data.scale_range": (0.8, 1.25),
        "data.min_visible": 0.3,
        "data.color_jitter": (0.2, 0.2, 0.2, 0.02),
    },
}
"""Values of data.augmentation: the fields that each sets, unless the user sets them."""

FIELDS_OF_PRESETS = (
    "data.flip",
    "data.turn",
    "data.scale_range",
    "data.min_visible",
    "data.color_jitter",
)
"""The fields that a preset may set."""
