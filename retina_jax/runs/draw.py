"""Draws the detections of an evaluation of a run."""

from __future__ import annotations

import json
from pathlib import Path

from retina_jax.data.data_set import open_split
from retina_jax.errors import UserError
from retina_jax.evaluation.pictures import draw_pairs, write_sheet
from retina_jax.prepare.shapes import open_data_set
from retina_jax.runs.evaluations import evaluation_folder
from retina_jax.training.workdir import read_config


def draw(
    workdir: Path,
    step: int | None = None,
    count: int = 12,
    min_score: float = 0.4,
    out: Path | None = None,
) -> Path:
    """Draws ground truth next to detections; returns the path of the PNG.

    Args:
      step: an evaluated step; None: the last one.
      count: number of images.
      min_score: smallest score of the detections to draw.
      out: PNG to write; None: detections.png in the folder of the evaluation.

    Raises `UserError` if the step was not evaluated.
    """
    if count < 1:
        raise UserError(f"--count={count} must be 1 or more; set --count=12")
    config = read_config(workdir)
    evaluation = evaluation_folder(workdir, step)
    directory = open_data_set(config.data.dir, config.data.name)
    split = open_split(directory, config.data.eval_split, config.data.labels)
    detections = json.loads((evaluation / "detections.json").read_text())
    path = out or evaluation / "detections.png"
    write_sheet(draw_pairs(split, detections, count, min_score), split.class_names, path)
    return path
