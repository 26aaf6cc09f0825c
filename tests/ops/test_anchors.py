"""Anchors: arithmetic by hand, then three other systems' own, exactly."""

import numpy as np
import pytest

from retina_jax.errors import UserError
from retina_jax.ops import anchors

TORCHVISION = dict(order="ratio_major", rounded=True, truncate_sizes=True, stride_from="grid")


def test_base_anchors_by_hand():
    # size 32, height over width 1/2: 32 / √½ = 45.25 wide, 22.63 high
    base = anchors.base_anchors([32.0], [0.5, 1.0, 2.0], "size_major", rounded=False)
    wide, high = 32 * np.sqrt(2) / 2, 32 / np.sqrt(2) / 2
    expected = [[-wide, -high, wide, high], [-16, -16, 16, 16], [-high, -wide, high, wide]]
    np.testing.assert_allclose(base, expected, rtol=1e-6)


def test_order_says_which_runs_first():
    sizes, ratios = [10.0, 20.0], [1.0, 4.0]
    by_size = anchors.base_anchors(sizes, ratios, "size_major", rounded=False)
    by_ratio = anchors.base_anchors(sizes, ratios, "ratio_major", rounded=False)
    np.testing.assert_array_equal(by_size[:, 2] * 2, [10, 5, 20, 10])
    np.testing.assert_array_equal(by_ratio[:, 2] * 2, [10, 20, 5, 10])


def test_sizes_are_whole_where_torchvision_truncates():
    octaves = (0.0, 1 / 3, 2 / 3)
    assert anchors.level_sizes(3, 4.0, octaves, truncate=True) == (32, 40, 50)
    assert anchors.level_sizes(7, 4.0, octaves, truncate=True) == (512, 645, 812)
    exact = anchors.level_sizes(3, 4.0, octaves, truncate=False)
    np.testing.assert_allclose(exact, [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])


def test_places_run_row_by_row():
    base = np.array([[-1, -1, 1, 1]], np.float32)
    placed = anchors.grid_anchors(base, (2, 3), (8, 16), offset=0.5)
    centres = (placed[:, :2] + placed[:, 2:]) / 2
    np.testing.assert_array_equal(centres, [[8, 4], [24, 4], [40, 4], [8, 12], [24, 12], [40, 12]])


def test_pyramid_of_a_coco_input():
    levels = anchors.pyramid_anchors((800, 1344))
    grids = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    assert [len(level) for level in levels] == [9 * h * w for h, w in grids]


@pytest.mark.parametrize(
    ("system", "options"),
    [("torchvision_v1", TORCHVISION), ("torchvision_v2", TORCHVISION), ("detectron2", {})],
)
def test_anchors_equal_other_systems_exactly(golden, system, options):
    case = golden(system)
    height, width = case["batch"].shape[1:3]
    ours = np.concatenate(anchors.pyramid_anchors((height, width), **options))
    np.testing.assert_array_equal(ours, case["anchors"])


def test_unknown_order_is_named():
    with pytest.raises(UserError, match="zigzag"):
        anchors.base_anchors([8.0], [1.0], "zigzag", rounded=False)
