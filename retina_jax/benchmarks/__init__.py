"""What `scripts/benchmark.py` times: steps, the input, its memory, padding."""
