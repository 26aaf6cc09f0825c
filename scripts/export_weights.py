"""Write a run's weights under the names of torchvision or Detectron2, to be used there.

usage: python scripts/export_weights.py --workdir=DIR --to=torchvision --out=model.safetensors

The best checkpoint by AP, or else the latest, of the network that DIR/config.json describes.
--to      torchvision, detectron2, or retina_jax (this program's own names, for every network)
--out     .safetensors, .pth (needs torch) or .pkl (Detectron2's own form)

What the other's RetinaNet cannot express is refused by field and value. Anchors are put in the
other's order; a file under this program's own names says its order, pixels and eps beside the
arrays. The code that builds the model there (backbone, classes, eps of the norms, input of P6,
anchors, pixels) and loads the file is printed on stdout.
"""

import argparse
import sys
from pathlib import Path

from retina_jax.errors import UserError

SYSTEMS = ("torchvision", "detectron2", "retina_jax")


def export(options: argparse.Namespace) -> list[str]:
    """Writes the file; returns the lines that load it there."""
    from retina_jax.checkpoint import weights_of
    from retina_jax.interop.export import check_expressible, export_weights, how_to_load, note_of
    from retina_jax.interop.files import write_arrays
    from retina_jax.workdir import read_config

    config = read_config(options.workdir)
    check_expressible(config, options.to)
    tree = weights_of(options.workdir)
    arrays = export_weights(tree, config, options.to)
    write_arrays(options.out, arrays, note_of(config, options.to))
    print(f"{len(arrays)} arrays in {options.out}; load them with", file=sys.stderr)
    return how_to_load(tree, config, options.to, str(options.out))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--to", choices=SYSTEMS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    options.workdir, options.out = options.workdir.expanduser(), options.out.expanduser()
    try:
        print("\n".join(export(options)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
