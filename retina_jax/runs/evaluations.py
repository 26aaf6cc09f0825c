"""Finds the evaluations of a run."""

from __future__ import annotations

from pathlib import Path

from retina_jax.errors import UserError


def evaluation_folder(workdir: Path, step: int | None = None) -> Path:
    """The folder of an evaluated step of a run; None: the last one.

    Raises `UserError` if there is no such folder, or the step was not evaluated.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a folder; name the workdir of a run")
    evaluations = [p.parent for p in workdir.glob("eval/*/detections.json")]
    by_step = {int(folder.name): folder for folder in evaluations if folder.name.isdigit()}
    if not by_step or (step is not None and step not in by_step):
        which = "" if step is None else f" of step {step}"
        available = f" (available: {', '.join(map(str, sorted(by_step)))})" if by_step else ""
        raise UserError(
            f"{workdir} has no evaluation{which}{available}; run the evaluate command on it first"
        )
    return by_step[max(by_step) if step is None else step]
