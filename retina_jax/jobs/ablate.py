"""Run the paper's ablation studies on an experiment; write tables and figures.

usage: retina-jax ablate --config=experiments/shapes.py --study=prior,alpha,focal,ohem
           --out=runs/ablation [--seeds=3] [--together] [--only=PATTERN]
           [--config.path.to.field=value ...]

Studies: prior, alpha (Table 1a of arXiv:1708.02002), focal (1b), anchors (1c), ohem (1d), speed
(1e), boxes (one box for all classes or one per class), losses (five classification losses), modern
(RetinaNet, then one anchor, ATSS, GIoU, group norm, QFL, DFL and EMA, one after the other, with the
time and memory of a training step). Each row of a table is one setting of the config
fields, trained once per seed in OUT/runs/ROW/seedN; rows with the same setting share their runs.
Run the same command to resume; using OUT again with other flags is an error. The command also
writes tables.md, STUDY.csv and figures to OUT: loss as a function of p_t, cumulative loss, AP as a
function of speed, and AP as a function of the time of a step (modern).

With --together, the seeds of a row are trained as one program (train --seeds), if it fits into
memory. They see the same batches, so the spread over seeds is that of the initial weights alone.
The column "ms per step" is then the time of one step of all seeds, except in modern.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from retina_jax.config.flags import Flag, Parsed, parse
from retina_jax.errors import check_local
from retina_jax.placement import check_alone

FLAGS = (
    Flag("study", "studies to run, separated by commas", [], example="prior,focal"),
    Flag("out", "folder for runs, tables and figures", example="runs/ablation"),
    Flag("seeds", "number of runs per row, with seeds 0, 1, …", 3, least=1),
    Flag("together", "train the seeds of a row as one program, on the same batches", False),
    Flag("only", "regular expression that selects rows by name, for example 'prior|γ [12]'", ""),
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def run_program(
    parsed: Parsed, words: Sequence[str], fields: dict[str, object]
) -> subprocess.CompletedProcess:
    """Runs a command of this program with the user's config and flags, overridden by ``fields``."""
    command = [sys.executable, "-m", "retina_jax.main", *words, f"--config={parsed.config_file}"]
    for name, value in {**parsed.overrides, **fields}.items():
        command.append(f"--config.{name}={value}")
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, text=True, capture_output=True)


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS)
    if parsed is None:
        return 0
    from retina_jax.ablation.runner import ablate
    from retina_jax.progress import Reporter
    from retina_jax.runs.fitting import fitted_to_data

    flags, report = parsed.flags, Reporter.on_stderr()
    check_alone("ablate")
    check_local(flags.out, "--out")
    out = Path(flags.out).expanduser().absolute()

    fit = fitted_to_data(parsed.config, report)
    fit.say(report)
    # every row has the values of the config, unless it sets them
    parsed = dataclasses.replace(parsed, overrides={**fit.fields, **parsed.overrides})

    def program(words: Sequence[str], fields: dict[str, object]) -> subprocess.CompletedProcess:
        return run_program(parsed, words, fields)

    tables = ablate(
        fit.config, flags.study, out, flags.seeds, program, flags.only, report, flags.together
    )
    report.say(tables)
    report.say(f"results: {out} (tables.md, CSV, figures, runs)")
    return 0
