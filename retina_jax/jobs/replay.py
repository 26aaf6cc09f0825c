"""Repeat a step with a non-finite loss, and show where it becomes non-finite.

usage: retina-jax replay --workdir=RUN --batch=RUN/nonfinite/step_N.npz [--repeat=1000]
           [--config.path.to.field=value ...]

A run keeps the batches of steps with a non-finite loss or gradient. This command repeats such a
step in one process, with the run's config, and writes nothing to the run. It prints each image's
share of the losses, the first module in forward order whose output is not finite, the arrays with
non-finite values among weights, statistics and gradients, and the largest gradient norms.

To recover the weights that the step saw, the command starts from the newest checkpoint before the
step and repeats the steps in between on the run's data. Config flags apply to this
step and to the steps in between; for example, --config.train.precision=float32.
"""

from __future__ import annotations

from retina_jax.config.flags import TRUST, Flag, parse
from retina_jax.jobs import config_of_run
from retina_jax.placement import check_alone

FLAGS = (
    Flag("workdir", "folder of the run", example="runs/first"),
    Flag("batch", "file of the batch", example="runs/first/nonfinite/step_123.npz"),
    Flag("repeat", "maximum number of steps to repeat for the exact weights; if more are needed, "
         "the weights of the nearest checkpoint are used instead", 1000, least=0),
    TRUST,
)  # fmt: skip


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS, config_of_run=config_of_run)
    if parsed is None:
        return 0
    check_alone("replay")
    from retina_jax.program_cache import keep_compiled_programs
    from retina_jax.progress import Reporter
    from retina_jax.runs.replay import replay
    from retina_jax.runs.replay_text import lines

    if parsed.config.train.compilation_cache:
        keep_compiled_programs(parsed.flags.workdir)
    flags = parsed.flags
    report = Reporter.on_stderr()
    found = replay(parsed.config, flags.workdir, flags.batch, flags.repeat, report, flags.trust)
    for line in lines(found):
        print(line)
    return 0
