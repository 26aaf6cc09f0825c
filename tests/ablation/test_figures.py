"""Figures: what they show, in numbers."""

import numpy as np

from retina_jax.ablation.figures import cumulative_share, draw_losses


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
