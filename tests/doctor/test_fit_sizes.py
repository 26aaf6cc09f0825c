"""Image sides and buckets for the shapes of a data set: by hand, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.config import default_config, validate
from retina_jax.config.values import changed_config
from retina_jax.data.plan import padding_share, place_all
from retina_jax.doctor.fit_sizes import MOST_BUCKETS, Sizes, fit_sizes

BUDGET = 81_920  # 256 × 320


def many(*kinds):
    return np.concatenate([np.tile(size, (count, 1)) for size, count in kinds])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # 480 × 640 halved is 240 × 320
        (many(((480, 640), 200)), Sizes(240, 320, ((256, 320),))),
        (many(((480, 640), 60), ((640, 480), 40)), Sizes(240, 320, ((256, 320), (320, 256)))),
        # 288² is beyond the budget
        (many(((500, 500), 10)), Sizes(256, 256, ((256, 256),))),
        (many(((500, 500), 1)), Sizes(256, 256, ((256, 256),))),
        # 2 % of panoramas do not widen the bucket of the others, nor get their own
        (many(((500, 500), 98), ((100, 1000), 2)), Sizes(256, 256, ((256, 256),))),
        # 96 × 832 pixels are the largest of 10 : 1: 83.2 × 832
        (many(((100, 1000), 30)), Sizes(84, 832, ((96, 832),))),
        # twice 28 is 56; pixels of a bucket up to the next 32 cost nothing more
        (many(((28, 28), 50)), Sizes(64, 64, ((64, 64),))),
    ],
)  # fmt: skip
def test_by_hand(sizes, expected):
    assert fit_sizes(sizes, BUDGET) == expected


def test_a_tenth_of_large_images_is_shown_as_large_as_the_budget_allows():
    mixed = many(((60, 80), 80), ((960, 1280), 20))
    assert fit_sizes(mixed, BUDGET).short_side == 240
    assert fit_sizes(mixed[:80], BUDGET).short_side < 160


def test_a_bucket_serves_a_batch():
    sizes = many(((480, 640), 10), ((640, 480), 7))
    assert len(fit_sizes(sizes, BUDGET, least=7).buckets) == 2
    assert len(fit_sizes(sizes, BUDGET, least=8).buckets) == 1


def test_values_that_are_set_are_kept_and_the_others_follow():
    sizes = many(((480, 640), 50))
    assert fit_sizes(sizes, BUDGET, short_side=400) == Sizes(400, 534, ((416, 544),))
    assert fit_sizes(sizes, BUDGET, long_side=160) == Sizes(120, 160, ((128, 160),))
    given_bucket = ((128, 160),)
    assert fit_sizes(sizes, BUDGET, buckets=given_bucket) == Sizes(120, 160, given_bucket)


def test_turned_images_have_a_bucket():
    sizes = many(((480, 640), 50))
    assert fit_sizes(sizes, BUDGET, turned=True).buckets == ((256, 320), (320, 256))


shapes = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=40)


@given(shapes, st.integers(1024, 2_000_000), st.integers(1, 10), st.randoms())
def test_every_image_is_placed_within_the_budget_whatever_the_order(sizes, budget, least, order):
    chosen = fit_sizes(np.array(sizes), budget, least)
    fields = {
        "data.short_side": chosen.short_side,
        "data.long_side": chosen.long_side,
        "data.buckets": chosen.buckets,
    }
    validate(changed_config(default_config(), fields))
    assert len(chosen.buckets) <= MOST_BUCKETS
    assert all(height * width <= budget for height, width in chosen.buckets)
    placed = place_all(np.array(sizes), chosen.buckets, chosen.short_side, chosen.long_side)
    images = np.bincount(placed.bucket, minlength=len(chosen.buckets))
    assert images.sum() == len(sizes)
    if len(chosen.buckets) > 1:
        assert images.min() >= min(least, 1)
    assert 0 <= padding_share(placed, chosen.buckets) < 1
    order.shuffle(sizes)
    assert fit_sizes(np.array(sizes), budget, least) == chosen
