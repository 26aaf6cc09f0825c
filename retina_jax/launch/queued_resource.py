"""Cloud TPU VMs (v6e and older): a queued resource, and the command on each of its workers.

Google deletes preempted spot VMs and leaves the queued resource SUSPENDED. It is then deleted with
``--force`` and created again, and the command, which resumes from its workdir, runs again.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from retina_jax.errors import DONE, CommandError, RunError, UserError
from retina_jax.launch import accelerators, codes, mounts, tools
from retina_jax.launch.command import check_workdir, digest
from retina_jax.launch.scripts import script

if TYPE_CHECKING:
    from retina_jax.progress import Reporter

_START = "retina_jax_start.sh"
_ACTIVE, _GONE = "ACTIVE", "GONE"
_LOST = ("SUSPENDED", "SUSPENDING", "FAILED", "DELETING", _GONE)
_EXIT = re.compile(r"retina-jax exited with code (\d+)")
"""What scripts/tpu/start.sh prints for each worker; gcloud itself returns the code of one only."""
_NOT_FOUND = r"NOT_FOUND|not found|does not exist"


class _LostSliceError(RunError):
    """The nodes are gone: preempted, or deleted for maintenance."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A queued resource and the command that its workers run in a container."""

    name: str
    words: Sequence[str]
    """The command, without the program's name."""
    image: str
    accelerator: str
    """An accelerator type, such as ``v6e-8``."""
    slices: int = 1
    runtime_version: str | None = None
    spot: bool = False
    reserved: bool = False
    valid_until: str | None = None
    service_account: str | None = None
    project: str | None = None
    zone: str | None = None
    mounts: Sequence[str] = ()
    """``HOST:/EXPORT:/PATH`` of NFS exports."""
    max_restarts: int = 20

    def __post_init__(self):
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", self.name) or len(self.name) > 60:
            raise UserError(
                f"--name={self.name} must have at most 60 characters: lower-case letters, digits "
                "and -, a letter first; for example, set --name=retina-r50"
            )
        if self.spot and self.reserved:
            raise UserError("--spot and --reserved exclude each other; remove one")
        accelerators.runtime_version(self.accelerator)
        mounts.check_nfs(self.mounts)
        check_workdir(self.words, "queued-resource", mounts.paths(self.mounts))

    @property
    def nodes(self) -> list[str]:
        """One node per slice."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{i}" for i in range(self.slices)]

    def _gcloud(self, group: str, verb: str, name: str, *arguments: str) -> list[str]:
        own = [
            f"--{flag}={value}" for flag in ("project", "zone") if (value := getattr(self, flag))
        ]
        return ["gcloud", "compute", "tpus", group, verb, name, *arguments, *own, "--quiet"]

    def create_command(self) -> list[str]:
        runtime = self.runtime_version or accelerators.runtime_version(self.accelerator)
        arguments = [f"--accelerator-type={self.accelerator}", f"--runtime-version={runtime}"]
        if self.slices == 1:
            arguments.append(f"--node-id={self.name}")
        else:
            arguments += [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        arguments += ["--spot"] * self.spot + ["--reserved"] * self.reserved
        if self.valid_until:
            arguments.append(f"--valid-until-duration={self.valid_until}")
        if self.service_account:
            arguments.append(f"--service-account={self.service_account}")
        return self._gcloud("queued-resources", "create", self.name, *arguments)

    def describe_command(self) -> list[str]:
        which = "--format=value(state.state)"
        return self._gcloud("queued-resources", "describe", self.name, which)

    def delete_command(self) -> list[str]:
        return self._gcloud("queued-resources", "delete", self.name, "--force")

    def copy_command(self, node: str) -> list[str]:
        start = str(script("tpu/start.sh"))
        return self._gcloud("tpu-vm", "scp", start, f"{node}:{_START}", "--worker=all")

    def start_command(self, node: str, attempt: int = 0) -> list[str]:
        container = [self.image, *map(mounts.docker_mount, self.mounts), "--", *self.words]
        run = f"{self.name}-{digest(container)}-{attempt}"
        remote = shlex.join(["bash", _START, run, *container])
        alive = ["--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4"]
        return self._gcloud("tpu-vm", "ssh", node, "--worker=all", *alive, f"--command={remote}")

    def dry_run(self) -> str:
        """A shell script of the commands that `run` gives, without the restarts."""
        describe = tools.printed(self.describe_command())
        delete = tools.printed(self.delete_command())
        lines = [
            "#!/usr/bin/env bash",
            "set -e",
            tools.printed(self.create_command()),
            f"trap {shlex.quote(delete)} EXIT",
            f'until [ "$({describe})" = {_ACTIVE} ]; do sleep 30; done',
            *(tools.printed(self.copy_command(node)) for node in self.nodes),
            *(tools.printed(self.start_command(node)) + " &" for node in self.nodes[1:]),
            tools.printed(self.start_command(self.nodes[0])),
            *["wait"] * (self.slices > 1),
        ]
        return "\n".join([*lines, ""])

    def run(self, report: Reporter, poll: float, keep: bool) -> int:
        """Creates the queued resource or reuses it, follows the logs, deletes it.

        Returns the exit code of the command.
        """
        state = self._state()
        try:
            code = self._run(state, report, poll)
        except BaseException:  # whatever happens, the machines cost money
            self._clean_up(report, keep)
            raise
        self._clean_up(report, keep)
        if code != DONE:
            report.note(f"the command exited with code {code}", "stopped")
        return code

    def _clean_up(self, report: Reporter, keep: bool) -> None:
        how = tools.printed(self.delete_command())
        if keep:
            report.say(f"kept queued resource {self.name}; delete it with {how}")
            return
        try:
            self._delete(report)
        except CommandError as error:
            report.note(f"{error}; it may cost money until you delete it: {how}", "warning")

    def _run(self, state: str, report: Reporter, poll: float) -> int:
        faults = attempt = 0
        while True:
            self._activate(state, report, poll)
            try:
                for node in self.nodes:
                    tools.run(self.copy_command(node))
                report.say(f"queued resource {self.name}: running the command on all workers")
                code = self._follow(attempt, poll)
            except tools.Terminated:
                raise
            except CommandError as error:
                if not self._is_lost():
                    raise
                report.say(f"queued resource {self.name} was lost: {error}")
                state = _LOST[0]
                continue
            if not codes.restarts(code):
                return code
            if self._is_lost():
                report.say(f"queued resource {self.name} was preempted")
                state = _LOST[0]
                continue
            state = _ACTIVE
            faults, attempt = faults + 1, attempt + 1
            if faults > self.max_restarts:
                report.note(f"no restarts left (--max-restarts={self.max_restarts})", "stopped")
                return code
            report.say(f"exit code {code}: restart {faults} of at most {self.max_restarts}")

    def _state(self) -> str:
        """The state of the queued resource; GONE if there is none."""
        result = tools.attempt(self.describe_command())
        if result.code:
            if result.says(_NOT_FOUND):
                return _GONE
            raise tools.failure(self.describe_command(), result.code, result.errors)
        return result.output.strip()

    def _is_lost(self) -> bool:
        """Whether the queued resource or one of its nodes is gone."""
        return self._state() in _LOST or self._nodes_are_lost()

    def _nodes_are_lost(self) -> bool:
        for node in self.nodes:
            ask = self._gcloud("tpu-vm", "describe", node, "--format=value(state)")
            result = tools.attempt(ask)
            if result.code and result.says(_NOT_FOUND):
                return True
            if not result.code and result.output.strip() in ("PREEMPTED", "TERMINATED", "DELETING"):
                return True
        return False

    def _activate(self, state: str, report: Reporter, poll: float) -> None:
        """Waits until the queued resource is active; creates it, again if it was lost."""
        shown = None
        if state == _ACTIVE and self._nodes_are_lost():
            state = _LOST[0]
        while state != _ACTIVE:
            if state in _LOST:
                if shown and state != "SUSPENDED":  # it was never active
                    why = self._why_failed()
                    raise RunError(
                        f"queued resource {self.name} is {state}{why}; try another --zone or "
                        "--accelerator, or --spot"
                    )
                if state != _GONE:
                    self._delete(report)
                tools.run(self.create_command())
                report.say(f"created queued resource {self.name}")
            elif state != shown:
                report.say(f"queued resource {self.name}: {state}")
            shown = state
            state = tools.patiently(self._state, poll)
            if state == shown:
                time.sleep(poll)
        report.say(f"queued resource {self.name}: {_ACTIVE}")

    def _why_failed(self) -> str:
        which = "--format=value(state.stateData,state.failedData.error.message)"
        ask = self._gcloud("queued-resources", "describe", self.name, which)
        said = tools.attempt(ask).output.split()
        return f" ({' '.join(said)})" if said else ""

    def _follow(self, attempt: int, poll: float) -> int:
        """Runs the command on every worker; returns the exit code of the run.

        Raises `CommandError` if SSH fails, or if the nodes are lost while SSH waits for them.
        """
        found: list[int] = []

        def read(line: str) -> str:
            if match := _EXIT.search(line):
                found.append(int(match[1]))
            return line

        runs = [tools.Followed(self.start_command(node, attempt), read) for node in self.nodes]
        try:
            for _ in _every(poll):
                ended = [run.code() for run in runs]
                if None not in ended:
                    break
                if (state := tools.patiently(self._state, poll)) in _LOST:
                    raise _LostSliceError(state)
        finally:
            for run in runs:
                run.stop()
        for run, code in zip(runs, ended, strict=True):
            # without a code from the program, it is gcloud or SSH that failed
            if code and not (found and codes.of_all_hosts(found)):
                raise tools.failure(run.arguments, code, "".join(run.last_lines))
        return codes.of_all_hosts(found)

    def _delete(self, report: Reporter) -> None:
        with tools.undisturbed():
            result = tools.attempt(self.delete_command())
            if result.code and not result.says(_NOT_FOUND):
                raise tools.failure(self.delete_command(), result.code, result.errors)
        report.say(f"deleted queued resource {self.name}")


def _every(seconds: float) -> Iterator[None]:
    """Yields at once, and then after each pause of ``seconds``."""
    while True:
        yield
        time.sleep(seconds)
