"""RetinaNet in JAX: train, evaluate and ship (arXiv:1708.02002)."""

from retina_jax.version import __version__

__all__ = ["__version__"]
