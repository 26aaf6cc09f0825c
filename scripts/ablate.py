"""Run ``retina-jax ablate``."""

import sys

from retina_jax.main import main

if __name__ == "__main__":
    sys.exit(main(["retina-jax", "ablate", *sys.argv[1:]]))
