"""Runs the program as one, two or four real processes with virtual devices."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from support import on_one_device

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 400  # seconds; only ends a test that fails, after all waits of the program itself

SMALL = {
    "model.width": 8, "model.fpn_channels": 16, "model.head_channels": 16, "model.head_convs": 1,
    "train.batch_size": 8, "train.steps": 20, "train.log_every": 1, "train.checkpoint_every": 5,
    "eval.batch_size": 8, "eval.every": 0, "eval.pictures": 0, "eval.score_threshold": 0.0,
    "optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.001, "optimizer.schedule": "step",
    "data.short_side": 64, "data.long_side": 64, "data.buckets": "((64,64),)",
}  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class Run:
    """Processes of one run, with four devices in all unless said otherwise."""

    def __init__(
        self,
        workdir,
        data_dir,
        count=1,
        devices=4,
        command="train",
        own=(),
        workdirs=(),
        environment=(),
        experiment="shapes",
        program=("-m", "retina_jax.main"),
        **fields,
    ):
        """Starts them.

        Args:
          own: for each process, fields that only it is given.
          workdirs: for each process, its --workdir instead of ``workdir``.
          environment: variables, besides the tests' own.
          program: arguments of Python before the command.
          fields: besides those of ``SMALL``; None leaves a field of that to the experiment.
        """
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        flags = {**SMALL, "data.dir": data_dir, **fields}
        flags = [f"--config.{name}={value}" for name, value in flags.items() if value is not None]
        self.workdir = Path(workdir)
        environment = on_one_device() | dict(environment)
        for name in [name for name in environment if name.lower().endswith("_proxy")]:
            del environment[name]  # JAX prints a warning
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // count)}
        environment["PYTHONPATH"] = str(REPOSITORY)
        # the tests' own process writes to the shared cache in place, as JAX does
        environment["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"
        place = []
        if count > 1:
            place = [f"--coordinator=localhost:{free_port()}", f"--num-processes={count}"]
        self.processes, self._said = [], {}
        for i in range(count):
            more = [*place, f"--process-id={i}"] if place else []
            folder = workdirs[i] if workdirs else workdir
            more += [f"--config.{k}={v}" for k, v in (own[i] if i < len(own) else {}).items()]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *program, command,
                     f"--config=experiments/{experiment}.py", f"--workdir={folder}", *flags, *more],
                    cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def steps(self):
        log = self.workdir / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def wait_until(self, reached):
        deadline = time.monotonic() + DEADLINE
        while not reached():
            ended = [p for p in self.processes if p.poll() not in (None, 0)]
            assert not ended, self.end()
            assert time.monotonic() < deadline, "not reached"
            time.sleep(0.02)

    def end(self):
        """Waits; returns exit codes and all that each process printed."""
        printed = [process.communicate(timeout=DEADLINE)[0] for process in self.processes]
        return [process.returncode for process in self.processes], printed


def losses(workdir):
    """Steps and losses of the log, without rates."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rates = ("images_per_second", "input_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in rates} for line in lines]


GLOO = r"\[Gloo\] Rank |is connected to|peer ranks\.|Expected number of connected peer ranks is :"


def said(text):
    """Without what JAX's and gloo's C++ prints.

    gloo writes its line in pieces, and the threads of two devices write at the same time: any of
    the pieces can stand on a line of its own, also the numbers between them.
    """
    kept = []
    for line in text.splitlines():
        rest = re.sub(GLOO, "", line)
        if re.sub(r"[\d\s]", "", rest) and not re.match(r"[\d\s]*[EWIF]\d{4}", rest):
            kept.append(rest)
    return "\n".join(kept)
