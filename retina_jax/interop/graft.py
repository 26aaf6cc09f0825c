"""Replaces initial weights by given ones, and reports every name that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from retina_jax.errors import UserError

CLASS_LAYER = "params/class_head/predict/"
BOX_LAYER = "params/box_head/predict/"
CENTERNESS_LAYER = "params/box_head/centerness/"
BOX_SCALES = "params/box_head/scale"
AFTER_BACKBONE = ("fpn", "class_head", "box_head")
MOST_NAMES = 8
"""Number of names that an error lists; it counts the rest."""


class MisfitError(UserError):
    """Weights that do not fit the network; ``wrong`` lists every name with the reason.

    The message contains the first names, ``details`` all of them.
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
    may_lack: tuple[str, ...] = (),
) -> tuple[dict, list[str]]:
    """``fresh`` with the values of ``given``, and the names that keep their initial values.

    Initial values may remain in three cases: in the layers ``of_classes``, if only their number of
    outputs differs; in arrays that ``given`` ``may_lack``, by the start of their names; and in the
    FPN and the heads, if ``given`` contains only a backbone (then the modules are listed, not their
    arrays). Raises `MisfitError` with every name that is missing, has the wrong shape or is not
    used; ``unknown`` are names of the source without a counterpart here.
    """
    fresh_flat = flax.traverse_util.flatten_dict(fresh, sep="/")
    given_flat = flax.traverse_util.flatten_dict(given, sep="/")
    unmatched = []
    only_backbone = all(_module(name) == "backbone" for name in given_flat)
    if only_backbone and given_flat:
        unmatched = [m for m in AFTER_BACKBONE if any(_module(name) == m for name in fresh_flat)]
    wrong, merged = [], {}
    for name, value in fresh_flat.items():
        required = np.shape(value)
        shape = np.shape(given_flat[name]) if name in given_flat else None
        if shape is None:
            stays = name.startswith(may_lack)
        else:
            stays = name.startswith(of_classes) and shape[:-1] == required[:-1]
        if shape == required:
            merged[name] = np.asarray(given_flat[name])
        elif stays:
            merged[name] = value
            unmatched.append(name)
        elif _module(name) in unmatched:
            merged[name] = value
        else:
            problem = "missing" if shape is None else f"shape {shape}"
            wrong.append(f"{name} ({problem}, requires {required})")
    wrong += [f"{name} (not used)" for name in given_flat if name not in fresh_flat]
    wrong += [f"{name} (unknown)" for name in unknown]
    if wrong:
        raise MisfitError(source, wrong)
    # keep collections without arrays, such as the statistics of group norms
    return {**fresh, **flax.traverse_util.unflatten_dict(merged, sep="/")}, unmatched


def _module(name: str) -> str:
    """``fpn`` for ``params/fpn/p6/kernel``."""
    return name.split("/")[1]
