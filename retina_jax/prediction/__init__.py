"""Detection in any pictures with a trained network, without its data set."""
