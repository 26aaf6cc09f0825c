"""The batch of a non-finite step, on disk: everything that the step saw except the weights."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from retina_jax.config import shell
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import UserError
from retina_jax.files import atomic_write, on_disk
from retina_jax.types import Batch, GroundTruth

FOLDER = "nonfinite"
MOST = 10
"""Maximum number of files per run, besides that of a step that ends it; tens of MB each."""
_TRUTH = ("boxes", "labels", "valid", "is_crowd")


@dataclasses.dataclass(frozen=True)
class KeptBatch:
    """A global batch, of all hosts."""

    step: int
    """The step to which the batch took the run, or would have taken it."""
    image_ids: list[int]
    batch: Batch
    """NumPy ``[n, …]``."""


def keep(workdir: Path, step: int, loader: TrainLoader, always: bool) -> str:
    """Writes the batch of ``step`` to a workdir; returns a line that says how to replay it.

    ``always`` is for a step that ends the run; otherwise "" if the folder holds enough batches.
    """
    folder = workdir / FOLDER
    path = folder / f"step_{step}.npz"
    if not always and not path.exists() and len(list(folder.glob("step_*.npz"))) >= MOST:
        return ""
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, step=step, **loader.arrays_at(step))
    command = shell.command("replay", f"--workdir={workdir}", f"--batch={path}")
    return f"the batch of step {step} is kept; replay the step with: {command}"


def read(path: Path) -> KeptBatch:
    """A batch that `keep` wrote; `UserError` if the file is missing or not one of these."""
    try:
        with on_disk(path) as local, np.load(local) as file:
            arrays = {name: file[name] for name in file.files}
        step = int(arrays["step"]) if "step" in arrays else int(path.stem.split("_")[1])
        count = len(arrays["images"])
        batch = Batch(
            images=arrays["images"],
            sizes=arrays["sizes"],
            original_sizes=arrays["sizes"],
            ground_truth=GroundTruth(**{name: arrays[name] for name in _TRUTH}),
            index=np.full(count, -1, np.int32),
            example_mask=np.ones(count, bool),
            cut_away=np.zeros(count, np.int32),
        )
        return KeptBatch(step, [int(i) for i in arrays["image_ids"]], batch)
    except FileNotFoundError:
        there = sorted(path.parent.glob("step_*.npz"), key=lambda p: int(p.stem.split("_")[1]))
        fix = (
            f"the last one in this folder is {there[-1]}"
            if there
            else "a run writes such files to WORKDIR/" + FOLDER
        )
        raise UserError(f"--batch={path}: no such file; {fix}") from None
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "a damaged or different file"
        raise UserError(
            f"--batch={path} is not the batch of a step ({reason}); set it to a file of "
            f"WORKDIR/{FOLDER}"
        ) from None
