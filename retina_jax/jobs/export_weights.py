"""Write a run's weights under the names of torchvision or Detectron2, to be used there.

usage: retina-jax export-weights --workdir=DIR --to=torchvision --out=model.safetensors

Takes the best checkpoint by AP, or else the latest, of the network that DIR/config.json describes.
A network that the other's RetinaNet cannot express is refused by field and value. Anchors are put
in the other's order; a file under this program's own names says its order, pixels and eps beside
the arrays. The code that builds the model there (backbone, classes, eps of the norms, input of P6,
anchors, pixels) and loads the file is printed on stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path

from retina_jax.config.flags import ArgumentParser

SYSTEMS = ("torchvision", "detectron2", "retina_jax")


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax export-weights", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument(
        "--to", choices=SYSTEMS, required=True,
        help="whose names; retina_jax: this program's own, for every network",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True,
        help="file to write: .safetensors, .pth (needs torch) or .pkl (Detectron2's own form)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    from retina_jax.runs.weights import export_run

    out = options.out.expanduser()
    count, lines = export_run(options.workdir, options.to, out)
    print(f"{count} arrays in {out}; load them with", file=sys.stderr)
    print("\n".join(lines))
    return 0
