"""Write a run's weights in the format of torchvision or Detectron2.

usage: retina-jax export-weights --workdir=DIR --to=torchvision --out=model.safetensors

Exports the best checkpoint by AP, or the latest if none was evaluated. If the RetinaNet of the
target system cannot represent the network in DIR/config.json, the error names the config field and
its value. Anchors are reordered for the target system. With --to=retina_jax, the file also stores
the anchor order, pixel normalisation and norm eps. The command prints Python code that builds
the model in the target system (backbone, classes, norm eps, input of P6, anchors, pixel
normalisation) and loads the file.
"""

from __future__ import annotations

import sys

from retina_jax.config.flags import ArgumentParser
from retina_jax.files import open_path

SYSTEMS = ("torchvision", "detectron2", "retina_jax")


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax export-weights", description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--to", choices=SYSTEMS, required=True,
        help="target system; retina_jax: this program, which can represent every network",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True,
        help="file to write: .safetensors, .pth (needs torch) or .pkl (Detectron2's format)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    from retina_jax.runs.weights import export_run

    out = open_path(options.out, "--out")
    count, lines = export_run(options.workdir, options.to, out)
    print(f"wrote {count} arrays to {out}; load them with:", file=sys.stderr)
    print("\n".join(lines))
    return 0
