"""Draw ground truth beside detections from what an evaluation left in a workdir.

usage: python scripts/visualize.py WORKDIR [--step STEP] [--count 12] [--score 0.4] [--out FILE]
"""

import argparse
import json
import sys
from pathlib import Path

from retina_jax.errors import UserError


def draw(options: argparse.Namespace) -> Path:
    """Draws the evaluation of a step (the last by default) on the data set of the run."""
    from retina_jax.data.sources import open_data_set, open_split
    from retina_jax.visualize import draw_split

    evaluations = sorted(
        (
            p.parent
            for p in options.workdir.glob("eval/*/detections.json")
            if p.parent.name.isdigit()
        ),
        key=lambda folder: int(folder.name),
    )
    if options.step is not None:
        evaluations = [e for e in evaluations if int(e.name) == options.step]
    if options.count < 1:
        raise UserError(f"--count {options.count} must be 1 or more")
    if not evaluations or not (options.workdir / "config.json").exists():
        raise UserError(
            f"{options.workdir} holds no evaluation"
            + (f" of step {options.step}" if options.step is not None else "")
            + "; run python -m retina_jax.main --mode=evaluate there first"
        )
    data = json.loads((options.workdir / "config.json").read_text())["data"]
    split = open_split(open_data_set(data["dir"], data["name"]), data["eval_split"])
    detections = json.loads((evaluations[-1] / "detections.json").read_text())
    path = options.out or evaluations[-1] / "detections.png"
    draw_split(split, detections, path, options.count, options.score)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="--workdir of the run")
    parser.add_argument("--step", type=int, help="step that was evaluated (the last)")
    parser.add_argument("--count", type=int, default=12, help="images (%(default)s)")
    parser.add_argument("--score", type=float, default=0.4, help="least score (%(default)s)")
    parser.add_argument("--out", type=Path, help="PNG to write (eval/STEP/detections.png)")
    options = parser.parse_args()
    try:
        print(draw(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
