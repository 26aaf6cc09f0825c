"""The training step, its optimiser, and what a run writes as it goes."""
