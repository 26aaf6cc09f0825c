"""Modules whose shapes are checked on every call; `test_shapes_are_checked.py` sees each raise."""

PURE = (
    *(f"retina_jax.ops.{name}" for name in (
        "anchors", "boxes", "box_losses", "losses", "matching", "postprocess", "targets")),
    "retina_jax.training.objective",
)  # fmt: skip
