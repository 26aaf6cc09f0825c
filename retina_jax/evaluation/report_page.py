"""The report of an evaluation as one HTML page without external files."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from retina_jax.evaluation import report_charts as charts
from retina_jax.evaluation.coco import LIMITS, metric_names
from retina_jax.evaluation.report_charts import escape, figure, number
from retina_jax.evaluation.report_errors import KINDS
from retina_jax.evaluation.report_gallery import LARGE, MOST_LARGE, SMALL
from retina_jax.evaluation.report_numbers import SCORE_BINS, SIZE_EDGES, Numbers

_MOST_IN_MATRIX = 150  # classes; for more, the table of confusions alone
_MOST_CONFUSIONS = 20
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Forbids the page from loading or sending anything."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run has logged so far."""

    log: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    evaluations: list[dict[str, Any]]
    """The metrics of its evaluations, by step."""


def page(
    title: str,
    numbers: Numbers,
    metrics: dict[str, Any],
    curves: Curves,
    gallery: dict[str, Any],
) -> str:
    """The whole page; all text from the data is escaped.

    Args:
      title: the run and step.
      metrics: as in metrics.json.
      gallery: `report_gallery.gallery`.
    """
    sections = [
        ("Metrics", _metrics(numbers, metrics)),
        ("Errors", _errors(numbers)),
        ("Classes", _classes(numbers)),
        ("Confusion", _confusion(numbers)),
        ("Scores and sizes", _scores(numbers)),
        ("Training", _training(curves)),
        ("Images", _gallery(numbers, gallery, metrics["images"])),
    ]
    sections = [(name, content) for name, content in sections if content]
    summary = (
        f"{metrics['images']:,} images, {metrics['detections']:,} detections, step "
        f"{metrics['step']:,}. Metrics range from 0 to 1."
    )
    return document(
        title,
        f"<h1>{escape(title)}</h1><p>{escape(summary)}</p>",
        sections,
        {"gallery-data": gallery, "curves": _class_curves(numbers)},
    )


def document(
    title: str, intro: str, sections: Sequence[tuple[str, str]], data: dict[str, Any]
) -> str:
    """A page of sections (heading and HTML) with the style and script of reports.

    Args:
      title: plain text.
      data: JSON that the script reads, by the id of its element.
    """
    names = [(f"part-{k}", name) for k, (name, _) in enumerate(sections)]
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in names)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>{content}</section>'
        for (key, name), (_, content) in zip(names, sections, strict=True)
    )
    return "\n".join(
        [
            head(title),
            f'{intro}<nav aria-label="sections">{links}</nav><main>{body}</main>',
            *(embedded(name, value) for name, value in data.items()),
            f"{script(_file('report.js'))}</body></html>\n",
        ]
    )


def head(title: str, style: str = "", policy: str = _POLICY) -> str:
    """The start of a page, up to and with its <body> tag, in the style of reports.

    Args:
      title: plain text.
      style: CSS to add.
      policy: what the page may load and send.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_file('report.css')}{style}</style></head><body>"
    )


def embedded(name: str, value: Any) -> str:
    """JSON in an element that no text inside can close."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def script(text: str) -> str:
    """A page's own script, after what all pages share."""
    return f"<script>(() => {{{_file('elements.js')}{text}}})();</script>"


