"""What all backbones share: their stages, and which of them are frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import lax

STAGES = (2, 3, 4, 5)

Norm = Callable[[str, int], nn.Module]


def is_frozen(names: Sequence[str], frozen_stages: int) -> bool:
    """Whether a parameter, given by its path, belongs to a frozen stage."""
    if names[0] != "backbone" or not frozen_stages:
        return False
    module = names[1]
    return module.startswith("stem_") or any(
        module.startswith(f"stage{stage}_") for stage in STAGES if stage <= frozen_stages
    )


class Backbone(nn.Module):
    """Maps ``[n, h, w, 3]`` to the stages C3, C4 and C5, with strides 8, 16 and 32.

    The first ``frozen_stages`` (1: the stem, 2: also C2, …) get no gradient and use
    ``frozen_norm``, which replaces batch norm by its stored statistics. ``remat`` recomputes each
    block in the backward pass instead of storing its activations: less memory, more time. Modules
    are named ``stem_…`` and ``stage2_…`` to ``stage5_…``, which `is_frozen` relies on.
    """

    backbone: str
    """A name in `config.backbones.BACKBONES`."""
    width: int
    norm: Norm
    frozen_norm: Norm
    dtype: Any
    stride_in_1x1: bool = False
    frozen_stages: int = 0
    remat: bool = False

    def _norm_of(self, stage: int) -> Norm:
        return self.frozen_norm if stage <= self.frozen_stages else self.norm

    def _stop_if_frozen(self, stage: int, x: jax.Array) -> jax.Array:
        return lax.stop_gradient(x) if stage <= self.frozen_stages else x

    def _rematerialised(self, block: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(block) if self.remat else block
