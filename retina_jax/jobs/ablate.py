"""Run the paper's studies as flag overrides on an experiment: tables and figures.

usage: retina-jax ablate --config=experiments/shapes.py --study=prior,alpha,focal,ohem
           --out=runs/ablation [--seeds=3] [--only=PATTERN] [--config.path.to.field=value ...]

Studies: prior, alpha (Table 1a of arXiv:1708.02002), focal (1b), anchors (1c), ohem (1d), speed
(1e), boxes (one box for all classes against one for each), losses (all of them). Each row is a
run of the program, in OUT/runs/ROW/seedN; the same command resumes, one with other flags is
refused, and rows with the same fields share their runs. OUT gets tables.md, STUDY.csv, and the
figures: loss against p_t, cumulative loss, speed against AP.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from retina_jax.config.flags import Flag, Parsed, parse

FLAGS = (
    Flag("study", "names of studies, separated by commas", [], example="prior,focal"),
    Flag("out", "folder of the runs, tables and figures", example="runs/ablation"),
    Flag("seeds", "runs of each row", 3, least=1),
    Flag("only", "take the rows whose name this regular expression finds, as 'prior|γ [12]'", ""),
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def run_program(
    parsed: Parsed, words: Sequence[str], fields: dict[str, object]
) -> subprocess.CompletedProcess:
    """Runs a command of this program with the user's config and flags, and ``fields`` set."""
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

    flags, report = parsed.flags, Reporter.on_stderr()
    out = Path(flags.out).expanduser().absolute()

    def program(words: Sequence[str], fields: dict[str, object]) -> subprocess.CompletedProcess:
        return run_program(parsed, words, fields)

    tables = ablate(parsed.config, flags.study, out, flags.seeds, program, flags.only, report)
    report.say(tables)
    report.say(f"all of it: {out} (tables.md, CSV, figures, runs)")
    return 0
