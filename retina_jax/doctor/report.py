"""The doctor's report: tables for a terminal, and a self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retina_jax.doctor.checks import Finding, percent
from retina_jax.doctor.examine import Report, SplitSummary
from retina_jax.wording import counted

_MOST_CLASSES = 25  # on a terminal; the page shows all
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff;
       max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.path { color: #667; margin-top: 0; }
.finding { border-left: 4px solid #9ab; background: #f4f6f8; padding: .45rem .8rem; margin: .4rem 0;
           overflow-wrap: anywhere; }
.finding b { display: inline-block; min-width: 4.6rem; }
.error { border-color: #c0293b; background: #fdeff0; } .error b { color: #c0293b; }
.warning { border-color: #d98b00; background: #fdf6e7; } .warning b { color: #a86b00; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e3e7eb; }
th { font-weight: 600; color: #445; border-bottom: 2px solid #b9c4d0; }
th:first-child, td:first-child { text-align: left; }
.low { color: #c0293b; font-weight: 600; }
pre { background: #f4f6f8; padding: .7rem .9rem; overflow-x: auto; }
img { max-width: 100%; height: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 340px; } figcaption { font-size: .85rem; color: #445; }
"""


def _or_dash(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _split_cells(summaries: Sequence[SplitSummary]) -> tuple[list[str], list[list[str]]]:
    header = ["split", "images", "empty", "boxes", "crowds", "most per image", "padding"]
    return header, [
        [s.name, f"{s.images:,}", f"{s.empty:,}", f"{s.boxes:,}", f"{s.crowds:,}",
         str(s.most_boxes), percent(s.padding)]
        for s in summaries
    ]  # fmt: skip


def _class_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    train, evaluation = report.summaries
    header = [
        "class", "id", f"{train.name} images", "boxes", "crowds",
        report.rule.matched, report.rule.nearly,
        f"{evaluation.name} images", "boxes", report.rule.matched,
    ]  # fmt: skip
    return header, [
        [t.name, str(t.category_id), f"{t.images:,}", f"{t.boxes:,}", f"{t.crowds:,}",
         _or_dash(t.foreground), _or_dash(t.background),
         f"{e.images:,}", f"{e.boxes:,}", _or_dash(e.foreground)]
        for t, e in zip(train.classes, evaluation.classes, strict=True)
    ]  # fmt: skip


def _size_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    header = [
        "split", "size", "original", "at the input", report.rule.matched, report.rule.nearly,
    ]  # fmt: skip
    return header, [
        [s.name, r.name, f"{r.original:,}", f"{r.at_input:,}", _or_dash(r.foreground),
         _or_dash(r.background)]
        for s in report.summaries
        for r in s.sizes
    ]  # fmt: skip


def _bucket_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    header = ["split", "bucket", "images", "padding", "scale"]
    cells = []
    for s in report.summaries:
        for r in s.buckets:
            scale = "–"
            if r.images:
                low, high = f"{r.least_scale:.3g}", f"{r.largest_scale:.3g}"
                scale = low if low == high else f"{low} to {high}"
            cells.append([s.name, f"{r.height}×{r.width}", f"{r.images:,}", _or_dash(r.padding),
                          scale])  # fmt: skip
    return header, cells


def _tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    by = "ATSS" if report.rule.facts["kind"] == "atss" else "IoU"
    sizes = "Sizes (as in COCO: small < 32², large > 96² pixels) and their anchor recall"
    return [
        ("Splits", *_split_cells(report.summaries)),
        (f"Classes and their anchor recall, by {by}", *_class_cells(report)),
        (sizes, *_size_cells(report)),
        ("Buckets", *_bucket_cells(report)),
    ]


def text_tables(report: Report) -> list[Table]:
    """Tables for a terminal; shows only the most frequent classes if there are many."""
    drawn = []
    for title, header, cells in _tables(report):
        if len(cells) > _MOST_CLASSES and header[0] == "class":
            left_out = len(cells) - _MOST_CLASSES
            title = f"{title} (rarer classes that only the page shows: {left_out})"
            cells = sorted(cells, key=lambda row: -int(row[3].replace(",", "")))[:_MOST_CLASSES]
        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left")
        for row in cells:
            table.add_row(*map(Text, row))
        drawn.append(table)
    return drawn


def count_text(findings: Sequence[Finding]) -> str:
    """ "1 error, 2 warnings, no notes"."""
    parts = []
    for level in ("error", "warning", "note"):
        count = sum(f.level == level for f in findings)
        parts.append(counted(count or "no", level))
    return ", ".join(parts)


def _inline(picture: bytes, caption: str) -> str:
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption, quote=True)}">'


def _html_table(header: list[str], cells: list[list[str]]) -> str:
    def cell(text: str, column: str) -> str:
        is_recall = column.startswith(("IoU", "ATSS", "centre inside"))
        low = is_recall and text.endswith("%") and float(text.strip("<> %")) < 90
        return f"<td{' class=low' if low else ''}>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr>{''.join(cell(c, h) for c, h in zip(row, header, strict=True))}</tr>" for row in cells
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def page(
    report: Report, plots: dict[str, bytes], pictures: Sequence[tuple[str, str, bytes]]
) -> str:
    """The report as one HTML page without external files.

    Args:
      plots: title to PNG.
      pictures: section, caption and PNG of each image.
    """
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Data doctor: {html.escape(report.directory.parent.name)}</title>",
        f"<style>{_STYLE}</style><h1>Data doctor: {count_text(report.findings)}</h1>",
        f'<p class="path">{html.escape(str(report.directory))}</p>',
    ]
    for finding in report.findings:
        message = html.escape(finding.message)
        parts.append(f'<div class="finding {finding.level}"><b>{finding.level}</b> {message}</div>')
    if report.suggestion:
        flags = html.escape(report.suggestion.flags().replace(" --", " \\\n  --"))
        parts.append(f"<h2>Suggested flags</h2><pre>{flags}</pre>")
        rows = [
            [group, percent(before), percent(report.suggestion.after[group])]
            for group, before in report.suggestion.before.items()
        ]
        recall = f"{report.summaries[0].name}: anchor recall at {report.rule.matched}"
        header = [recall, "now", "with these flags"]
        parts.append(_html_table(header, rows))
    for title, header, cells in _tables(report):
        parts.append(f"<h2>{html.escape(title)}</h2>{_html_table(header, cells)}")
    for title, plot in plots.items():
        parts.append(f"<h2>{html.escape(title)}</h2>{_inline(plot, title)}")
    for section in dict.fromkeys(section for section, _, _ in pictures):
        parts.append(f'<h2>{html.escape(section)}</h2><div class="pictures">')
        for of, caption, picture in pictures:
            if of == section:
                shown = _inline(picture, caption)
                parts.append(
                    f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
        parts.append("</div>")
    return "\n".join([*parts, "</html>"])
