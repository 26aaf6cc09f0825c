"""Draw ground truth next to the detections of an evaluation in a workdir.

usage: retina-jax draw --workdir=DIR [--step=STEP] [--count=12] [--score=0.4] [--out=FILE]
"""

from __future__ import annotations

from retina_jax.config.flags import ArgumentParser
from retina_jax.errors import UserError
from retina_jax.files import open_path


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax draw", description=__doc__)
    parser.add_argument("workdir", nargs="?", metavar="WORKDIR", help="folder of the run")
    parser.add_argument(
        "--workdir", dest="named", metavar="WORKDIR", help="same as WORKDIR, as a flag"
    )
    parser.add_argument("--step", type=int, help="evaluated step to draw (default: the latest)")
    parser.add_argument(
        "--count", type=int, default=12, help="number of images (default: %(default)s)"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.4,
        help="smallest score of the detections to draw (default: %(default)s)",
    )
    parser.add_argument("--out", help="PNG file to write (default: eval/STEP/detections.png)")
    options = parser.parse_args(argv)
    workdir = options.named or options.workdir
    if workdir is None:
        raise UserError("--workdir is missing; set --workdir=runs/first")
    from retina_jax.runs.draw import draw

    out = open_path(options.out, "--out") if options.out else None
    print(draw(open_path(workdir, "--workdir"), options.step, options.count, options.score, out))
    return 0
