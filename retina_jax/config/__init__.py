"""Config fields, their values, and the flags that set them."""

from retina_jax.config.backbones import BACKBONES
from retina_jax.config.fields import CLASSIFICATION_LOSSES, default_config
from retina_jax.config.notices import notices
from retina_jax.config.values import fields_set, leaves, resolve, validate

__all__ = [
    "BACKBONES",
    "CLASSIFICATION_LOSSES",
    "default_config",
    "fields_set",
    "leaves",
    "notices",
    "resolve",
    "validate",
]
