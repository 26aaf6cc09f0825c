"""Run ``retina-jax draw``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "draw", *sys.argv[1:]]))
