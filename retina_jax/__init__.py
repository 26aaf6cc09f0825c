"""RetinaNet in JAX: train, evaluate and ship (arXiv:1708.02002)."""

__version__ = "0.1.0"
