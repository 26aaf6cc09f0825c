"""A trained run as files that run without this package: StableHLO and ONNX, with a model card."""
