"""Put given weights in the place of fresh ones, and say of every name what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from retina_jax.errors import UserError

CLASS_LAYER = "params/class_head/predict/"
BOX_LAYER = "params/box_head/predict/"
AFTER_BACKBONE = ("fpn", "class_head", "box_head")
MOST_NAMES = 8
"""Names that an error lists before it counts the rest."""


class MisfitError(UserError):
    """Weights that do not fit the network; ``wrong`` lists every name with its reason.

    The message has the first of them, ``details`` have all.
    """

    def __init__(self, source: str, wrong: Sequence[str], advice: str = ""):
        more = f"; and {len(wrong) - MOST_NAMES} more" if len(wrong) > MOST_NAMES else ""
        super().__init__(
            f"{source} does not fit config.model: {advice}{'; '.join(wrong[:MOST_NAMES])}{more}",
            wrong,
        )
        self.wrong = tuple(wrong)


def graft(
    fresh: dict[str, Any],
    given: dict[str, Any],
    source: str,
    unknown: Sequence[str] = (),
    of_classes: tuple[str, ...] = (CLASS_LAYER,),
) -> tuple[dict, list[str]]:
    """``fresh`` with the values of ``given``, and the names that stayed fresh.

    Two things may stay fresh: the layers ``of_classes``, where only their number of outputs
    differs, and all that stands on the backbone, where ``given`` has a backbone alone (then the
    groups are named, not their arrays). Raises `MisfitError` with every name that is missing,
    misshapen or left over; ``unknown`` are names of the source that have no counterpart here.
    """
    fresh_flat = flax.traverse_util.flatten_dict(fresh, sep="/")
    given_flat = flax.traverse_util.flatten_dict(given, sep="/")
    stayed = []
    backbone_alone = all(_group(name) == "backbone" for name in given_flat)
    if backbone_alone and given_flat:
        stayed = [g for g in AFTER_BACKBONE if any(_group(name) == g for name in fresh_flat)]
    wrong, merged = [], {}
    for name, value in fresh_flat.items():
        wanted = np.shape(value)
        shape = np.shape(given_flat[name]) if name in given_flat else None
        if shape == wanted:
            merged[name] = np.asarray(given_flat[name])
        elif shape is not None and name.startswith(of_classes) and shape[:-1] == wanted[:-1]:
            merged[name] = value
            stayed.append(name)
        elif _group(name) in stayed:
            merged[name] = value
        else:
            had = "missing" if shape is None else f"shape {shape}"
            wrong.append(f"{name} ({had}, wants {wanted})")
    wrong += [f"{name} (left over)" for name in given_flat if name not in fresh_flat]
    wrong += [f"{name} (unknown)" for name in unknown]
    if wrong:
        raise MisfitError(source, wrong)
    # a collection without arrays, such as the statistics of group norms, is there all the same
    return {**fresh, **flax.traverse_util.unflatten_dict(merged, sep="/")}, stayed


def _group(name: str) -> str:
    """``fpn`` of ``params/fpn/p6/kernel``."""
    return name.split("/")[1]
