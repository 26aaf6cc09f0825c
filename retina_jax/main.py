"""Train or evaluate RetinaNet.

usage: python -m retina_jax.main --config=experiments/shapes.py --workdir=DIR
           [--mode=train|evaluate] [--config.path.to.field=value ...]

Running the same command again resumes.
"""

import errno
import importlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import RunError, UserError

MODES = ("train", "evaluate")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "An experiment, such as experiments/coco.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made where it is not there.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


def main(argv: list[str]) -> int:
    """Flags, validation, dispatch; returns the exit code."""
    if command_line.wants_help(argv):
        print(command_line.help_text(__doc__))
        return 0
    try:
        config = command_line.parse(argv, _CONFIG, required={"workdir": _WORKDIR})
        from rich.console import Console  # from here on, heavier imports

        logging.set_verbosity(logging.ERROR)
        job = importlib.import_module(f"retina_jax.{_MODE.value}")
        return job.run(
            config, _WORKDIR.value, Console(stderr=True, highlight=False, soft_wrap=True)
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before training began, or a second time
        print("stopped; run the same command again", file=sys.stderr)
        return 130
    except RunError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"stopped: the disk of --workdir={_WORKDIR.value} is full; the last whole checkpoint "
            "is kept: make room and run the same command again",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: out of device memory; lower --config.train.batch_size="
            f"{config.train.batch_size} or --config.data.buckets={tuple(config.data.buckets)}",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
