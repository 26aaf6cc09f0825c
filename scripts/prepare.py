"""Run ``retina-jax prepare``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "prepare", *sys.argv[1:]]))
