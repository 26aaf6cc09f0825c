"""Programs compiled for a TPU that is not there: memory, arithmetic, HBM traffic."""
