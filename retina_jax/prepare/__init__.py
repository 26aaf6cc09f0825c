"""Convert annotations and images to a data set for training."""
