"""The program up to its first step, with small weights that a server here publishes by a name.

    python published_program.py NAME URL FILE SHA256 FOLDER COMMAND …

Each process writes the config and the weights that it would train with to FOLDER. Networks have one
block a stage, as with the fixture ``shallow``, and layers that the weights lack are 0: drawing them
would take most of the time.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from retina_jax import parallel
from retina_jax.config.backbones import BACKBONES
from retina_jax.interop.catalogue import BASES, CATALOGUE, Digest
from retina_jax.main import main
from retina_jax.runs import train
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.step import state_shapes

name, url, file, digits, folder = sys.argv[1:6]
BASES[CATALOGUE[name].system] = url
CATALOGUE[name] = dataclasses.replace(CATALOGUE[name], file=file, digest=Digest("sha256", digits))
BACKBONES["resnet18"] = dataclasses.replace(BACKBONES["resnet18"], blocks=(1, 1, 1, 1))


def write(loop, state, *_):
    out = Path(folder) / str(parallel.process_index())
    out.with_suffix(".json").write_text(loop._config.to_json())
    weights = state.params, state.batch_stats
    np.savez(out.with_suffix(".npz"), *map(np.asarray, jax.tree.leaves(weights)))
    sys.exit(0)


def zeros(*arguments):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_shapes(*arguments))


TrainingLoop.run = write
train.init_state = zeros
sys.exit(main(["retina-jax", *sys.argv[6:]]))
