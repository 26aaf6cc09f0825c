"""Checkpoints with Orbax: asynchronous; keeps the latest n and the best by AP."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from retina_jax import parallel
from retina_jax.errors import RunError, UserError
from retina_jax.files import is_address, make_folder, move_folder
from retina_jax.training import averaging
from retina_jax.training.workdir import workdir_at
from retina_jax.types import TrainState

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
_METRIC = "AP"
_RATE_FACTOR = "rate_factor"


def _average_precision(metrics: dict[str, float]) -> float:
    return metrics[_METRIC]


def has_checkpoints(workdir: Path) -> bool:
    """Whether a workdir has a checkpoint, intact or not; without opening any."""
    return bool(steps_on_disk(workdir))


def steps_on_disk(workdir: Path) -> set[int]:
    """The steps of a workdir's checkpoints, intact or not; without opening any."""
    folder = workdir / FOLDER
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {int(name) for name in names if name.isdigit()}


class Checkpoints:
    """The checkpoints of a workdir. Orbax renames at the end, so none is ever half-written."""

    def __init__(self, workdir: Path, keep: int = 1):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(n=keep),
                checkpoint_managers.BestN(
                    get_metric_fn=_average_precision, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        folder = workdir / FOLDER
        self._folder = folder if is_address(folder) else folder.absolute()
        if parallel.is_main():
            make_folder(self._folder)
        parallel.group.barrier("checkpoints")
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_average_precision,
                enable_async_checkpointing=True,
                create=False,  # Orbax cannot among named processes
                multiprocessing_options=_among_processes(),
            ),
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest AP; None if no checkpoint was evaluated."""
        return self._manager.best_step()

    def best_or_latest_step(self) -> int | None:
        """The best step, or the latest if none was evaluated."""
        best = self.best_step()
        return self.latest_step() if best is None else best

    def save(
        self,
        state: TrainState,
        average_precision: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to write a checkpoint; training may continue meanwhile. All processes call it.

        An existing checkpoint of the same step is kept. It is rewritten only to add a missing AP,
        and only while another checkpoint exists. ``notes`` is JSON that `notes` returns.
        """
        step = int(state.step)
        metrics = None if average_precision is None else {_METRIC: float(average_precision)}
        if step in self._manager.all_steps():
            alone = len(self._manager.all_steps()) == 1
            if metrics is None or alone or self._manager.metrics(step) is not None:
                return
            self._manager.wait_until_finished()
            self._manager.delete(step)
        # host copies: the next step reuses the state's buffers, all hosts hold the same state, and
        # Orbax would otherwise compile a slicing program per parameter and replica
        host = parallel.fetch(state)
        self._manager.save(
            step,
            args=ocp.args.StandardSave(host),
            metrics=metrics,
            custom_metadata=dict(notes or {}),
            force=True,
        )

    def notes(self, step: int) -> dict[str, Any]:
        """The ``notes`` saved with a checkpoint; earlier versions saved none."""
        return dict(self._manager.metadata(step).custom_metadata or {})

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The state of a step as NumPy arrays, bit for bit.

        ``template`` is a state with the expected tree and shapes (`training.step.state_shapes`).
        An average of the weights that only ``template`` has starts from the weights, its factor of
        the learning rate from 1; what only the checkpoint has of these is dropped. Raises
        `UserError` for a checkpoint with other shapes.
        """
        if template.averaged is not None and not self.has_average(step):
            return averaging.begin(self.restore(template.replace(averaged=None), step))
        tree = self._manager.item_metadata(step).tree
        saved = {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()}
        if template.rate_factor is not None and _RATE_FACTOR not in saved:
            whole = self.restore(template.replace(rate_factor=None), step)
            return whole.replace(rate_factor=np.ones((), np.float32))
        if template.rate_factor is None:
            saved.pop(_RATE_FACTOR, None)
        if template.averaged is None:
            saved = {name: shape for name, shape in saved.items() if not _is_average(name)}
        required = {name: tuple(leaf.shape) for name, leaf in _by_name(template).items()}
        if saved != required:
            differ = sorted(
                k for k in saved.keys() | required.keys() if saved.get(k) != required.get(k)
            )
            none = "nothing"
            shown = "; ".join(
                f"{name}: saved {saved.get(name, none)}, configured {required.get(name, none)}"
                for name in differ[-3:]  # parameters sort after the optimiser's state
            )
            raise UserError(
                f"checkpoint {self._folder / str(step)} does not fit this config ({len(differ)} "
                f"arrays differ, such as {shown}); use another --workdir, or the config of that run"
            )
        restored = _by_name(self._restore_as_saved(step, tree))
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: restored[_name(path)].astype(leaf.dtype, copy=False), template
        )

    def restore_newest(self, template: TrainState) -> tuple[TrainState, int, list[str]]:
        """The newest checkpoint that can be read, its step, and a line for each damaged one.

        Damaged ones are moved aside, to ``damaged_checkpoints``, once a good one is found. Raises
        `UserError` for a checkpoint with other shapes, and `RunError` if all are damaged; then
        nothing is moved.
        """
        steps, damaged = sorted(self._manager.all_steps(), reverse=True), {}
        for step in steps:
            state, problem = None, ""
            try:
                state = self.restore(template, step)
            except UserError:
                raise
            except Exception as error:  # whatever JSON, TensorStore and Orbax make of damaged files
                first = (str(error).strip().splitlines() or [""])[0]
                problem = f"{type(error).__name__}: {first[:200]}"
            problems = parallel.group.exchange("restored", problem)
            problem = next(filter(None, problems), "")
            if not problem:
                return state, step, self._move_aside(damaged)
            damaged[step] = problem
        listed = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
        raise RunError(
            f"no checkpoint in {self._folder} can be read ({listed}); restore them from a backup, "
            "or remove the folder to start again"
        )

    def _move_aside(self, damaged: dict[int, str]) -> list[str]:
        aside = self._folder.with_name(DAMAGED)
        if parallel.is_main():
            for step in damaged:
                target = aside / str(step)
                if target.exists():
                    target = aside / f"{step}-{secrets.token_hex(2)}"
                move_folder(self._folder / str(step), target)
        parallel.group.barrier("damaged checkpoints moved")
        if damaged:
            self._manager.reload()
        return [
            f"the checkpoint of step {step} is damaged ({problem}); moved to {aside}"
            for step, problem in damaged.items()
        ]

    def _restore_as_saved(self, step: int, tree: Any) -> Any:
        template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
        return self._manager.restore(step, args=ocp.args.StandardRestore(template))

    def has_average(self, step: int) -> bool:
        """Whether a step's checkpoint holds an average of the weights (``train.ema``)."""
        return any(map(_is_average, _by_name(self._manager.item_metadata(step).tree)))

    def restore_weights(self, step: int) -> dict[str, Any]:
        """``{"params": …, "batch_stats": …}`` of a step, for any network and optimiser; NumPy.

        Their average, if the run keeps one. Raises `RunError` for a damaged checkpoint.
        """
        try:
            restored = self._restore_as_saved(step, self._manager.item_metadata(step).tree)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise RunError(
                f"the checkpoint {self._folder / str(step)} is damaged "
                f"({type(error).__name__}: {first[:200]}); run the training command again, which "
                "continues from the previous one"
            ) from error
        weights = restored.get("averaged") or restored
        return {"params": weights["params"], "batch_stats": weights.get("batch_stats") or {}}

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Waits until all checkpoints are on disk; raises errors that occurred while writing."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()


