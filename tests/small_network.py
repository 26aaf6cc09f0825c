"""A network with RetinaNet's interface that compiles in a second, for tests of steps and runs."""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from retina_jax.config import resolve
from retina_jax.models.layers import make_norm
from retina_jax.types import Predictions


class SmallNetwork(nn.Module):
    """One convolution, one norm, and a linear layer for each output, shared across levels."""

    config: ml_collections.FrozenConfigDict
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train):
        model, resolved = self.config.model, resolve(self.config)
        norm = make_norm(
            model.norm, train, model.norm_eps, jnp.float32, self.axis_name, model.norm_momentum
        )
        x = nn.Conv(16, (8, 8), strides=8, padding="VALID", use_bias=False, name="conv")(images)
        x = nn.relu(norm("norm", 16)(x))
        places = resolved.anchors_per_place
        classes = nn.Dense(places * (self.num_classes + resolved.background_logits), name="classes")
        boxes = nn.Dense(places * resolved.box_values, name="boxes")
        centre = nn.Dense(places, name="centerness") if model.centerness else None
        logits, box_outputs, centerness = [], [], []
        for _ in range(5):
            logits.append(classes(x).reshape(len(x), -1, classes.features // places))
            box_outputs.append(boxes(x).reshape(len(x), -1, 1, resolved.box_values))
            if centre:
                centerness.append(centre(x).reshape(len(x), -1))
            x = x[:, ::2, ::2]
        return Predictions(logits, box_outputs, centerness if centre else None)


def build(config, num_classes, axis_name=None):
    """Instead of `retina_jax.models.retinanet.build`."""
    return SmallNetwork(ml_collections.FrozenConfigDict(config), num_classes, axis_name)
