"""RetinaNet in JAX, by commands.

usage: retina-jax COMMAND [flags]        or  python -m retina_jax.main --mode=COMMAND [flags]
"""

from __future__ import annotations

import importlib
import os
import re
import sys

from retina_jax.errors import DONE, UserError, explain

COMMANDS = {
    "train": "train, evaluating on the way; the same command resumes",
    "evaluate": "score a checkpoint with COCO's metrics",
    "prepare": "COCO, VOC, YOLO or TFDS annotations and images to a data set",
    "doctor": "what is wrong with a data set, and what the anchors can match",
    "draw": "pictures of ground truth beside detections",
    "import_weights": "weights of torchvision or Detectron2 to a workdir",
    "export_weights": "a run's weights for torchvision or Detectron2",
    "ablate": "the paper's studies: tables and figures",
    "benchmark": "time a training step, prediction, or the input",
}
BROKEN_PIPE = 141
"""As a shell counts a program that ended by SIGPIPE."""


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.replace('_', '-'):{width}}{what}" for name, what in COMMANDS.items()]
    last = "retina-jax COMMAND --help lists the flags of a command."
    return "\n".join([__doc__.strip(), "", "commands:", *lines, "", last])


def read_command(argv: list[str]) -> tuple[str | None, list[str]]:
    """The command that ``argv`` names, and its arguments; None where it asks for help alone.

    A first word is the command; else ``--mode`` names it, and training is the default.
    """
    name, rest = "train", list(argv)
    if argv and not argv[0].startswith("-"):
        name, rest = argv[0], argv[1:]
    elif argv in (["-h"], ["--help"], ["-help"], []):
        return None, argv
    else:
        for i, argument in enumerate(argv):
            if match := re.fullmatch(r"--?mode(?:=(.*))?", argument, re.DOTALL):
                rest = argv[:i] + argv[i + (1 if match[1] is not None else 2) :]
                name = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
    if name.replace("-", "_") not in COMMANDS:
        there = ", ".join(command.replace("_", "-") for command in COMMANDS)
        raise UserError(f"{name!r} is no command; there are {there}")
    return name.replace("-", "_"), rest


def run(argv: list[str]) -> int:
    name, arguments = read_command(argv)
    if name is None:
        print(help_text())
        return DONE
    return importlib.import_module(f"retina_jax.jobs.{name}").main(arguments)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; every error that `errors.explain` knows is one line and an exit code."""
    argv = sys.argv if argv is None else argv
    try:
        code = run(argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE if "--help" in argv else BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        code, lines = explained
        print("\n".join(lines), file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
