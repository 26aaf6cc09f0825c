"""The report of a replayed step as text: where it becomes non-finite, and on which images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from retina_jax.runs.replay import Replay

_SHOWN = 5
"""Arrays and modules listed by name."""


class _Leaf(NamedTuple):
    name: str
    not_finite: int
    size: int
    largest: float
    """Largest finite magnitude."""
    norm: float


def lines(replay: Replay) -> Iterator[str]:
    """The report of a step, from its input to its gradient."""
    kept, found, metrics = replay.kept, replay.examination, replay.metrics
    saw = "as in training" if replay.exact else f"training used those of step {kept.step - 1}"
    yield f"step {kept.step} with the weights of step {replay.weights_of} ({saw})"
    yield (
        f"loss {metrics['loss']:.6g}, classification {metrics['loss_classification']:.6g}, "
        f"box {metrics['loss_box']:.6g}, "
        + "".join(f"{name} {metrics[f'loss_{name}']:.6g}, " for name in found.extra)
        + f"foreground anchors {metrics['foreground_anchors']:.0f}, "
        f"gradient norm {metrics['gradient_norm']:.6g}, "
        f"learning rate {metrics['learning_rate']:.6g}"
    )
    if metrics["finite"]:
        yield "the loss and the gradient are finite: training would apply this step"
    yield "contribution of each image to the losses:"
    for i, image_id in enumerate(kept.image_ids):
        yield (
            f"  image {image_id}: classification {found.classification[i]:.6g}, "
            f"box {found.box[i]:.6g}, "
            + "".join(f"{name} {values[i]:.6g}, " for name, values in found.extra.items())
            + f"{found.foreground[i]:.0f} foreground anchors"
        )
    yield _of_images("pixels, normalised", kept.image_ids, found.pixels)
    boxes = np.asarray(kept.batch.ground_truth.boxes)
    bad = [kept.image_ids[i] for i in np.flatnonzero(~np.isfinite(boxes).all(axis=(1, 2)))]
    yield f"boxes: {f'not finite on images {_listed(bad)}' if bad else 'finite'}"
    state = replay.state
    yield _of_arrays("parameters", _by_name(state.params))
    if state.batch_stats:
        yield _of_arrays("statistics", _by_name(state.batch_stats))
    yield _of_arrays("optimiser", _by_name(state.opt_state))
    yield from _outputs(replay)
    gradient = _by_name(found.gradient)
    yield _of_arrays("gradient", gradient)
    finite = [leaf for leaf in gradient if not leaf.not_finite]
    yield "largest gradient norms of finite arrays:" if finite else "no array's gradient is finite"
    for leaf in sorted(finite, key=lambda leaf: -leaf.norm)[:_SHOWN]:
        yield f"  {leaf.name}: {leaf.norm:.6g}"


def _outputs(replay: Replay) -> Iterator[str]:
    """The first module whose output is not finite, what came before it, and the network's end."""
    ids, outputs = replay.kept.image_ids, replay.examination.outputs
    calls = list(zip(replay.names, outputs, strict=True))
    broken = [i for i, (_, values) in enumerate(calls) if values.not_finite.any()]
    if not broken:
        name, values = max(calls, key=lambda call: call[1].largest.max())
        yield f"module outputs: all finite; largest magnitude {values.largest.max():.6g}, of {name}"
        return
    first = broken[0]
    yield _of_images(f"first module with an output that is not finite: {calls[first][0]}",
                     ids, calls[first][1])  # fmt: skip
    none = "" if first else " none"
    yield f"modules before it, in forward order, with their largest output:{none}"
    for name, values in calls[max(0, first - _SHOWN) : first]:
        yield f"  {name}: {values.largest.max():.6g}"
    yield f"module calls with non-finite output: {len(broken)} of {len(calls)}"
    yield _of_images("logits and boxes", ids, calls[-1][1])


def _of_images(title: str, ids: list[int], values: Any) -> str:
    bad = [ids[i] for i in np.flatnonzero(values.not_finite)]
    if not bad:
        return f"{title}: finite, largest {values.largest.max():.6g}"
    return f"{title}: {int(values.not_finite.sum())} non-finite values, on images {_listed(bad)}"


def _of_arrays(title: str, leaves: list[_Leaf]) -> str:
    bad = [leaf for leaf in leaves if leaf.not_finite]
    if not bad:
        top = max(leaves, key=lambda leaf: leaf.largest, default=None)
        return f"{title}: finite" + (f", largest {top.largest:.6g} in {top.name}" if top else "")
    shown = ", ".join(f"{x.name} ({x.not_finite} of {x.size} values)" for x in bad[:_SHOWN])
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f"{title}: not finite in {len(bad)} of {len(leaves)} arrays: {shown}{more}"


def _by_name(tree: Any) -> list[_Leaf]:
    leaves = []
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(array, np.float64).ravel()
        finite = np.isfinite(values)
        leaves.append(
            _Leaf(
                jax.tree_util.keystr(path, simple=True, separator="/"),
                int((~finite).sum()),
                values.size,
                float(np.abs(values[finite]).max(initial=0.0)),
                float(np.sqrt(np.square(values).sum())),
            )
        )
    return leaves


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids))
