"""RetinaNet in JAX.

usage: retina-jax COMMAND [flags]        or  python -m retina_jax.main --mode=COMMAND [flags]
"""

from __future__ import annotations

import importlib
import os
import re
import sys

from retina_jax.errors import DONE, UserError, explain

COMMANDS = {
    "train": "train a model and evaluate it periodically; the same command resumes",
    "evaluate": "evaluate a checkpoint with the COCO metrics",
    "predict": "detect objects in images and videos; draw them, write COCO, YOLO, VOC or CSV files",
    "serve": "detect objects over HTTP, with a JSON API and a web page",
    "replay": "repeat a step with a non-finite loss; show where it becomes non-finite",
    "prepare": "convert COCO, VOC, YOLO or TFDS annotations and images to a data set",
    "compile": "compile for a TPU slice, without a TPU: memory, FLOPs, largest batch",
    "doctor": "check a data set for problems and measure anchor recall",
    "compare": "compare evaluations of runs, with bootstrap confidence intervals",
    "status": "print the progress of runs: step, images/s, time left, AP, last error",
    "draw": "draw ground truth next to detections",
    "import_weights": "create a workdir from torchvision or Detectron2 weights",
    "export_weights": "write a run's weights for torchvision or Detectron2",
    "export": "write a trained detector as StableHLO or ONNX, with a model card",
    "ablate": "run the paper's ablation studies, and write tables and figures",
    "launch": "run a command on Cloud TPUs, GKE or SLURM, and restart it after preemptions",
    "benchmark": "measure training, prediction, the input pipeline, exported models and serving",
}
BROKEN_PIPE = 141
"""The exit code that a shell reports after SIGPIPE."""


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.replace('_', '-'):{width}}{what}" for name, what in COMMANDS.items()]
    last = "retina-jax COMMAND --help lists the flags of a command."
    return "\n".join([__doc__.strip(), "", "commands:", *lines, "", last])


def read_command(argv: list[str]) -> tuple[str | None, list[str]]:
    """The command in ``argv`` and its arguments; None if ``argv`` only asks for help.

    The command is the first word or the value of ``--mode``; the default is training.
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
        available = ", ".join(command.replace("_", "-") for command in COMMANDS)
        raise UserError(f"unknown command {name!r}; available: {available}")
    return name.replace("-", "_"), rest


def run(argv: list[str]) -> int:
    name, arguments = read_command(argv)
    if name is None:
        print(help_text())
        return DONE
    return importlib.import_module(f"retina_jax.jobs.{name}").main(arguments)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; prints each error that `errors.explain` knows and returns its exit code."""
    argv = sys.argv if argv is None else argv
    try:
        code = run(argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE if "--help" in argv else BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if parallel := sys.modules.get("retina_jax.parallel"):  # only commands that compute
            parallel.fail(error, explained)
        if explained is None:
            raise
        code, lines = explained
        print("\n".join(lines), file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
