"""Run the paper's studies as flag overrides on an experiment: tables and figures.

usage: python scripts/ablate.py --config=experiments/shapes.py --study=prior,alpha,focal,ohem
           --out=runs/ablation [--seeds=3] [--only=PATTERN] [--config.path.to.field=value ...]

Studies: prior, alpha (Table 1a of arXiv:1708.02002), focal (1b), anchors (1c), ohem (1d), speed
(1e), boxes (one box for all classes against one for each), losses (all of them). Each row is a
run of the program, in OUT/runs/ROW/seedN; the same command goes on where it was stopped, one with
other flags is refused, and rows of the same fields share their runs. --only takes the rows whose
name a regular expression finds, such as 'prior|γ [12]'. OUT gets tables.md, STUDY.csv, and the
figures: loss against p_t, cumulative loss, speed against AP.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.config import leaves
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_STUDY = flags.DEFINE_list("study", [], "Names of studies.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs, tables and figures.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each row.", lower_bound=1)
_ONLY = flags.DEFINE_string("only", "", "Rows whose name this finds alone.")
_ROOT = Path(__file__).resolve().parent.parent
SPEED = "speed.json"
"""In a row's folder: the first line of benchmark.py, and the fields of its config."""


def own_fields(row, seed: int) -> dict[str, object]:
    """What a run of ``row`` has otherwise than the user's config."""
    return {**row.fields, "seed": seed, "eval.pictures": 0}


def fields_of(config, row, seed: int) -> dict[str, object]:
    """All leaves of a run's config."""
    return {**leaves(config), **own_fields(row, seed)}


def run_program(script: list[str], row, seed: int, **streams) -> subprocess.CompletedProcess:
    """Runs a program with the user's config and flags, as they were understood, and the row's."""
    flag = flags.FLAGS["config"]
    fields = {**config_flags.get_override_values(flag), **own_fields(row, seed)}
    command = [sys.executable, *script, f"--config={config_flags.get_config_filename(flag)}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, text=True, **streams)


def run_one(row, seed: int, folder: Path, config):
    """Trains, or reads what became of it before; the outcome."""
    from retina_jax.ablation.table import Outcome, scores_of

    fields = fields_of(config, row, seed)
    outcome = Outcome.read(folder, fields)
    if outcome:
        return outcome
    folder.mkdir(parents=True, exist_ok=True)
    script = ["-m", "retina_jax.main", f"--workdir={folder}"]
    done = run_program(script, row, seed, stderr=subprocess.PIPE)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0:
        outcome = Outcome(scores_of(folder, config.train.steps), fields=fields)
    elif done.returncode == 1 and last.startswith("stopped: step"):
        outcome = Outcome(None, last, fields)
    else:
        raise UserError(f"{row.name}, seed {seed}: exit code {done.returncode}: {last}")
    outcome.write(folder)
    return outcome


def seconds_an_image(row, config, folder: Path) -> float:
    """Of prediction, measured once and kept in ``folder``."""
    from retina_jax.ablation.table import check_made_with

    kept, fields = folder / SPEED, fields_of(config, row, 0)
    if kept.exists():
        measured = json.loads(kept.read_text())
        check_made_with(kept, measured.get("fields"), fields)
    else:
        script = [str(_ROOT / "scripts" / "benchmark.py"), "predict"]
        done = run_program(script, row, 0, stdout=subprocess.PIPE)
        if done.returncode:
            raise UserError(f"{row.name}: its speed could not be measured")
        measured = {**json.loads(done.stdout.splitlines()[0]), "fields": fields}
        kept.write_text(json.dumps(measured) + "\n")
    return 1 / measured["images_per_second"]


def columns(study: str, row, config, folder: Path) -> dict[str, str]:
    """Further columns of a study's rows."""
    if study == "anchors":
        from retina_jax.anchors import LEVELS, feature_grid

        places = sum(rows * cols for rows, cols in (
            feature_grid(config.data.buckets[0], level) for level in LEVELS))  # fmt: skip
        return {"anchors": str(places * len(row.fields["anchors.octaves"])
                               * len(row.fields["anchors.ratios"]))}  # fmt: skip
    if study == "speed":
        return {"ms an image": f"{1000 * seconds_an_image(row, config, folder):.1f}"}
    return {}


def ablate(config) -> None:
    from rich.console import Console

    from retina_jax.ablation import figures, studies
    from retina_jax.ablation.table import Outcome, comma_separated, markdown, table_rows
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
    for seed in range(_SEEDS.value):  # other flags are told before the first run, not after hours
        for slug, row in unique.items():
            Outcome.read(out / "runs" / slug / f"seed{seed}", fields_of(config, row, seed))
    with ProgressBar(console, "runs", len(unique) * _SEEDS.value) as bar:
        for seed in range(_SEEDS.value):  # every row once before any a second time
            for slug, row in unique.items():
                folder = out / "runs" / slug / f"seed{seed}"
                outcome = run_one(row, seed, folder, config)
                outcomes[slug].append(outcome)
                bar.advance(f"{row.name}, seed {seed}")
                ap = f"AP {outcome.scores['AP']:.3f}" if outcome.scores else outcome.stopped
                console.print(f"{row.name}, seed {seed}: {ap}")
    tables = []
    for name, rows in chosen.items():
        filled = [
            (row, outcomes[row.slug()],
             columns(name, row, config, out / "runs" / row.slug()))
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
        ablate(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
