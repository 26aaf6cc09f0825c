"""Save and restore by Orbax: asynchronous, the latest n and the best by AP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from retina_jax import parallel
from retina_jax.errors import UserError
from retina_jax.types import TrainState

FOLDER = "checkpoints"
_METRIC = "AP"


def _average_precision(metrics: dict[str, float]) -> float:
    return metrics[_METRIC]


class Checkpoints:
    """The checkpoints of a workdir. A half-written one is never seen: Orbax renames at the end."""

    def __init__(self, workdir: Path, keep: int = 1):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(n=keep),
                checkpoint_managers.BestN(
                    get_metric_fn=_average_precision, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._folder = (workdir / FOLDER).absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_average_precision,
                enable_async_checkpointing=True,
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest AP, or None where none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, average_precision: float | None = None) -> None:
        """Begins to write; training may go on.

        A checkpoint that is already there stays, unless an AP has come that it lacks and another
        checkpoint stands by while it is written anew.
        """
        step = int(state.step)
        metrics = None if average_precision is None else {_METRIC: float(average_precision)}
        if step in self._manager.all_steps():
            alone = len(self._manager.all_steps()) == 1
            if metrics is None or alone or self._manager.metrics(step) is not None:
                return
            self._manager.wait_until_finished()
            self._manager.delete(step)
        # host copies: the state's buffers are given up to the next step, every host holds the same,
        # and Orbax would else split and write each replica's share by programs of its own
        host = parallel.fetch(state)
        self._manager.save(step, args=ocp.args.StandardSave(host), metrics=metrics, force=True)

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The state of a step as NumPy, bit for bit.

        ``template`` gives its tree and shapes (`training.step.state_shapes`). Raises `UserError`
        for a checkpoint of other shapes.
        """
        saved = self._saved_shapes(step)
        wanted = _shapes(template)
        if saved != wanted:
            differ = sorted(
                k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k)
            )
            none = "nothing"
            shown = "; ".join(
                f"{name}: saved {saved.get(name, none)}, configured {wanted.get(name, none)}"
                for name in differ[-3:]  # parameters come after what the optimiser keeps of them
            )
            raise UserError(
                f"checkpoint {self._folder / str(step)} does not fit this config ({len(differ)} "
                f"arrays differ, such as {shown}); use another --workdir or the config that made it"
            )
        host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        return self._manager.restore(step, args=ocp.args.StandardRestore(host))

    def _saved_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        return _shapes(self._manager.item_metadata(step).tree)

    def restore_weights(self, step: int) -> dict[str, Any]:
        """``{"params": …, "batch_stats": …}`` of a step, whatever made it; NumPy."""
        tree = self._manager.item_metadata(step).tree
        template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        return {"params": restored["params"], "batch_stats": restored.get("batch_stats") or {}}

    def wait(self) -> None:
        """Until all that was begun is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def weights_of(workdir: str | Path) -> dict[str, Any]:
    """Weights of the best checkpoint (or else the latest) of a workdir; `UserError` without one."""
    folder = Path(workdir).expanduser()
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{str(workdir)!r} is not a workdir with checkpoints; train there first")
    checkpoints = Checkpoints(folder)
    step = checkpoints.best_step()
    step = checkpoints.latest_step() if step is None else step
    if step is None:
        raise UserError(f"{str(workdir)!r} holds no whole checkpoint; train there first")
    weights = checkpoints.restore_weights(step)
    checkpoints.close()
    return weights
