"""Compare evaluations of runs on the same images.

usage: retina-jax compare RUN_A RUN_B [RUN ...] [--samples=1000] [--seed=0] [--out=DIR]

RUN is a workdir (its last evaluation is used) or the folder of one evaluation (RUN/eval/STEP).
Every run is compared with the first: the COCO metrics and AP by class, each with a bootstrap
confidence interval over images; the images whose error changed most; and the config fields that
differ. With --out, also writes DIR/comparison.html, one page with images.
"""

from __future__ import annotations

from retina_jax.config.flags import ArgumentParser
from retina_jax.files import open_path


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="workdir, or folder of an evaluation"
    )
    parser.add_argument(
        "--samples", type=int, default=1000,
        help="number of bootstrap samples of the images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--out", help="folder for comparison.html")
    options = parser.parse_args(argv)
    out = open_path(options.out, "--out") if options.out else None
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
    if out:
        page = write_page(compared, out)
        console.print(f"page: {page}", soft_wrap=True, markup=False)
    return 0
