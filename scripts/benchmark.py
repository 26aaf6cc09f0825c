"""Run ``retina-jax benchmark``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "benchmark", *sys.argv[1:]]))
