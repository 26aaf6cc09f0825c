"""Plots the curves of a run from its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

from retina_jax.files import atomic_write


def _or_gap(value: float | None) -> float:
    """NaN for None: all steps since the last log were skipped, or there was no ground truth."""
    return math.nan if value is None or value < 0 else value  # -1: written by earlier versions


def draw_curves(workdir: Path) -> Path | None:
    """Plots losses, learning rate and AP over steps to curves.png; None if the log is empty."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    if not log:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, precision = figure.subplots(1, 3)
    steps = [entry["step"] for entry in log]
    for name in (n for n in log[-1] if n.startswith("loss") and "_P" not in n):
        values = [_or_gap(entry.get(name)) for entry in log]
        loss.plot(steps, values, label=name)
    loss.set(title="loss", xlabel="step", ylim=(0, None))
    loss.legend()
    rate.plot(steps, [_or_gap(entry["learning_rate"]) for entry in log])
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    scores = [
        json.loads(p.read_text())
        for p in workdir.glob("eval/*/metrics.json")
        if p.parent.name.isdigit()
    ]
    scores.sort(key=lambda s: s["step"])
    for name in ("AP", "AP50", "AP75"):
        values = [_or_gap(s[name]) for s in scores]
        precision.plot([s["step"] for s in scores], values, "o-", label=name)
    precision.set(title="validation", xlabel="step", ylim=(0, 1))
    if scores:
        precision.legend()
    path = workdir / "curves.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
