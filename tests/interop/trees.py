"""Compare trees of arrays."""

import jax
import numpy as np


def assert_same_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
