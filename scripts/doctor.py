"""Run ``retina-jax doctor``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "doctor", *sys.argv[1:]]))
