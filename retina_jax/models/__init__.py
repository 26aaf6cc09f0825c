"""The network: ResNet, FPN and heads in Flax Linen."""
