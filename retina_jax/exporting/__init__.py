"""Exports a trained detector to files that run without this package: StableHLO and ONNX."""
