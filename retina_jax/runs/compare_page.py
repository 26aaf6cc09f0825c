"""A comparison of runs as tables for a terminal, and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retina_jax.evaluation import report_charts as charts
from retina_jax.evaluation.report_charts import escape, figure, number
from retina_jax.evaluation.report_errors import CROWD, KINDS, ImageErrors
from retina_jax.evaluation.report_gallery import thumbnail
from retina_jax.evaluation.report_page import document, key
from retina_jax.files import write_text
from retina_jax.runs.compare import CONFIDENCE, Compared, Comparison, Difference, field_rows

FILE = "comparison.html"
_LEAST = 0.3  # score of the detections on pictures
_BYTES = 30_000
_MOST_IN_CHART = 30
Box = tuple[np.ndarray, int, str, float]
"""xywh in pixels, label, style in report.css and score (0: an object)."""


def _rows(differences: Sequence[Difference]) -> list[list[str]]:
    return [
        [d.name, number(d.before), number(d.now), _signed(d.change),
         "–" if d.interval is None else f"{_signed(d.interval[0])} to {_signed(d.interval[1])}",
         "clear" if d.clear else ""]
        for d in differences
    ]  # fmt: skip


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _parts(comparison: Comparison, compared: Compared) -> list[tuple[str, list[str], list]]:
    """Titles, headers and rows of the tables."""
    names = [comparison.before.name, comparison.now.name]
    header = [*names, "difference", f"{CONFIDENCE * 100:.0f} % interval", ""]
    order = sorted(comparison.classes, key=lambda d: -abs(d.change or 0.0))
    split = compared.split
    images = [
        [str(int(split.image_ids[row])), str(split.file_names[row]), f"{a:.2f}", f"{b:.2f}",
         f"{b - a:+.2f}"]
        for row, a, b in comparison.images
    ]  # fmt: skip
    return [
        ("Metrics", ["metric", *header], _rows(comparison.metrics)),
        ("AP by class, largest difference first", ["class", *header], _rows(order)),
        ("Images whose error changed most", ["image", "file", *names, "difference"], images),
        ("Config fields that differ", ["field", *names], field_rows(comparison.fields)),
    ]


def text_tables(compared: Compared) -> list[Table]:
    """Tables for a terminal."""
    tables = []
    for comparison in compared.comparisons:
        for title, header, rows in _parts(comparison, compared):
            if not rows:
                continue
            table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
            for i, name in enumerate(header):
                table.add_column(Text(name), justify="right" if i else "left")
            for row in rows:
                table.add_row(*map(Text, row))
            tables.append(table)
    return tables


def write_page(compared: Compared, out: Path) -> Path:
    """Writes ``comparison.html``, one page without external files, to the folder ``out``."""
    names = [compared.comparisons[0].before.name, *(c.now.name for c in compared.comparisons)]
    title = " and ".join(names)
    note = (
        f"{len(compared.split):,} images. A difference is the value of the second run minus that "
        f"of the first. The intervals are {CONFIDENCE * 100:.0f} % bootstrap confidence intervals "
        f"from {compared.samples:,} resamples of the images, the same for both runs; they do not "
        "include the variation between training seeds. Clear: the interval excludes 0."
    )
    sections = []
    for comparison in compared.comparisons:
        sections += _sections(comparison, compared, len(compared.comparisons) > 1)
    intro = f"<h1>{escape(title)}</h1><p>{escape(note)}</p>"
    write_text(out / FILE, document(title, intro, sections, {}))
    return out / FILE


def _sections(comparison: Comparison, compared: Compared, several: bool) -> list[tuple[str, str]]:
    suffix = f": {comparison.now.name}" if several else ""
    sections = []
    for title, header, rows in _parts(comparison, compared):
        content = charts.table(header, rows, True, title) if rows else "<p>None.</p>"
        if header[0] in ("metric", "class"):
            shown = comparison.metrics if header[0] == "metric" else comparison.classes
            content = f'<div class="charts">{intervals(shown)}</div>{content}'
        if header[0] == "image" and rows:
            content += _pictures(comparison, compared)
        sections.append((title + suffix, content))
    return sections


def intervals(differences: Sequence[Difference]) -> str:
    """A chart of differences with their intervals; only the largest ones if there are many."""
    known = [d for d in differences if d.change is not None and d.interval]
    known = sorted(known, key=lambda d: -abs(d.change))[:_MOST_IN_CHART]
    if not known:
        return ""
    known.sort(key=lambda d: d.change)
    low = min(0.0, *(d.interval[0] for d in known))
    high = max(0.0, *(d.interval[1] for d in known))
    axes = charts.Axes((low, high), (0, len(known)), "difference", "")
    parts = [axes.draw(y_ticks=[])]
    middle = axes.at_x(0)
    parts.append(f'<path class="mark" d="M{middle:.1f} {axes.at_y(len(known))}V{axes.at_y(0)}"/>')
    for k, d in enumerate(known):
        y = axes.at_y(k + 0.5)
        text = (
            f"{d.name}: {_signed(d.change)}, {_signed(d.interval[0])} to {_signed(d.interval[1])}"
        )
        kind = "c0" if not d.clear else "c2" if d.change > 0 else "c3"
        left, right = axes.at_x(d.interval[0]), axes.at_x(d.interval[1])
        parts.append(
            f'<g><title>{escape(text)}</title><path class="line {kind}" '
            f'd="M{left:.1f} {y:.1f}H{right:.1f}"/>'
            f'<circle class="{kind}" cx="{axes.at_x(d.change):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
        if len(known) <= 12:
            parts.append(f'<text class="y" x="48" y="{y + 4:.1f}">{escape(d.name[:9])}</text>')
    title = "differences and their intervals"
    return figure(
        "Differences", charts.svg("".join(parts), title), "Green and red: the interval excludes 0."
    )


def _pictures(comparison: Comparison, compared: Compared) -> str:
    """Ground truth and the detections of both runs."""
    split = compared.split
    entries = [("correct", "correct detection, object"), *((kind, kind) for kind in KINDS[1:-1])]
    parts = [f"<p>Detections that score at least {_LEAST:g}.</p>", key(entries)]
    for row, old, new in comparison.images:
        jpeg = thumbnail(split, row, True, _BYTES)
        size = tuple(int(v) for v in split.sizes[row])
        before, now = comparison.before, comparison.now
        panels = [
            ("ground truth", _objects(before.errors[row])),
            (before.name, _detections(before.errors[row])),
            (now.name, _detections(now.errors[row])),
        ]
        shown = "".join(
            f"<div><h4>{escape(title)}</h4>{picture(jpeg, size, boxes, split.class_names)}</div>"
            for title, boxes in panels
        )
        name = f"image {int(split.image_ids[row])} {split.file_names[row]}"
        caption = f"{name}: error {old:.2f} → {new:.2f}"
        parts.append(
            f'<section class="card"><h3>{escape(caption)}</h3><div class="three">{shown}</div>'
            "</section>"
        )
    return "".join(parts)


def _objects(errors: ImageErrors) -> list[Box]:
    rows = zip(errors.object_boxes, errors.object_labels, errors.object_states, strict=True)
    return [(b, int(k), "crowd" if state == CROWD else "found", 0.0) for b, k, state in rows]


def _detections(errors: ImageErrors) -> list[Box]:
    rows = zip(errors.boxes, errors.labels, errors.kinds, errors.scores, strict=True)
    return [(b, int(k), KINDS[kind], float(s)) for b, k, kind, s in rows if s >= _LEAST]


def picture(
    jpeg: str, size: tuple[int, int], boxes: Sequence[Box], class_names: Sequence[str]
) -> str:
    """A picture of (height, width) ``size``; boxes tell their class, score and kind as titles."""
    height, width = size
    parts = []
    if jpeg:
        parts.append(
            f'<image href="data:image/jpeg;base64,{jpeg}" width="{width}" height="{height}" '
            'preserveAspectRatio="none"/>'
        )
    for (x, y, w, h), label, style, score in reversed(boxes):
        text = f"{class_names[label]} {score:.2f}: {style}" if score else class_names[label]
        parts.append(
            f'<rect class="box {style}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" '
            f'height="{h:.1f}"><title>{escape(text)}</title></rect>'
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
