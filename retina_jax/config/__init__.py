"""Config fields, their values, and the flags that set them."""

from retina_jax.config.backbones import BACKBONES
from retina_jax.config.fields import CLASSIFICATION_LOSSES, default_config
from retina_jax.config.values import leaves, notices, resolve, validate

__all__ = [
    "BACKBONES",
    "CLASSIFICATION_LOSSES",
    "default_config",
    "leaves",
    "notices",
    "resolve",
    "validate",
]
