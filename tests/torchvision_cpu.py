"""torchvision for tests."""

import pytest

from retina_jax.benchmarks import torchvision_cpu


def import_torchvision():
    """The torchvision package; skips the test only where torch or torchvision is not installed."""
    try:
        return torchvision_cpu.import_torchvision()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
