"""Take a step again whose loss was not finite, and show where that begins.

usage: retina-jax replay --workdir=RUN --batch=RUN/nonfinite/step_N.npz [--repeat=1000]
           [--config.path.to.field=value ...]

A run keeps the batch of each step with a non-finite loss or gradient. This command takes the step
again, in one process and with the config of the run, and writes nothing to the run. It prints each
image's share in the losses, the first module in forward order whose output is not finite, the
arrays that are not finite among weights, statistics and gradient, and the largest gradient norms.

The weights that the step saw are computed from the newest checkpoint before it by repeating the
steps in between on the run's data. Field flags change the step (and those repeated): for example,
--config.train.precision=float32.
"""

from __future__ import annotations

from retina_jax.config.flags import Flag, parse
from retina_jax.jobs import config_of_run

FLAGS = (
    Flag("workdir", "folder of the run", example="runs/first"),
    Flag("batch", "file of the batch, of any number of hosts",
         example="runs/first/nonfinite/step_123.npz"),
    Flag("repeat", "largest number of steps to repeat for the exact weights; where it is not "
         "enough, the weights are those of the nearest checkpoint as they are", 1000, least=0),
)  # fmt: skip


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS, config_of_run=config_of_run)
    if parsed is None:
        return 0
    from retina_jax.program_cache import keep_compiled_programs
    from retina_jax.progress import Reporter
    from retina_jax.runs.replay import replay
    from retina_jax.runs.replay_text import lines

    if parsed.config.train.compilation_cache:
        keep_compiled_programs(parsed.flags.workdir)
    flags = parsed.flags
    found = replay(parsed.config, flags.workdir, flags.batch, flags.repeat, Reporter.on_stderr())
    for line in lines(found):
        print(line)
    return 0
