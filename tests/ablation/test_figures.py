"""Figures: what they show, in numbers."""

import numpy as np

from retina_jax.ablation import figures
from retina_jax.ablation.figures import cumulative_share, draw_losses, draw_speed
from retina_jax.ablation.studies import Row
from retina_jax.ablation.table import Outcome


def test_cumulative_share_by_hand():
    places, shares = cumulative_share(np.array([3.0, 1.0]))
    np.testing.assert_allclose(places, [0, 0.5, 1])
    np.testing.assert_allclose(shares, [0, 0.25, 1])


def test_equal_losses_make_a_straight_line():
    places, shares = cumulative_share(np.full(1000, 0.3))
    np.testing.assert_allclose(places, shares, atol=1e-9)


def test_the_loss_figure_is_drawn(tmp_path):
    draw_losses(tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 10_000


def test_speed_is_a_line_for_each_backbone_of_mean_ap_by_milliseconds(tmp_path, monkeypatch):
    def row(backbone, milliseconds, *aps):
        outcomes = [Outcome({"AP": ap} if ap else None, "" if ap else "stopped") for ap in aps]
        name = f"{backbone}, {milliseconds} ms"
        columns = {"ms an image": milliseconds}
        return Row(name, {"model.backbone": backbone}), outcomes, columns

    drawn, own = [], figures._figure
    monkeypatch.setattr(figures, "_figure", lambda *size: drawn.append(own(*size)) or drawn[-1])
    rows = [
        row("resnet50", "40.0", 0.25, 0.35), row("resnet50", "20.5", 0.2, None),
        row("resnet101", "60.0", 0.4), row("resnet101", "90.0", None),
    ]  # fmt: skip
    draw_speed(rows, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5_000
    lines = {line.get_label(): line for line in drawn[0][1].get_lines()}
    assert lines.keys() == {"resnet50", "resnet101"}
    # by speed, over the runs that ended, in points of AP
    np.testing.assert_allclose(lines["resnet50"].get_xydata(), [[20.5, 20], [40, 30]])
    np.testing.assert_allclose(lines["resnet101"].get_xydata(), [[60, 40]])
