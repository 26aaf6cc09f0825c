"""The plots on the doctor's page, as PNG."""

from __future__ import annotations

import io

import ml_collections
import numpy as np

from retina_jax.doctor.anchor_recall import ENOUGH
from retina_jax.doctor.examine import BoxMatch, Report, SplitSummary, class_group
from retina_jax.ops.anchors import LEVELS, level_sizes

_MOST_CLASSES = 40
_BLUE, _GREY, _RED, _GREEN = "#3b6fb6", "#b9c4d0", "#d1495b", "#3a9a5b"


def draw_all(report: Report, config: ml_collections.ConfigDict) -> dict[str, bytes]:
    """Title to PNG, in the order of the page."""
    train = report.summaries[0]
    plots = {"Boxes by class": _class_counts(report.summaries)}
    if len(report.matches[0].places):
        plots["Boxes of the training split compared with the anchors"] = _against_anchors(
            report.matches[0], report.rule.plot, config
        )
        plots["Anchor recall by class"] = _recall(train, report)
    plots["Padding by bucket"] = _padding(report.summaries)
    return plots


def _figure(width: float, height: float, columns: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _literally(name: str) -> str:
    """Escapes a class name, so that matplotlib does not read it as a formula."""
    return name.replace("$", r"\$")


def _class_counts(summaries: tuple[SplitSummary, ...]) -> bytes:
    """Bars of each class in both splits, most frequent first; logarithmic if needed."""
    order = np.argsort([-row.boxes for row in summaries[0].classes], kind="stable")[:_MOST_CLASSES]
    figure, axis = _figure(8, 1.2 + 0.36 * len(order))
    y = np.arange(len(order))
    counts = [[summary.classes[i].boxes for i in order] for summary in summaries]
    for shift, colour, summary, values in zip(
        (-0.2, 0.2), (_BLUE, _GREY), summaries, counts, strict=True
    ):
        bars = axis.barh(y + shift, values, 0.4, color=colour, label=summary.name)
        axis.bar_label(bars, [f"{v:,}" for v in values], padding=3, fontsize=8)
    axis.set_yticks(y, [_literally(summaries[0].classes[i].name) for i in order])
    axis.invert_yaxis()
    if max(counts[0], default=0) > 50 * max(1, min(counts[0], default=0)):
        axis.set_xscale("symlog", linthresh=1)
    axis.margins(x=0.1)
    axis.set(xlabel="boxes (without crowds)")
    axis.legend(frameon=False)
    return _png(figure)


def _against_anchors(matched: BoxMatch, rule: str, config: ml_collections.ConfigDict) -> bytes:
    """Sizes and aspects at the input, matched or not; lines mark the anchors."""
    anchors = config.anchors
    width, height = (matched.shown.boxes[:, 2:] - matched.shown.boxes[:, :2]).T
    within = matched.matched
    figure, (by_size, by_aspect) = _figure(11, 3.8, 2)
    sizes = [
        size
        for level in LEVELS
        for size in level_sizes(level, anchors.scale, anchors.octaves, anchors.truncate_sizes)
    ]
    for axis, values, lines in (
        (by_size, np.sqrt(width * height), sizes),
        (by_aspect, height / width, anchors.ratios),
    ):
        low, high = np.quantile(values, [0.001, 0.999])
        bins = np.geomspace(min(low, *lines) * 0.9, max(high, *lines) * 1.1, 48)
        axis.hist(
            [values[within], values[~within]],
            bins,
            stacked=True,
            color=[_BLUE, _RED],
            label=[rule, "no such anchor"],
        )
        for i, line in enumerate(lines):
            axis.axvline(line, color="#444", lw=0.9, ls=":", label=None if i else "anchors")
        axis.set_xscale("log")
        powers = np.log2(bins[[0, -1]])
        ticks = 2.0 ** np.arange(np.ceil(powers[0]), powers[1])
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    by_size.set(xlabel="√area at the input, pixels", ylabel="boxes")
    by_aspect.set(xlabel="height over width")
    named = by_size.get_legend_handles_labels()
    figure.legend(*named, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return _png(figure)


def _recall(train: SplitSummary, report: Report) -> bytes:
    """Anchor recall of each class, worst first, and the recall with the suggested config."""
    rows = sorted((r for r in train.classes if r.boxes), key=lambda r: r.foreground or 0)
    rows = rows[:_MOST_CLASSES]
    figure, axis = _figure(8, 1.2 + 0.36 * len(rows))
    y = np.arange(len(rows))
    axis.barh(y, [r.background or 0 for r in rows], 0.7, color=_GREY,
              label=report.rule.nearly)  # fmt: skip
    axis.barh(y, [r.foreground or 0 for r in rows], 0.7, color=_BLUE,
              label=report.rule.matched)  # fmt: skip
    if report.suggestion:
        after = [report.suggestion.after.get(class_group(r.name), np.nan) for r in rows]
        axis.plot(after, y, "D", color=_GREEN, ms=6, label="as suggested")
    axis.axvline(ENOUGH, color="#444", lw=0.9, ls=":")
    axis.set_yticks(y, [f"{_literally(r.name)} ({r.boxes:,})" for r in rows])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.02), xlabel="share of boxes that an anchor can match")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def _padding(summaries: tuple[SplitSummary, ...]) -> bytes:
    """Image and padding pixels of each bucket over an epoch."""
    rows = [(summary.name, row) for summary in summaries for row in summary.buckets]
    figure, axis = _figure(8, 1.2 + 0.4 * len(rows))
    for y, (_, row) in enumerate(rows):
        pixels = row.images * row.height * row.width / 1e6
        padding = pixels * (row.padding or 0)
        axis.barh(y, pixels - padding, 0.7, color=_BLUE, label=None if y else "image")
        axis.barh(y, padding, 0.7, left=pixels - padding, color=_RED,
                  label=None if y else "padding")  # fmt: skip
        text = f" {row.images:,} images, {100 * row.padding:.1f} % padding" if row.images else " –"
        axis.text(pixels, y, text, va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [f"{name} {r.height}×{r.width}" for name, r in rows])
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.set(xlabel="input pixels per epoch, millions")
    axis.legend(frameon=False, loc="lower right")
    return _png(figure)
