"""Print the progress of running and finished runs.

usage: retina-jax status RUN [RUN ...]

RUN is a workdir. Prints the step, loss and images/s of the last log entry, the time left at that
speed (not counting evaluations), the last and the best AP, the newest checkpoint, and the last
error. The command only reads files, so it works for runs on other hosts if it can read their
workdir.
"""

from __future__ import annotations

from retina_jax.config.flags import ArgumentParser


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="retina-jax status", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    options = parser.parse_args(argv)
    from retina_jax.runs.status import duration, status_of

    found = [(run, status_of(run)) for run in options.runs]
    for run, status in found:
        print(f"{run}: {status.state}")
        step = "–" if status.step is None else f"{status.step:,}"
        line = f"  step {step} of {status.steps:,}"
        if status.step is not None:
            line += f" ({status.step / status.steps:.0%})"
        if status.loss is not None:
            line += f", loss {status.loss:.4g}"
        if status.images_per_second is not None:
            line += f", {status.images_per_second:.1f} images/s"
        if status.seconds_left is not None:
            line += f", {duration(status.seconds_left)} left"
        print(line)
        if status.last:
            print(f"  {_ap('AP', status.last)}; {_ap('best', status.best)}")
        if status.checkpoint is not None:
            print(f"  newest checkpoint: step {status.checkpoint:,}")
        if status.error:
            print(f"  last error, {status.error}")
    return 0


def _ap(name: str, pair: tuple[int, float | None] | None) -> str:
    if pair is None or pair[1] is None:
        return f"{name} –"
    return f"{name} {pair[1]:.3f} (step {pair[0]:,})"
