"""Reproduces the paper's figures with this program's losses and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retina_jax.ablation.logits import count_logits
from retina_jax.ablation.table import STEP, Outcome
from retina_jax.files import atomic_write

GAMMAS = (0.0, 0.5, 1.0, 2.0)
_POINTS = 400


def _figure(width: float, height: float, columns: int = 1):
    """A figure and its axes; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_losses(path: Path) -> None:
    """Figures 1 and 5: losses as functions of p_t and of x_t = y · x (without α)."""
    import jax.numpy as jnp

    from retina_jax.ops.losses import focal_star_loss, sigmoid_focal_loss

    x = np.linspace(-6, 8, _POINTS)
    labels = np.zeros(_POINTS, np.int32)  # all foreground: x is x_t
    p_t = 1 / (1 + np.exp(-x))
    logits = jnp.asarray(x[:, None], jnp.float32)
    figure, (by_p, by_x) = _figure(10, 4, 2)
    for gamma in (*GAMMAS, 5.0):
        loss = 2 * sigmoid_focal_loss(logits, labels, 0.5, gamma)
        label = "γ = 0 (cross entropy)" if gamma == 0 else f"γ = {gamma:g}"
        by_p.plot(p_t, loss, label=label)
        if gamma in (0.0, 2.0):
            by_x.plot(x, loss, label="CE" if gamma == 0 else f"FL γ = {gamma:g}")
    for gamma, beta in ((2.0, 1.0), (4.0, 0.0)):
        loss = 2 * focal_star_loss(logits, labels, 0.5, gamma, beta)
        by_x.plot(x, loss, "--", label=f"FL* γ = {gamma:g}, β = {beta:g}")
    by_p.set(xlabel="probability of the ground-truth class, p_t", ylabel="loss", ylim=(0, 5))
    by_x.set(xlabel="x_t = y · x", ylabel="loss", ylim=(0, 5))
    by_p.legend()
    by_x.legend()
    _save(figure, path)


def cumulative_share(
    losses: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative normalised loss: shares of samples and of loss, both 0 to 1.

    Losses are sorted from low to high and normalised to sum to 1 (section 5.1). ``counts``: number
    of samples with each loss; None: one.
    """
    counts = np.ones(len(losses), np.int64) if counts is None else counts
    order = np.argsort(losses, kind="stable")
    samples = np.concatenate([[0], np.cumsum(counts[order])])
    summed = np.cumsum(losses[order].astype(np.float64) * counts[order])
    shares = np.concatenate([[0.0], summed / max(summed[-1], np.finfo(float).tiny)])
    points = np.unique(np.linspace(0, samples[-1], _POINTS).astype(int))
    return points / samples[-1], np.interp(points, samples, shares)


def draw_cumulative_loss(workdir: Path, path: Path) -> None:
    """Figure 4: cumulative normalised loss of foreground and of background."""
    figure, axes = _figure(10, 4, 2)
    counted = count_logits(workdir)
    for gamma in GAMMAS:
        losses = counted.losses(gamma)
        for axis, counts in zip(axes, (counted.foreground, counted.background), strict=True):
            axis.plot(*cumulative_share(losses, counts), label=f"γ = {gamma:g}")
    for axis, kind in zip(axes, ("foreground", "background"), strict=True):
        axis.set(xlabel=f"share of {kind} logits", ylabel="cumulative normalised loss")
        axis.legend()
    _save(figure, path)


def _average_precisions(outcomes: list[Outcome]) -> list[float]:
    """AP of the runs that ended with one, in points."""
    scores = [outcome.scores for outcome in outcomes if outcome.scores]
    return [100 * of_run["AP"] for of_run in scores if of_run["AP"] is not None]


def draw_speed(rows: list[tuple], path: Path) -> None:
    """Figure 2: AP as a function of milliseconds per image, one line per backbone."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row, outcomes, columns in rows:
        if scores := _average_precisions(outcomes):
            point = (float(columns["ms per image"]), float(np.mean(scores)))
            lines.setdefault(row.fields["model.backbone"], []).append(point)
    figure, axis = _figure(5.5, 4)
    for backbone, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), "o-", label=backbone)
    axis.set(xlabel="ms per image", ylabel="AP")
    axis.legend()
    _save(figure, path)


def draw_cost(rows: list[tuple], path: Path) -> None:
    """AP as a function of milliseconds per training step, a numbered point per row.

    Arrows follow the rows that build on each other; a dotted line joins each variant to its row.
    Bars are standard deviations over seeds. Rows without an AP are only listed.
    """
    figure, (axis, key) = _figure(9, 4.5, 2)
    axis.get_gridspec().set_width_ratios((3, 2))
    path_colour, variant_colour = "#1f4e79", "#b35900"  # told apart by their lightness, too
    points: dict[str, tuple[float, float]] = {}
    previous, lines = None, []
    for number, (row, outcomes, columns) in enumerate(rows, 1):
        scores = _average_precisions(outcomes)
        colour = variant_colour if row.variant_of else path_colour
        if not scores:
            lines.append((number, f"{row.name}: no AP", colour))
            continue
        place = float(columns[STEP]), float(np.mean(scores))
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        points[row.name] = place
        axis.errorbar(
            *place, yerr=spread, fmt="s" if row.variant_of else "o", color=colour, ecolor=colour,
            markersize=15, capsize=4, zorder=3, label=row.name,
            markerfacecolor="white" if row.variant_of else colour,
        )  # fmt: skip
        axis.annotate(
            str(number), place, ha="center", va="center", fontsize=9, weight="bold", zorder=4,
            color=colour if row.variant_of else "white",
        )  # fmt: skip
        text = f"{row.name}: {place[1]:.1f}" + (f" ± {spread:.1f}" if len(scores) > 1 else "")
        lines.append((number, text, colour))
        start = points.get(row.variant_of) if row.variant_of else previous
        if start and row.variant_of:
            axis.plot(*zip(start, place, strict=True), ":", color=colour, zorder=2)
        elif start:
            axis.annotate(
                "", place, start, zorder=2,
                arrowprops={"arrowstyle": "-|>", "color": "0.45", "shrinkA": 9, "shrinkB": 9},
            )  # fmt: skip
        if not row.variant_of:
            previous = place
    axis.set(xlabel="ms per training step", ylabel="AP")
    axis.margins(0.12)
    axis.grid(color="0.9", zorder=0)
    key.set_axis_off()
    for place, (number, text, colour) in enumerate(lines):
        height = 1 - (place + 0.5) / max(len(lines), 10)
        key.text(0.04, height, f"{number}", color=colour, weight="bold", ha="right", va="center")
        key.text(0.08, height, text, va="center")
    _save(figure, path)
