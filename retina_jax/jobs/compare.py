"""Compare evaluations of runs on the same images.

usage: retina-jax compare RUN_A RUN_B [RUN ...] [--samples=1000] [--seed=0] [--out=DIR]

RUN is a workdir, whose last evaluation is taken, or the folder of one (RUN/eval/STEP). Every run is
compared with the first: the COCO metrics and AP by class, each with an interval from resampled
images; the images whose error changed most; the config fields that differ. With --out, also writes
DIR/comparison.html, one page with pictures.
"""

from __future__ import annotations

from pathlib import Path

from retina_jax.config.flags import ArgumentParser


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir or evaluation")
    parser.add_argument(
        "--samples", type=int, default=1000,
        help="number of times that the images are resampled (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the resampling (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder for comparison.html")
    options = parser.parse_args(argv)
    from rich.console import Console

    from retina_jax.progress import Reporter
    from retina_jax.runs.compare import compare
    from retina_jax.runs.compare_page import text_tables, write_page

    report = Reporter.on_stderr()
    total = len(options.runs) * max(options.samples, 1)
    with report.progress("resampling", total) as bar:
        compared = compare(
            options.runs, options.samples, options.seed, lambda samples: bar.advance(by=samples)
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file does not wrap
    for table in text_tables(compared):
        console.print(table)
    if options.out:
        page = write_page(compared, options.out.expanduser())
        console.print(f"page: {page}", soft_wrap=True, markup=False)
    return 0
