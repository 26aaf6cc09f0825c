"""The start of a run from given weights: fitted to its network, and reported."""

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
    """``{"params": …, "batch_stats": …}`` of a network, with ``weights`` where they fit.

    Args:
      fresh: the variables that the network of ``config`` is initialised with; what the weights do
        not have (a pyramid, heads, another number of classes) keeps these values.
      category_ids: COCO's own ids of the data set's classes, in the order of the labels.
      class_names: their names; () where the data set is not there.
      source: the flag and its value, for messages.
      say: takes each line that tells what was done.
      note: takes each line that warns.

    Raises `MisfitError` for weights of another network, with every name that does not fit.
    """
    fitted: Fitted = fit(weights, fresh, config, category_ids, source, class_names)
    for line in fitted.report():
        say(line)
    for line in fitted.differs:
        note(line)
    return fitted.tree
