"""Initialises a run from given weights: fits them to the network and reports changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from retina_jax.interop.fit import Fitted, fit
from retina_jax.interop.weights import Imported

Say = Callable[[str], None]


def start_from(
    weights: Imported,
    fresh: dict[str, Any],
    config: ml_collections.ConfigDict,
    category_ids: Sequence[int],
    class_names: Sequence[str],
    source: str,
    say: Say,
    note: Say,
) -> dict[str, Any]:
    """``{"params": …, "batch_stats": …}`` of a network, initialised from ``weights``.

    Args:
      fresh: the initial variables of the network of ``config``; layers that are missing in the
        weights (FPN, heads, other classes) keep these values.
      category_ids: COCO category ids of the data set's classes, by label.
      class_names: their names; () if there is no data set.
      source: the flag and its value, for messages.
      say: called with each line of the report.
      note: called with each warning.

    Raises `MisfitError` for weights of another network, with every name that does not fit.
    """
    fitted: Fitted = fit(weights, fresh, config, category_ids, source, class_names)
    for line in fitted.report():
        say(line)
    for line in fitted.differs:
        note(line)
    return fitted.tree
