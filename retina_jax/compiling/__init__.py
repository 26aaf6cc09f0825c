"""Compiles programs for a TPU, without a TPU: memory, arithmetic, HBM traffic."""
