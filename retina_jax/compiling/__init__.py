"""Compiles programs for a TPU without having one: memory, arithmetic, HBM traffic."""
