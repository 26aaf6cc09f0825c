"""Charts as SVG and tables as HTML, for pages without external files.

Colours are classes (``c0``, ``c1``, …) that report.css defines for light and dark screens. All text
is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_MOST_POINTS = 400


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number as text; – for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    sortable: bool = False,
    label: str = "",
) -> str:
    """An HTML table in a frame that scrolls sideways; the first column is text."""

    def head(name: str) -> str:
        name = escape(name)
        return f'<button type="button">{name}</button>' if sortable else name

    cells = "".join(f'<th scope="col">{head(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label or header[0])}">'
        f"<table{kind}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most``."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / most
    unit = 10 ** math.floor(math.log10(raw))
    step = next(f * unit for f in (1, 2, 2.5, 5, 10) if f * unit >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """The frame of a chart: maps values to places and draws axes, with the labels escaped."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str):
        self._x = (x[0], x[1] if x[1] > x[0] else x[0] + 1)
        self._y = (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self._labels = x_label, y_label

    def at_x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def draw(
        self,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> str:
        """Lines and labels; ticks are (value, text), by default round numbers."""
        if x_ticks is None:
            x_ticks = [(v, f"{v:,.10g}") for v in ticks(*self._x)]
        if y_ticks is None:
            y_ticks = [(v, f"{v:,.10g}") for v in ticks(*self._y)]
        parts, bottom = [], HEIGHT - _BOTTOM
        for value, text in y_ticks:
            y = self.at_y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="y">{escape(text)}</text>')
        for value, text in x_ticks:
            x = self.at_x(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" class="x">{escape(text)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>')
        x_label, y_label = map(escape, self._labels)
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" class="x label">{x_label}</text>')
        y = (_TOP + bottom) / 2
        turned = f'transform="rotate(-90 12 {y})"'
        parts.append(f'<text x="12" y="{y}" class="x label" {turned}>{y_label}</text>')
        return "".join(parts)


def svg(content: str, title: str, name: str = "") -> str:
    known = f' id="{escape(name)}"' if name else ""
    return (
        f'<svg{known} class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{content}</svg>'
    )


def legend(names: Sequence[str], first: int = 0) -> str:
    items = "".join(
        f'<li><i class="c{k}"></i>{escape(name)}</li>' for k, name in enumerate(names, first)
    )
    return f'<ul class="legend">{items}</ul>'


def figure(title: str, content: str, note: str = "") -> str:
    """A chart with its heading, and a note in plain text below."""
    below = f"<p>{escape(note)}</p>" if note else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{content}{below}</figure>'


def lines(
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    title: str,
    y: tuple[float, float] | None = None,
    x: tuple[float, float] | None = None,
    points: bool = False,
    name: str = "",
    extra: str = "",
) -> str:
    """A line for each series (x and y values; NaN leaves a gap), with a legend.

    ``extra``: SVG that is drawn below the lines; ``points``: marks each value.
    """
    arrays = {n: _thinned(*map(np.asarray, values)) for n, values in series.items()}
    every_x = np.concatenate([v for v, _ in arrays.values()] or [np.zeros(1)])
    every_y = np.concatenate([v for _, v in arrays.values()] or [np.zeros(1)])
    finite = every_y[np.isfinite(every_y)]
    if x is None:
        x = (float(every_x.min(initial=0)), float(every_x.max(initial=1)))
    if y is None:
        y = (0.0, float(finite.max(initial=0)) * 1.05)
    axes = Axes(x, y, x_label, y_label)
    parts = [axes.draw(), extra]
    for k, (of, (xs, ys)) in enumerate(arrays.items()):
        places = [
            (axes.at_x(a), axes.at_y(min(max(b, y[0]), y[1]))) if np.isfinite(b) else None
            for a, b in zip(xs.tolist(), ys.tolist(), strict=True)
        ]
        parts.append(
            f'<path class="line c{k}" d="{_path(places)}"><title>{escape(of)}</title></path>'
        )
        if points:
            for place, value, at in zip(places, ys.tolist(), xs.tolist(), strict=True):
                if place:
                    parts.append(
                        f'<circle class="c{k}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3">'
                        f"<title>{escape(of)} {value:.3g} at {at:.6g}</title></circle>"
                    )
    drawn = svg("".join(parts), title, name)
    return drawn + (legend(list(arrays)) if len(arrays) > 1 else "")


def bars(
    labels: Sequence[str],
    series: dict[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str,
    logarithmic: bool = False,
    every: int = 1,
    digits: int = 0,
    horizontal_lines: Sequence[float] = (),
) -> str:
    """Bars side by side for each label, with a legend; only each ``every``-th label is written.

    ``horizontal_lines``: positions along the labels at which dashed lines are drawn.
    """
    values = np.asarray(list(series.values()), float).reshape(len(series), len(labels))
    height = np.log10(1 + values) if logarithmic else values
    axes = Axes((0, len(labels)), (0, float(height.max(initial=0)) * 1.05 or 1.0), x_label, y_label)
    x_ticks = [(k + 0.5, text) for k, text in enumerate(labels) if k % every == 0]
    y_ticks = None
    if logarithmic:
        top = int(height.max(initial=0)) + 1
        y_ticks = [(0.0, "0")] + [
            (math.log10(1 + 10**k), f"{10**k:,}") for k in range(top + 1) if k <= height.max()
        ]
    parts = [axes.draw(x_ticks, y_ticks)]
    width, bottom = 0.84 / max(len(series), 1), axes.at_y(0)
    for k, name in enumerate(series):
        for i, text in enumerate(labels):
            left, right = axes.at_x(i + 0.08 + k * width), axes.at_x(i + 0.08 + (k + 1) * width)
            top = axes.at_y(height[k, i])
            if values[k, i]:
                shown = f"{text}: {values[k, i]:,.{digits}f} ({name})"
                parts.append(
                    f'<rect class="c{k}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                    f'height="{bottom - top:.1f}"><title>{escape(shown)}</title></rect>'
                )
    for value in horizontal_lines:
        parts.append(f'<path class="mark" d="M{axes.at_x(value):.1f} {_TOP}V{bottom:.1f}"/>')
    drawn = svg("".join(parts), title)
    return drawn + (legend(list(series)) if len(series) > 1 else "")


def heat_map(matrix: np.ndarray, names: Sequence[str], title: str) -> str:
    """A matrix of counts, shaded by their share of the row; tooltips show the numbers."""
    count = len(matrix)
    named = count <= 26
    size, margin = (min(44, max(20, 440 // count)), 124) if named else (max(4, 640 // count), 8)
    side, right = margin + count * size, 60 if named else 8
    parts = []
    for i in range(count):
        total = max(int(matrix[i].sum()), 1)
        for j in np.flatnonzero(matrix[i]).tolist():
            share, value = matrix[i, j] / total, int(matrix[i, j])
            shown = f"{names[i]} → {names[j]}: {value:,} ({share:.0%})"
            kind = "right" if i == j else "wrong"
            parts.append(
                f'<rect class="{kind}" x="{margin + j * size}" y="{margin + i * size}" '
                f'width="{size - 1}" height="{size - 1}" style="opacity:{max(share, 0.06):.2f}">'
                f"<title>{escape(shown)}</title></rect>"
            )
        if named:
            y = margin + i * size + size * 0.68
            parts.append(f'<text x="{margin - 5}" y="{y:.0f}" class="y">{_short(names[i])}</text>')
            x = margin + i * size + size * 0.62
            turned = f'transform="rotate(-60 {x:.0f} {margin - 5})"'
            parts.append(f'<text x="{x:.0f}" y="{margin - 5}" {turned}>{_short(names[i])}</text>')
    inner = f'width="{side - margin}" height="{side - margin}"'
    frame = f'<rect class="frame" x="{margin}" y="{margin}" {inner}/>'
    return (
        f'<svg class="matrix" viewBox="0 0 {side + right} {side + 8}" role="img" '
        f'aria-label="{escape(title)}">{frame}{"".join(parts)}</svg>'
    )


def _short(name: str, most: int = 16) -> str:
    return escape(name if len(name) <= most else name[: most - 1] + "…")


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for place in places:
        if place is None:
            pen = "M"
            continue
        parts.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
        pen = "L"
    return "".join(parts)


def _thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, each the mean of equally many neighbours."""
    xs, ys = xs.astype(float), ys.astype(float)
    if len(xs) <= _MOST_POINTS:
        return xs, ys
    parts = np.array_split(np.arange(len(xs)), _MOST_POINTS)
    return (
        np.array([xs[p].mean() for p in parts]),
        np.array([ys[p][np.isfinite(ys[p])].mean() if np.isfinite(ys[p]).any() else np.nan
                  for p in parts]),
    )  # fmt: skip
