"""RetinaNet in JAX: train, evaluate and ship (arXiv:1708.02002)."""

import importlib
from typing import TYPE_CHECKING, Any

from retina_jax.version import __version__

if TYPE_CHECKING:
    from retina_jax.detector import Detector

__all__ = ["Detector", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `Detector` when it is first used, so that importing the package needs no JAX."""
    if name == "Detector":
        return importlib.import_module("retina_jax.detector").Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
