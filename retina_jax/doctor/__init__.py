"""Checks a data set for problems, and its anchors for recall, before training."""
