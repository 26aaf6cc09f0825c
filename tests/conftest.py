"""Eight virtual devices, shapes checked at run time, and small data sets that tests share."""

import os
import sys
from pathlib import Path

# before JAX is imported
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

from jaxtyping import install_import_hook

PURE = ("boxes", "anchors", "matching", "targets", "losses", "postprocess")
install_import_hook([f"retina_jax.{name}" for name in PURE], "beartype.beartype")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from rich.console import Console  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# the first example of a jitted property compiles; speed is the benchmarks' business
hypothesis.settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def golden():
    """Reads a case of another system's RetinaNet; skips only where the folder is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared/golden")
    return lambda system: np.load(SHARED / "golden" / system / "case.npz")


@pytest.fixture(scope="session")
def bccd():
    """The folder of real blood-cell images; skips only where it is absent."""
    folder = SHARED / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/bccd")
    return folder


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A data folder with ``shapes``, cut to 24 training and 10 validation pictures."""
    from retina_jax.data import shapes

    folder = tmp_path_factory.mktemp("data")
    shapes.build(folder, {"train": 24, "validation": 10})
    return folder


@pytest.fixture
def tiny_config(shapes_dir):
    """The shapes experiment cut to seconds: a quarter of the width, four images a step."""
    from experiments.shapes import get_config

    config = get_config()
    config.data.dir = str(shapes_dir)
    config.model.width = 8
    config.model.fpn_channels = config.model.head_channels = 16
    config.model.head_convs = 1
    config.train.batch_size = config.eval.batch_size = 8
    config.train.steps = 4
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.eval.every = 0
    config.eval.pictures = 2
    config.optimizer.warmup_steps = 0
    return config


@pytest.fixture
def quiet():
    return Console(file=sys.stderr, soft_wrap=True, highlight=False)
