"""The training step, its optimiser, and the files that a run writes."""
