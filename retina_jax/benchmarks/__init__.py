"""Timings of a run's parts: steps, the input, its memory, padding."""
