"""Box losses: by hand, relations, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.config.fields import BOX_LOSSES
from retina_jax.ops import box_losses
from retina_jax.ops.box_losses import ciou_loss, diou_loss, giou_loss, smooth_l1

OF_BOXES = {
    name: getattr(box_losses, function)
    for name, (function, compared) in BOX_LOSSES.items()
    if compared == "boxes"
}


def box(x1, y1, x2, y2):
    return jnp.array([[x1, y1, x2, y2]], jnp.float32)


def test_smooth_l1_meets_at_beta_and_is_l1_at_0():
    x = jnp.array([-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 2.0])
    zero = jnp.zeros_like(x)
    np.testing.assert_array_equal(smooth_l1(x, zero, 0.0), jnp.abs(x))
    np.testing.assert_allclose(
        smooth_l1(x, zero, 0.5), [1.75, 0.25, 0.01, 0, 0.01, 0.25, 1.75], rtol=1e-6
    )
    slope = jax.grad(lambda v: smooth_l1(v, jnp.zeros(()), 0.5))
    np.testing.assert_allclose(slope(jnp.array(0.4999)), slope(jnp.array(0.5001)), atol=1e-3)


def test_by_hand():
    # side by side, 2 apart: IoU 0, hull 6 × 2 of which 4 is empty, centres 4 apart, diagonal² 40
    a, b = box(0, 0, 2, 2), box(4, 0, 6, 2)
    np.testing.assert_allclose(giou_loss(a, b), 1 + 4 / 12, rtol=1e-6)
    np.testing.assert_allclose(diou_loss(a, b), 1 + 16 / 40, rtol=1e-6)
    np.testing.assert_allclose(ciou_loss(a, b), 1 + 16 / 40, rtol=1e-6)  # of the same aspect
    # 4 × 2 in 4 × 4, centred alike: IoU 1/2, no empty hull; v = 4/π² (π/4 - atan 2)²
    a, b = box(0, 1, 4, 3), box(0, 0, 4, 4)
    v = 4 / np.pi**2 * (np.pi / 4 - np.arctan(2)) ** 2
    np.testing.assert_allclose(giou_loss(a, b), 0.5, rtol=1e-6)
    np.testing.assert_allclose(diou_loss(a, b), 0.5, rtol=1e-6)
    np.testing.assert_allclose(ciou_loss(a, b), 0.5 + v * v / (0.5 + v), rtol=1e-5)


@pytest.mark.parametrize("name", OF_BOXES)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_for_the_box_itself_and_unmoved_by_shift_and_scale(name, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (2, 6, 2))
    a, b = np.concatenate([corner, corner + rng.uniform(2, 40, (2, 6, 2))], -1).astype(np.float32)
    loss = OF_BOXES[name]
    np.testing.assert_allclose(loss(a, a), 0, atol=1e-5)
    np.testing.assert_allclose(loss(a, b), loss(2 * a + 16, 2 * b + 16), atol=1e-4)
    assert (loss(a, b) >= 0).all()
    assert (giou_loss(a, b) <= 2).all()


@pytest.mark.parametrize("name", OF_BOXES)
def test_boxes_without_area_keep_finite_gradients(name):
    for a in (box(3, 3, 3, 3), box(0, 0, 1e5, 1e5), box(5, 5, 5, 9)):
        for b in (box(3, 3, 3, 3), box(0, 0, 8, 8)):
            loss, gradient = jax.value_and_grad(lambda x, y=b: OF_BOXES[name](x, y).sum())(a)
            assert jnp.isfinite(loss)
            assert jnp.isfinite(gradient).all()
