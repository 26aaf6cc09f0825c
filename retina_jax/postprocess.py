"""From logits and deltas to a fixed number of candidate boxes, on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from retina_jax.boxes import clip, decode
from retina_jax.types import Array, Candidates


def select_candidates(
    logits: Sequence[Float[Array, "_ c"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    size: Int[Array, "2"],
    score_threshold: float = 0.05,
    top_k: int = 1000,
    coder_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Candidates:
    """The ``top_k`` best (anchor, class) pairs of each level above the threshold, decoded.

    One image: lists over levels of ``[anchors, classes]`` logits, ``[anchors, 4]`` deltas and
    anchors in pixels; ``size`` is the picture's (height, width), to which boxes are cut.
    Returns ``k = Σ min(top_k, anchors · classes)`` places; those under the threshold score 0.
    Source: section 4.1, "Inference".
    """
    levels = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        classes = level_logits.shape[-1]
        scores = jax.nn.sigmoid(level_logits.astype(jnp.float32)).reshape(-1)
        scores, place = jax.lax.top_k(scores, min(top_k, scores.size))
        anchor = place // classes
        boxes = decode(level_deltas[anchor], jnp.asarray(level_anchors)[anchor], coder_weights)
        levels.append(
            Candidates(
                boxes=clip(boxes, size[0], size[1]),
                scores=jnp.where(scores > score_threshold, scores, 0.0),
                labels=(place % classes).astype(jnp.int32),
            )
        )
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)
