"""Runs the doctor on the data set of a config; writes its report as HTML and JSON."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from retina_jax.data.data_set import open_split
from retina_jax.doctor import plots
from retina_jax.doctor.examine import Report, examine
from retina_jax.doctor.pictures import draw_batch, draw_pictures
from retina_jax.doctor.report import page
from retina_jax.errors import UserError
from retina_jax.files import write_json, write_text
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs.fitting import fitted


def doctor(
    config: ml_collections.ConfigDict, out: Path, report_to: Reporter | None = None
) -> Report:
    """Examines both splits and writes ``doctor.html`` and ``doctor.json`` to ``out``.

    Raises `UserError` if the data set or the folder cannot be used.
    """
    directory = open_data_set(config.data.dir, config.data.name)
    names = (config.data.train_split, config.data.eval_split)
    splits = [open_split(directory, name, report=report_to) for name in names]
    for split in splits:
        if not len(split):
            raise UserError(f"{split.label()} is empty; prepare it from annotations with images")
    fit = fitted(config, *splits)
    config = fit.config
    fit.say(report_to or Reporter())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}; set --out to another folder") from None
    total = sum(map(len, splits))
    with (report_to or Reporter()).progress("examining", total) as bar:
        report = examine(*splits, config, lambda count: bar.advance("records", count), fit.fields)
    drawn, pictures = plots.draw_all(report, config), draw_pictures(report)
    if not report.failed():
        pictures += draw_batch(config, splits[0])
    write_json(out / "doctor.json", report.to_json())
    write_text(out / "doctor.html", page(report, drawn, pictures))
    return report
