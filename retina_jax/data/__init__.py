"""Data sets on disk (TFDS ArrayRecord), the plan of batches, transforms and the loader."""
