"""Detects objects in any images with a trained network, without its data set."""
