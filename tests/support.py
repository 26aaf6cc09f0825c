"""What conftest and tests share: the modules whose shapes are checked, and quick compilation."""

import contextlib
import os

PURE = (
    *(f"retina_jax.ops.{name}" for name in (
        "anchors", "boxes", "box_losses", "losses", "matching", "postprocess", "targets")),
    "retina_jax.training.objective",
)  # fmt: skip
"""Shapes are checked on every call; `test_shapes_are_checked.py` sees each raise."""


@contextlib.contextmanager
def compiled_quickly():
    """For initial weights in ``optimized`` tests: drawing them would take longest to compile."""
    import jax

    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