def _file(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _metrics(numbers: Numbers, metrics: dict[str, Any]) -> str:
    names = metric_names(metrics.get("limits", LIMITS))
    tiles = "".join(f"<div><dt>{n}</dt><dd>{number(metrics[n])}</dd></div>" for n in names)
    by_iou = {
        name: (numbers.ious, values)
        for name, values in numbers.by_iou.items()
        if not np.isnan(values).all()
    }
    curves = {name: (numbers.recalls, values) for name, values in numbers.curves.items()}
    shown = charts.lines(by_iou, "IoU", "AP", "AP by IoU and size", (0, 1), (0.5, 0.95), True)
    parts = [
        figure("AP by IoU and size", shown, "Small: below 32² pixels; large: above 96²."),
        figure(
            "Precision and recall",
            charts.lines(curves, "recall", "precision", "precision and recall", (0, 1), (0, 1)),
            "Mean over classes, at six IoU thresholds.",
        ),
    ]
    if numbers.classes:
        options = "".join(
            f'<option value="{k}">{escape(row.name)}</option>'
            for k, row in enumerate(numbers.classes)
        )
        chart = charts.lines(
            {"class": ([0.0, 1.0], [0.0, 0.0])}, "recall", "precision",
            "precision and recall of a class at IoU 0.5", (0, 1), (0, 1), name="curve-of-class",
        )  # fmt: skip
        choose = f'<label>Class <select id="curve-class">{options}</select></label>'
        parts.append(figure("Precision and recall of a class, IoU 0.5", choose + chart))
    return f'<dl class="tiles">{tiles}</dl><div class="charts">{"".join(parts)}</div>'


def _class_curves(numbers: Numbers) -> dict[str, Any]:
    frame = charts.Axes((0, 1), (0, 1), "", "")
    area = [frame.at_x(0), frame.at_x(1), frame.at_y(1), frame.at_y(0)]
    curves = np.nan_to_num(numbers.class_curves).round(3).tolist()
    return {"curves": curves, "area": area}


def _errors(numbers: Numbers) -> str:
    rows = [[e.kind, f"{e.count:,}", number(e.cost)] for e in numbers.errors]
    chart = charts.bars(
        [e.kind.replace("classification", "class").replace("localisation", "location")
         for e in numbers.errors],
        {"cost in AP50": [e.cost for e in numbers.errors]},
        "kind of error", "AP50 lost", "what each kind of error costs", digits=3,
    )  # fmt: skip
    header = ["kind", "count", "cost in AP50"]
    note = (
        f"AP50 is {number(numbers.base_ap)}. The cost of a kind is what AP50 would gain if only "
        "the errors of this kind were fixed; the costs do not add up. Detections with any score "
        "count."
    )
    return (
        '<div class="charts">'
        + figure("What each kind of error costs", chart, note)
        + f'<div class="card"><h3>Kinds of error (TIDE)</h3>{charts.table(header, rows)}'
        + _definitions()
        + "</div></div>"
    )


def _definitions() -> str:
    return (
        '<p class="faint">Classification: IoU of 0.5 or more with an object of another class. '
        "Localisation: right class, IoU between 0.1 and 0.5. Both: wrong class, IoU between 0.1 "
        "and 0.5. Duplicate: the object is already matched by a detection with a higher score. "
        "Background: IoU below 0.1 with every object. Missed: an object without a correct "
        "detection and without an error of the first two kinds.</p>"
    )


def _classes(numbers: Numbers) -> str:
    names = list(numbers.classes[0].precisions) if numbers.classes else []
    rows = [
        [c.name, *(number(c.precisions[n]) for n in names), f"{c.objects:,}", f"{c.detections:,}"]
        for c in numbers.classes
    ]
    return charts.table(["class", *names, "objects", "detections"], rows, True, "AP by class")


def _confusion(numbers: Numbers) -> str:
    names = [*(c.name for c in numbers.classes), "background"]
    matrix, operating = numbers.confusion, numbers.operating
    off = matrix[:-1, :-1].copy()  # between classes
    np.fill_diagonal(off, 0)
    flat = np.argsort(-off, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    rows = []
    for i, j in zip(*np.unravel_index(flat, off.shape), strict=True):
        if off[i, j]:
            share = off[i, j] / max(int(matrix[i].sum()), 1)
            rows.append([names[i], names[j], f"{off[i, j]:,}", f"{share:.0%}"])
    text = (
        f"Detections that score at least {number(operating.threshold)}, where F1 at IoU 0.5 is "
        f"best: precision {number(operating.precision)}, recall {number(operating.recall)}, F1 "
        f"{number(operating.f1)}. Rows are objects, columns are detections, matched at IoU 0.5 "
        "regardless of class. Objects in the column “background” are missed; detections in the "
        "row “background” are false positives."
    )
    parts = [f"<p>{escape(text)}</p>", '<div class="charts">']
    if len(names) <= _MOST_IN_MATRIX:
        drawn = charts.heat_map(matrix, names, "confusion matrix")
        parts.append(figure("Confusion matrix", drawn, "Shaded by the share of its row."))
    header = ["object", "detected as", "count", "share of objects"]
    listed = charts.table(header, rows, label="most frequent confusions")
    listed = listed if rows else "<p>None.</p>"
    parts.append(f'<div class="card"><h3>Most frequent confusions</h3>{listed}</div></div>')
    return "".join(parts)


def _scores(numbers: Numbers) -> str:
    used = [(score, share) for score, share, count in numbers.reliability if count]
    diagonal = charts.Axes((0, 1), (0, 1), "", "")
    line = (
        f'<path class="mark" d="M{diagonal.at_x(0):.1f} {diagonal.at_y(0):.1f}'
        f'L{diagonal.at_x(1):.1f} {diagonal.at_y(1):.1f}"/>'
    )
    reliability = charts.lines(
        {"detections": ([s for s, _ in used], [a for _, a in used])}, "mean score",
        "share of correct detections", "reliability of scores", (0, 1), (0, 1), True, extra=line,
    )  # fmt: skip
    scores = charts.bars(
        [f"{k / SCORE_BINS:g}" for k in range(SCORE_BINS)],
        {"correct": numbers.scores[0].tolist(), "false": numbers.scores[1].tolist()},
        "score, start of bin", "detections (log scale)", "scores", True, 4,
    )  # fmt: skip
    labels = ["0", *(f"{edge:.3g}" for edge in SIZE_EDGES)]
    names = ("detected objects", "missed objects", "false positives")
    first, last = _bounds(numbers.sizes.sum(0))
    edges = [k + 1 - first for k, e in enumerate(SIZE_EDGES) if round(e) in (32,)]
    sizes = charts.bars(
        labels[first:last],
        {n: numbers.sizes[k, first:last].tolist() for k, n in enumerate(names)},
        "√area, start of bin, pixels", "boxes (log scale)", "sizes", True,
        3, horizontal_lines=[e for e in edges if 0 < e < last - first],
    )  # fmt: skip
    note = (
        "On the dashed line, the score equals the probability that the detection is correct at "
        "IoU 0.5. Expected "
        f"calibration error: {number(numbers.calibration_error)}."
    )
    at = f"Only detections that score at least {number(numbers.operating.threshold)} count."
    return (
        '<div class="charts">'
        + figure("Reliability of scores", reliability, note)
        + figure("Scores", scores, "Correct: matched at IoU 0.5.")
        + figure("Sizes", sizes, f"{at} The dashed line is COCO's limit for small objects, 32.")
        + "</div>"
    )


def _bounds(counts: np.ndarray) -> tuple[int, int]:
    """The range of bins that are not empty."""
    used = np.flatnonzero(counts)
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(counts))


def _training(curves: Curves) -> str:
    def column(entries: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
        values = [e.get(name) for e in entries]
        return [e["step"] for e in entries], [np.nan if v is None else v for v in values]

    parts = []
    if curves.log:
        names = [n for n in curves.log[-1] if n.startswith("loss") and "_P" not in n]
        losses = {name: column(curves.log, name) for name in names}
        rate = {"learning rate": column(curves.log, "learning_rate")}
        parts.append(figure("Loss", charts.lines(losses, "step", "loss", "loss by step")))
        drawn = charts.lines(rate, "step", "learning rate", "learning rate by step")
        parts.append(figure("Learning rate", drawn))
    if curves.evaluations:
        scores = {name: column(curves.evaluations, name) for name in ("AP", "AP50", "AP75")}
        drawn = charts.lines(scores, "step", "AP", "AP by step", (0, 1), points=True)
        parts.append(figure("Evaluations", drawn))
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _options(pairs: Sequence[tuple[object, str]]) -> str:
    return "".join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in pairs)


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Explains the strokes of boxes: (style, text)."""
    drawn = "".join(
        f'<li><svg viewBox="0 0 26 12" aria-hidden="true"><rect class="box {style}" x="1" y="1" '
        f'width="24" height="10"/></svg>{escape(text)}</li>'
        for style, text in entries
    )
    return f'<ul class="key">{drawn}</ul>'


def _gallery(numbers: Numbers, gallery: dict[str, Any], images: int) -> str:
    classes = [(-1, "all classes"), *enumerate(gallery["classes"])]
    wrong = [(kind, kind) for kind in KINDS[1:-1]]
    kinds = [("", "all images"), ("any", "any error"), ("missed", "missed object"), *wrong,
             ("none", "no error")]  # fmt: skip
    least = math.floor(numbers.operating.threshold * 100) / 100
    shown = len(gallery["images"])
    text = (
        "Images with the largest error come first. The error sums, over detections, the squared "
        "difference between the score and 1 (correct) or 0 (wrong), plus 1 for each object "
        "without a correct detection. Ground truth is on the left, detections on the right. The "
        f"first {min(shown, MOST_LARGE)} images are stored with {LARGE} pixels on the long side, "
        f"the others with {SMALL}."
    )
    if shown < images:
        text += f" Of {images:,} images, only the {shown:,} with the largest errors are shown."
    return f"""<p>{escape(text)}</p>
{
        key(
            [
                ("correct", "correct detection, detected object"),
                ("missed", "missed object"),
                ("wrongly", "object detected with the wrong class or location"),
                ("crowd", "crowd, ignored"),
                *((kind, kind) for kind in KINDS[1:-1]),
            ]
        )
    }
<noscript><p>The images need JavaScript.</p></noscript>
<div class="filters" role="group" aria-label="filters">
<label>Class<select id="filter-class">{_options(classes)}</select></label>
<label>Kind of error<select id="filter-kind">{_options(kinds)}</select></label>
<label>Smallest score<span><input type="range" id="filter-score" min="0" max="1" step="0.01"
 value="{least}"> <output id="score-value" for="filter-score">{least:.2f}</output></span></label>
<label>Image id or file name<input type="search" id="filter-text"></label>
<span id="image-count" role="status"></span></div>
<div class="images" id="images"></div>
<p><button type="button" class="button" id="more" hidden>More images</button></p>
<dialog id="enlarged" aria-labelledby="enlarged-title"><header><h3 id="enlarged-title"></h3>
<button type="button" class="button" id="previous" aria-keyshortcuts="ArrowLeft">← Previous</button>
<button type="button" class="button" id="next" aria-keyshortcuts="ArrowRight">Next →</button>
<button type="button" class="button" id="close" aria-keyshortcuts="Escape">Close</button></header>
<div id="enlarged-body"></div></dialog>"""
