"""Benchmarks: steps, the input pipeline, its memory, padding."""
