"""Run ``retina-jax export-weights``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "export-weights", *sys.argv[1:]]))
