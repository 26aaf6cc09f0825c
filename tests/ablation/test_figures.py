"""Figures: what they show, in numbers."""

import numpy as np
import pytest

from retina_jax.ablation import figures
from retina_jax.ablation.figures import (
    cumulative_share,
    draw_cost,
    draw_cumulative_loss,
    draw_losses,
    draw_speed,
)
from retina_jax.ablation.logits import count_logits
from retina_jax.ablation.studies import Row
from retina_jax.ablation.table import Outcome


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the figures that are made, in order."""
    made, own = [], figures._figure

    def figure(*size):
        whole, axes = own(*size)
        made.extend(np.ravel(axes))
        return whole, axes

    monkeypatch.setattr(figures, "_figure", figure)
    return made


def lines_of(axis):
    return {line.get_label(): line.get_xydata() for line in axis.get_lines()}


def test_cumulative_share_by_hand():
    places, shares = cumulative_share(np.array([3.0, 1.0]))
    np.testing.assert_allclose(places, [0, 0.5, 1])
    np.testing.assert_allclose(shares, [0, 0.25, 1])


def test_equal_losses_make_a_straight_line():
    places, shares = cumulative_share(np.full(1000, 0.3))
    np.testing.assert_allclose(places, shares, atol=1e-9)


def test_the_loss_figure_is_drawn(tmp_path, drawn):
    draw_losses(tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    by_p, by_x = map(lines_of, drawn)
    assert by_p.keys() == {"γ = 0 (cross entropy)", *(f"γ = {g}" for g in ("0.5", 1, 2, 5))}
    assert by_x.keys() == {"CE", "FL γ = 2", "FL* γ = 2, β = 1", "FL* γ = 4, β = 0"}
    for name, gamma in (("γ = 0 (cross entropy)", 0), ("γ = 2", 2), ("γ = 5", 5)):
        p, loss = by_p[name].T
        np.testing.assert_allclose(loss, -((1 - p) ** gamma) * np.log(p), rtol=1e-3, atol=1e-6)
    x, loss = by_x["FL* γ = 2, β = 1"].T  # equation 5 of appendix A: -log(σ(γ x + β)) / γ
    np.testing.assert_allclose(loss, np.log1p(np.exp(-(2 * x + 1))) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("shallow")
def test_the_logits_of_a_runs_anchors(finished_run, tmp_path, drawn):
    """Every logit of the validation split is counted but those of ignored anchors."""
    counted = count_logits(finished_run)
    images, classes = 10, 5
    cells = sum(side**2 for side in (16, 8, 4, 2, 1))
    every = images * cells * 9 * classes
    total = counted.foreground.sum() + counted.background.sum()
    assert 0.9 * every < total <= every
    assert 0 < counted.foreground.sum() < 0.05 * total
    draw_cumulative_loss(finished_run, tmp_path / "cumulative.png")
    assert (tmp_path / "cumulative.png").exists()
    for axis, counts in zip(drawn, (counted.foreground, counted.background), strict=True):
        for name, gamma in (("γ = 0", 0.0), ("γ = 2", 2.0)):
            expected = np.stack(cumulative_share(counted.losses(gamma), counts), axis=1)
            np.testing.assert_allclose(lines_of(axis)[name], expected, rtol=1e-5)


def test_speed_is_a_line_for_each_backbone_of_mean_ap_by_milliseconds(tmp_path, drawn):
    def row(backbone, milliseconds, *aps):
        outcomes = [Outcome({"AP": ap} if ap else None, "" if ap else "stopped") for ap in aps]
        name = f"{backbone}, {milliseconds} ms"
        columns = {"ms per image": milliseconds}
        return Row(name, {"model.backbone": backbone}), outcomes, columns

    rows = [
        row("resnet50", "40.0", 0.25, 0.35), row("resnet50", "20.5", 0.2, None),
        row("resnet101", "60.0", 0.4), row("resnet101", "90.0", None),
    ]  # fmt: skip
    draw_speed(rows, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").exists()
    lines = lines_of(drawn[0])
    assert lines.keys() == {"resnet50", "resnet101"}
    # by speed, over the runs that ended, in points of AP
    np.testing.assert_allclose(lines["resnet50"], [[20.5, 20], [40, 30]])
    np.testing.assert_allclose(lines["resnet101"], [[60, 40]])


def test_cost_is_a_numbered_point_for_each_row_with_its_spread(tmp_path, drawn):
    def row(name, milliseconds, *aps, variant_of=""):
        outcomes = [Outcome({"AP": ap} if ap else None, "" if ap else "stopped") for ap in aps]
        return Row(name, {}, variant_of=variant_of), outcomes, {"ms per step": milliseconds}

    rows = [
        row("first", "10.0", 0.2, 0.4), row("second", "8.0", None), row("third", "7.0", 0.5),
        row("beside", "9.0", 0.45, variant_of="third"),
    ]  # fmt: skip
    draw_cost(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").exists()
    points = {bars.get_label(): bars for bars in drawn[0].containers}
    assert points.keys() == {"first", "third", "beside"}
    np.testing.assert_allclose(points["first"].lines[0].get_xydata(), [[10, 30]])
    (bar,) = points["first"].lines[2]  # ± the standard deviation of two seeds
    np.testing.assert_allclose(bar.get_segments()[0], [[10, 30 - 14.142], [10, 30 + 14.142]], 1e-3)
    arrows = [text for text in drawn[0].texts if text.arrow_patch]
    assert [(a.xyann, a.xy) for a in arrows] == [((10, 30), (7, 50))], "past the row without AP"
    (dotted,) = (line for line in drawn[0].get_lines() if line.get_linestyle() == ":")
    np.testing.assert_allclose(dotted.get_xydata(), [[7, 50], [9, 45]])
    key = [text.get_text() for text in drawn[1].texts]
    assert key[1::2] == ["first: 30.0 ± 14.1", "second: no AP", "third: 50.0", "beside: 45.0"]
