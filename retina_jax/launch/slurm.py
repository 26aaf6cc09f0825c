"""SLURM: an sbatch script of one process per node, which requeues itself after a preemption."""

from __future__ import annotations

import codecs
import dataclasses
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retina_jax.errors import DONE, FAULT, CommandError, RunError, UserError
from retina_jax.launch import codes, tools
from retina_jax.launch.command import digest
from retina_jax.launch.scripts import script
from retina_jax.wording import counted

if TYPE_CHECKING:
    from retina_jax.progress import Reporter

_LOST = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "BOOT_FAIL")
"""Final states after which the job is submitted again; most clusters queue it again themselves."""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "DEADLINE", "OUT_OF_MEMORY", "REVOKED", *_LOST)


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch job and the command that each of its nodes runs."""

    name: str
    words: Sequence[str]
    """The command, with the program that starts it."""
    nodes: int = 1
    gpus_per_node: int | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    image: str | None = None
    mounts: Sequence[str] = ()
    """``FOLDER:PATH`` of folders that the container of ``image`` sees."""
    max_restarts: int = 20
    grace_period: int = 300

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(
                f"--name={self.name} may contain only letters, digits, -, _ and .; for example, "
                "set --name=retina-r50"
            )
        if self.mounts and not self.image:
            raise UserError(f"--mount={self.mounts[0]} needs a container; set --image or remove it")

    @property
    def _comment(self) -> str:
        return f"retina-jax:{digest(dataclasses.asdict(self))}"

    @property
    def _log(self) -> str:
        return f"{self.name}-%j.log"

    def dry_run(self) -> str:
        """The sbatch script, complete in itself."""
        options = {
            "job-name": self.name,
            "comment": self._comment,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node,
            "exclusive": True,  # all cores of the node decode images
            "mem": 0,
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "requeue": True,
            "open-mode": "append",
            "output": self._log,
            # to the processes of the job's steps, so that they save before the time limit
            "signal": f"TERM@{self.grace_period}",
        }
        lines = ["#!/usr/bin/env bash"]
        for option, value in options.items():
            if value is not None:
                lines.append(f"#SBATCH --{option}" + ("" if value is True else f"={value}"))
        if self.gpus_per_node:  # without it, JAX would train on the CPU if a GPU fails to start
            lines.append("export JAX_PLATFORMS=cuda,cpu")
        lines.append(f"export RETINA_JAX_MAX_RESTARTS={self.max_restarts}")
        lines.append(f"set -- {shlex.join([*self._srun_options(), '--', *self.words])}")
        body = script("cluster/slurm.sh").read_text().partition("\n")[2]
        return "\n".join([*lines, body])

    def _srun_options(self) -> list[str]:
        options = []
        if self.image:
            options.append(f"--container-image={self.image}")
        if self.mounts:
            options.append(f"--container-mounts={','.join(self.mounts)}")
        return options

    def run(self, report: Reporter, poll: float, keep: bool) -> int:
        """Submits the job and follows its log; returns the exit code of the command."""
        number = self._queued()
        if number:
            report.say(f"job {number} is queued or running; following it")
        while True:
            number = number or self._submit(report)
            try:
                state, code = self._follow(number, report, poll)
            except (KeyboardInterrupt, tools.Terminated):
                if keep:
                    report.say(f"kept job {number}; cancel it with scancel {number}")
                else:
                    with tools.undisturbed():
                        tools.run(["scancel", number])
                    report.say(f"cancelled job {number}")
                raise
            except CommandError:
                report.note(f"job {number} was not cancelled; cancel it with scancel {number}")
                raise
            # a failed job exits with 143 where the cluster does not let it queue itself again
            if not (state in _LOST or (state == "FAILED" and code == codes.TERMINATED)):
                break
            report.say(f"job {number}: {state}; submitting it again")
            number = None
        if state == "COMPLETED":
            report.say(f"job {number}: completed")
            return DONE
        report.note(f"job {number}: {state} (exit code {code})", "stopped")
        return codes.of_all_hosts([code]) or FAULT

    def _queued(self) -> str | None:
        """The id of this very job, if it is queued or running."""
        which = ["--me", f"--name={self.name}", "--noheader", "--format=%i %k"]
        for line in tools.run(["squeue", *which]).splitlines():
            number, _, comment = line.strip().partition(" ")
            if comment.strip() == self._comment:
                return number
            raise UserError(
                f"job {number} has the same name and runs another command; set another --name, or "
                f"cancel it with scancel {number}"
            )
        return None

    def _submit(self, report: Reporter) -> str:
        printed = tools.run(["sbatch", "--parsable"], self.dry_run())
        number = printed.strip().splitlines()[-1].partition(";")[0] if printed.strip() else ""
        if not number.isdigit():
            raise RunError(f"sbatch --parsable printed {printed!r} instead of a job id")
        log = self._log.replace("%j", number)
        report.say(f"submitted job {number}: {counted(self.nodes, 'node')}; its log is {log}")
        return number

    def _follow(self, number: str, report: Reporter, poll: float) -> tuple[str, int]:
        """The final state of a job, and its exit code."""
        show = ["scontrol", "show", "job", number, "--oneliner"]
        log = Tail(Path(self._log.replace("%j", number)))
        shown = ""
        while True:
            state, code = read_state(tools.patiently(lambda: tools.run(show), poll))
            if state != shown:
                shown = state
                report.say(f"job {number}: {state}")
            ended = state in _ENDED
            if ended:
                time.sleep(min(poll, 1))  # the last lines reach a shared disk late
            log.print_new()
            if ended:
                return state, code
            time.sleep(poll)


def read_state(line: str) -> tuple[str, int]:
    """State and exit code in a line of ``scontrol show job``."""
    state = re.search(r"JobState=([A-Z_]+)", line)
    code = re.search(r"\bExitCode=(\d+):(\d+)", line)
    if not state or not code:
        raise RunError(f"scontrol show job printed no JobState and ExitCode: {line.strip()!r}")
    number, signal = map(int, code.groups())
    return state[1], number or (128 + signal if signal else 0)


class Tail:
    """Prints what is new in a growing file."""

    def __init__(self, path: Path):
        self._path, self._read = path, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        """Keeps the first bytes of a character whose others are not written yet."""

    def print_new(self) -> None:
        try:
            with self._path.open("rb") as log:
                log.seek(self._read)
                new = log.read()
        except FileNotFoundError:  # the job waits in the queue
            return
        self._read += len(new)
        if new:
            print(self._decoder.decode(new), end="", flush=True)
