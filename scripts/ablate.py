"""Run the paper's studies as flag overrides on an experiment: tables and figures.

usage: python scripts/ablate.py --config=experiments/shapes.py --study=prior,alpha,focal,ohem
           --out=runs/ablation [--seeds=3] [--only=PATTERN] [--config.path.to.field=value ...]

Studies: prior, alpha (Table 1a of arXiv:1708.02002), focal (1b), anchors (1c), ohem (1d), speed
(1e), boxes (one box for all classes against one for each), losses (all of them). Each row is a
run of the program, in OUT/runs/ROW/seedN; the same command goes on where it was stopped, and rows
of the same fields share their runs. --only takes the rows whose name a regular expression finds,
such as 'prior|γ [12]'. OUT gets tables.md, STUDY.csv, and the figures: loss against p_t,
cumulative loss, speed against AP.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_STUDY = flags.DEFINE_list("study", [], "Names of studies.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs, tables and figures.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each row.", lower_bound=1)
_ONLY = flags.DEFINE_string("only", "", "Rows whose name this finds alone.")
_ROOT = Path(__file__).resolve().parent.parent


def program(script: list[str], arguments: list[str], row, seed: int) -> list[str]:
    """The command line of one run: the user's own flags, then the row's."""
    own = [a for a in arguments if not a.startswith(("--study", "--out", "--seeds", "--only"))]
    fields = [f"--config.{name}={value}" for name, value in row.fields.items()]
    return [sys.executable, *script, *own, *fields, f"--config.seed={seed}"]


def run_one(arguments: list[str], row, seed: int, folder: Path, config):
    """Trains, or reads what became of it before; the outcome."""
    from retina_jax.ablation.table import Outcome, scores_of

    outcome = Outcome.read(folder)
    if outcome:
        return outcome
    folder.mkdir(parents=True, exist_ok=True)
    command = program(["-m", "retina_jax.main"], arguments, row, seed)
    command += [f"--workdir={folder}", "--config.eval.pictures=0"]
    done = subprocess.run(command, cwd=_ROOT, stderr=subprocess.PIPE, text=True)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0:
        outcome = Outcome(scores_of(folder, config.train.steps))
    elif done.returncode == 1 and last.startswith("stopped: step"):
        outcome = Outcome(None, last)
    else:
        raise UserError(f"{row.name}, seed {seed}: exit code {done.returncode}: {last}")
    outcome.write(folder)
    return outcome


def columns(study: str, arguments: list[str], row, config, folder: Path) -> dict[str, str]:
    """Further columns of a study's rows."""
    if study == "anchors":
        from retina_jax.anchors import LEVELS, feature_grid

        places = sum(rows * cols for rows, cols in (
            feature_grid(config.data.buckets[0], level) for level in LEVELS))  # fmt: skip
        return {"anchors": str(places * len(row.fields["anchors.octaves"])
                               * len(row.fields["anchors.ratios"]))}  # fmt: skip
    if study == "speed":
        kept = folder / "speed.json"
        if not kept.exists():
            command = program(["scripts/benchmark.py", "predict"], arguments, row, 0)
            done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise UserError(f"{row.name}: its speed could not be measured")
            kept.write_text(done.stdout.splitlines()[0] + "\n")
        seconds = 1 / json.loads(kept.read_text())["images_per_second"]
        return {"ms an image": f"{1000 * seconds:.1f}"}
    return {}


def ablate(config, arguments: list[str]) -> None:
    from rich.console import Console

    from retina_jax.ablation import figures, studies
    from retina_jax.ablation.table import comma_separated, markdown, table_rows
    from retina_jax.metrics import ProgressBar

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    out = Path(_OUT.value).expanduser().absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={_OUT.value}: {error.strerror}; give another folder") from None
    try:
        pattern = re.compile(_ONLY.value)
    except re.error as error:
        raise UserError(f"--only={_ONLY.value!r} is no regular expression: {error}") from None
    chosen = {}
    for name in _STUDY.value:
        rows = [r for r in studies.study(name, config).rows if pattern.search(r.name)]
        if not rows:
            raise UserError(f"--only={_ONLY.value!r} leaves no row of --study={name}")
        chosen[name] = rows
    unique = {row.slug(): row for rows in chosen.values() for row in rows}
    outcomes = {slug: [] for slug in unique}
    with ProgressBar(console, "runs", len(unique) * _SEEDS.value) as bar:
        for seed in range(_SEEDS.value):  # every row once before any a second time
            for slug, row in unique.items():
                folder = out / "runs" / slug / f"seed{seed}"
                outcome = run_one(arguments, row, seed, folder, config)
                outcomes[slug].append(outcome)
                bar.advance(f"{row.name}, seed {seed}")
                ap = f"AP {outcome.scores['AP']:.3f}" if outcome.scores else outcome.stopped
                console.print(f"{row.name}, seed {seed}: {ap}")
    tables = []
    for name, rows in chosen.items():
        filled = [
            (row, outcomes[row.slug()],
             columns(name, arguments, row, config, out / "runs" / row.slug()))
            for row in rows
        ]  # fmt: skip
        header, cells = table_rows(filled)
        tables.append(markdown(studies.study(name, config).title, header, cells))
        (out / f"{name}.csv").write_text(comma_separated(header, cells))
        if name == "speed":
            figures.draw_speed(filled, out / "speed_against_ap.png")
    (out / "tables.md").write_text("\n".join(tables))
    figures.draw_losses(out / "loss_against_pt.png")
    for slug, row in unique.items():
        if row.fields.get("loss.gamma") == 2.0 and outcomes[slug][0].scores:
            run = out / "runs" / slug / "seed0"
            figures.draw_cumulative_loss(run, out / "cumulative_loss.png")
    console.print("\n".join(tables), markup=False)
    console.print(f"all of it: {out} (tables.md, CSV, figures, runs)")


def main(argv: list[str]) -> int:
    if command_line.wants_help(argv):
        print(__doc__)
        return 0
    try:
        config = command_line.parse(argv, _CONFIG, required={"study": _STUDY, "out": _OUT})
        ablate(config, argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
