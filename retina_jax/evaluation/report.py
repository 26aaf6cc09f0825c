"""Prints the metrics of an evaluation as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retina_jax.evaluation.coco import LIMITS, metric_names
from retina_jax.wording import counted


def print_table(console: Console, metrics: dict[str, Any]) -> None:
    """Prints the COCO metrics, precision then recall, and AP and AP50 of each class."""
    heading = f"COCO metrics on {counted(metrics['images'], 'image')}, step {metrics['step']}"
    console.print(heading, markup=False)
    every = metric_names(metrics.get("limits", LIMITS))
    for names in (every[:6], every[6:]):  # twelve columns would exceed 80 characters
        summary = Table()
        for name in names:
            summary.add_column(name, justify="right", min_width=6)
        summary.add_row(*(_number(metrics[name]) for name in names))
        console.print(summary)
    classes = Table()
    for name, justify in (("class", "left"), ("AP", "right"), ("AP50", "right")):
        classes.add_column(name, justify=justify)
    for name, value in metrics["per_class"].items():
        classes.add_row(Text(name), _number(value), _number(metrics["per_class_AP50"][name]))
    console.print(classes)


def _number(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{value:.3f}"  # -1: earlier versions
