"""Put given weights in the place of fresh ones, and say of every name what became of it."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import numpy as np

from retina_jax.errors import UserError

CLASS_LAYER = "params/class_head/predict/"
MOST_NAMES = 8
"""Names that an error lists before it counts the rest."""


def graft(fresh: dict[str, Any], given: dict[str, Any], source: str) -> tuple[dict, list[str]]:
    """``fresh`` with the values of ``given``, and the names that stayed fresh.

    Only the last class layer may differ in shape (another number of classes): it stays fresh.
    Raises `UserError` that names what else is missing, left over or misshapen.
    """
    fresh_flat = flax.traverse_util.flatten_dict(fresh, sep="/")
    given_flat = flax.traverse_util.flatten_dict(given, sep="/")
    wrong, stayed, merged = [], [], {}
    for name, value in fresh_flat.items():
        shape = np.shape(given_flat[name]) if name in given_flat else None
        if shape == np.shape(value):
            merged[name] = np.asarray(given_flat[name])
        elif shape is not None and name.startswith(CLASS_LAYER):
            merged[name] = value
            stayed.append(name)
        else:
            had = "missing" if shape is None else f"shape {shape}"
            wrong.append(f"{name} ({had}, wants {np.shape(value)})")
    wrong += [f"{name} (left over)" for name in given_flat if name not in fresh_flat]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMES} more" if len(wrong) > MOST_NAMES else ""
        raise UserError(
            f"{source} does not fit config.model: {'; '.join(wrong[:MOST_NAMES])}{more}"
        )
    return flax.traverse_util.unflatten_dict(merged, sep="/"), stayed
