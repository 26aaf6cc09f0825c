"""Feature pyramid P3 to P7 (arXiv:1612.03144; P6 and P7 as in arXiv:1708.02002)."""

from functools import partial
from typing import Any

import flax.linen as nn

from retina_jax.models.layers import Conv, lecun_uniform_fan_in


def upsample_twice(x):
    """Nearest neighbour, ``[n, h, w, c]`` to ``[n, 2h, 2w, c]``."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class FPN(nn.Module):
    """Maps C3, C4 and C5 to five levels with ``channels`` channels and strides 8 to 128."""

    channels: int
    p6_from: str
    dtype: Any

    @nn.compact
    def __call__(self, stages):
        conv = partial(Conv, use_bias=True, kernel_init=lecun_uniform_fan_in, dtype=self.dtype)
        merged = None
        pyramid = []
        for level in (5, 4, 3):
            lateral = conv(self.channels, 1, name=f"lateral{level}")(stages[level - 3])
            merged = lateral if merged is None else lateral + upsample_twice(merged)
            pyramid.insert(0, conv(self.channels, 3, name=f"output{level}")(merged))
        top = stages[2] if self.p6_from == "C5" else pyramid[2]
        p6 = conv(self.channels, 3, 2, name="p6")(top)
        p7 = conv(self.channels, 3, 2, name="p7")(nn.relu(p6))
        return [*pyramid, p6, p7]
