"""Compile the training and prediction steps for a TPU slice, on any machine.

usage: retina-jax compile --config=experiments/coco.py --topology=v5e:2x2x1
           [--config.train.batch_size=16 ...]

For every bucket (input shape), prints memory, FLOPs and HBM traffic per device, an upper bound on
images/s from the chip's published peaks, the largest batch that fits, and the largest sources of
HBM traffic. The steps are compiled, not run. Each compilation takes minutes, and the training step
is compiled up to --compilations times per bucket. Exits with code 2 if a step does not fit. Needs
libtpu: pip install 'retina_jax[tpu]'.
"""

from __future__ import annotations

import os

from retina_jax.config.flags import Flag, parse
from retina_jax.errors import DONE, UserError

FLAGS = (
    Flag("topology", "slice to compile for, as KIND:SHAPE; for example v4:2x2x1, v5e:2x2x1, "
         "v5p:2x2x1, v6e:2x2x1, tpu7x:2x2x1, or v6e:4x4 for a larger one", example="v5e:2x2x1"),
    Flag("steps", "steps to compile: train, predict or both", ["train", "predict"]),
    Flag("compilations", "maximum number of batch sizes for which the training step is compiled "
         "per bucket; 1: only train.batch_size; 3: also a second one, and the largest that should "
         "fit by linear extrapolation from these two", 3, least=1),
    Flag("classes", "number of classes", 80, least=1),
)  # fmt: skip
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask Google's servers what TPU this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing here uses a TPU that another process could hold
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # else a warning; the slice is named explicitly
    "TPU_STDERR_LOG_LEVEL": "3",  # libtpu warns of every compilation of four minutes
}
"""For libtpu, before JAX starts."""


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS)
    if parsed is None:
        return DONE
    os.environ.update(ENVIRONMENT)
    from retina_jax.compiling.study import study, what_does_not_fit
    from retina_jax.compiling.table import lines
    from retina_jax.progress import Reporter
    from retina_jax.runs.fitting import not_fitted

    flags, report = parsed.flags, Reporter.on_stderr()
    for line in not_fitted(parsed.config, "compile"):
        report.note(line)
    result = study(
        parsed.config,
        flags.topology,
        flags.steps,
        flags.compilations,
        flags.classes,
        report,
    )
    print("\n".join(lines(result)))
    if problem := what_does_not_fit(result, parsed.config):
        raise UserError(problem)
    return DONE
