"""Share of padding by batching scheme, for image sizes distributed like COCO's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np

from retina_jax.config import resolve
from retina_jax.data.plan import Placements, padding_share, place_all

IMAGES = 20_000
_FAMILIES = (
    # share, height and width; a range means a uniformly drawn side
    (0.245, (480, 640)),
    (0.30, ((424, 429), 640)),
    (0.05, ((340, 384), 640)),
    (0.04, ((384, 424), 640)),
    (0.04, ((429, 480), 640)),
    (0.02, ((480, 640), 640)),
    (0.05, (333, 500)),
    (0.035, (375, 500)),
    (0.02, (640, 640)),
    (0.075, (640, 480)),
    (0.065, (640, (427, 429))),
    (0.045, (640, (360, 424))),
    (0.015, (640, (480, 640))),
)


def coco_sizes(count: int = IMAGES) -> np.ndarray:
    """``[count, 2]`` heights and widths, simulated to resemble COCO's.

    Most have a long side of 640, three quarters are landscape, and 3:2 and 4:3 are most common. Two
    published statistics of the training set: 90 % have an aspect ratio (height / width) of 0.6 to
    1.5, and 90 % have 167,500 to 355,840 pixels. The simulation gives 90 % and 91 %.
    """
    rng = np.random.default_rng(0)
    shares = np.array([share for share, _ in _FAMILIES])
    sizes = np.empty((count, 2), np.int64)
    for i, family in enumerate(rng.choice(len(shares), count, p=shares / shares.sum())):
        for axis, side in enumerate(_FAMILIES[family][1]):
            sizes[i, axis] = rng.integers(*side) if isinstance(side, tuple) else side
    return sizes


def _per_batch(sizes: np.ndarray, groups: np.ndarray, batch: int, rng) -> tuple[float, int]:
    """Share of padding if each batch is padded to its largest image, and the number of shapes."""
    paid = shown = 0
    shapes = set()
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        for start in range(0, len(rows) - batch + 1, batch):
            members = sizes[rows[start : start + batch]]
            shape = tuple(-(-members.max(axis=0) // 32) * 32)
            shapes.add(shape)
            paid += batch * int(np.prod(shape))
            shown += int(members.prod(axis=1).sum())
    return 1 - shown / paid, len(shapes)


def compare_padding(config: ml_collections.ConfigDict) -> Iterator[dict]:
    """Compares the experiment's buckets, other buckets, one square, and per-batch padding."""
    data = config.data
    rule = (data.short_side, data.long_side, data.rounding)
    originals = coco_sizes()

    def placed(buckets: Sequence[tuple[int, int]]) -> Placements:
        return place_all(originals, buckets, *rule)

    own = resolve(config).buckets
    long, short = (max(max(b) for b in own), min(min(b) for b in own))
    middle = -(-int(short * 1.36) // 32) * 32  # 4:3 at the full short side
    schemes = {
        "the experiment's buckets": own,
        "one square": ((long, long),),
        "four buckets: 4:3 and longer": (
            (short, middle), (short, long), (middle, short), (long, short)
        ),
    }  # fmt: skip
    for name, buckets in schemes.items():
        waste = padding_share(placed(buckets), buckets)
        yield {"scheme": name, "buckets": buckets, "waste": round(waste, 4),
               "programs": len(buckets)}  # fmt: skip
    free = placed(((long, long),))
    sizes = np.stack([free.height, free.width], axis=1)
    rng = np.random.default_rng(1)
    landscape = (sizes[:, 1] >= sizes[:, 0]).astype(int)
    for batch in sorted({2, config.train.batch_size}):
        for name, groups in (("", np.zeros(len(sizes))), (", by aspect", landscape)):
            waste, shapes = _per_batch(sizes, groups, batch, rng)
            yield {
                "scheme": f"each batch of {batch} to its largest{name}",
                "waste": round(waste, 4),
                "programs": shapes,
            }