def _among_processes() -> ocp.options.MultiprocessingOptions:
    """Naming the processes gives Orbax's barriers a time-out."""
    processes = parallel.process_count()
    if processes == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(processes)))


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    """Name of an array in a state, without its position in the optimiser's chain.

    In earlier versions the position depended on gradient clipping: ``opt_state/1/trace`` or
    ``opt_state/2/trace``.
    """
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return re.sub(r"^opt_state/\d+/", "opt_state/", name)


def _is_average(name: str) -> bool:
    return name.startswith("averaged/")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The checkpoint of a run that a command reads."""

    folder: Path
    """The workdir."""
    step: int
    averaged: bool
    """Whether its weights are an average (``train.ema``)."""

    def __str__(self) -> str:
        return f"checkpoint of step {self.step} in {self.folder}"


def restore_chosen(
    workdir: str | Path, checkpoint: str | int = "best", flag: str = "--workdir"
) -> tuple[Chosen, dict[str, Any]]:
    """A checkpoint of a workdir, and its weights as `Checkpoints.restore_weights` gives them.

    Args:
      checkpoint: "best" by AP (the latest if none was evaluated), "latest", or a step.
      flag: names ``workdir`` in messages.

    Raises `UserError` for a folder without a complete checkpoint, or without that of the step.
    """
    folder, step = workdir_at(workdir, flag), None
    if (folder / FOLDER).is_dir():
        checkpoints = Checkpoints(folder)
        best = checkpoint == "best"
        step = checkpoints.best_or_latest_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{flag}={workdir} has no checkpoint; train it first")
    if isinstance(checkpoint, int):
        if checkpoint not in (steps := checkpoints.steps()):
            raise UserError(
                f"{flag}={workdir} has no checkpoint of step {checkpoint}; choose from: "
                f"{', '.join(map(str, steps))}"
            )
        step = checkpoint
    chosen = Chosen(folder, step, checkpoints.has_average(step))
    weights = checkpoints.restore_weights(step)
    checkpoints.close()
    return chosen, weights


def weights_of(workdir: str | Path, flag: str = "--workdir") -> dict[str, Any]:
    """The weights that `restore_chosen` chooses by default."""
    return restore_chosen(workdir, flag=flag)[1]
