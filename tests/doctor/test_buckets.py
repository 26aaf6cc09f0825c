"""Buckets that show images smaller than the config asks for are reported."""

import dataclasses

import numpy as np
import pytest

from retina_jax.config import default_config, resolve
from retina_jax.doctor.buckets import check_shrinking


@dataclasses.dataclass
class Sizes:
    sizes: np.ndarray
    name: str = "train"

    def __len__(self):
        return len(self.sizes)


SPLIT = Sizes(np.array([(480, 640)] * 3 + [(640, 480), (1000, 1000), (200, 2000)]))


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"short_side": 1024, "long_side": 1333, "buckets": ((256, 320), (320, 256))}, "24 %"),
        ({"train_short_sides": (640, 1024), "buckets": ((800, 1344), (1344, 800))}, "78.1 %"),
    ],
)
def test_a_bucket_that_is_too_small_is_named_with_the_fix(fields, shown):
    config = default_config()
    config.data.update(fields)
    (finding,) = check_shrinking(SPLIT, config)
    assert finding.level == "warning"
    field = "train_short_sides" if "train_short_sides" in fields else "short_side"
    assert f"data.{field}={fields[field]}" in finding.message
    assert f"requires, down to {shown};" in finding.message
    assert "set --config.data.buckets='()'" in finding.message
    config.data.buckets = ()
    assert check_shrinking(SPLIT, config) == []


def test_only_the_images_that_shrink_are_counted():
    config = default_config()
    config.data.update({"short_side": 480, "long_side": 640, "buckets": ((480, 640),)})
    (finding,) = check_shrinking(SPLIT, config)
    # the portrait one: 480 of 640 pixels high; landscape ones and the square one fit
    assert "scales 1 of 6 images smaller" in finding.message
    assert "requires, down to 75 %;" in finding.message


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (256, 320), (640, 640), (601, 1000)])
def test_buckets_that_follow_shrink_nothing(short, long):
    config = default_config()
    config.data.short_side, config.data.long_side = short, long
    assert check_shrinking(SPLIT, config) == []
    assert all(side % 32 == 0 for bucket in resolve(config).buckets for side in bucket)
