"""Runs command-line tools (kubectl, gcloud, sbatch), and explains each failure in one line."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from retina_jax.errors import CommandError, RunError, UserError
from retina_jax.launch.codes import TERMINATED

T = TypeVar("T")
_INSTALL = {
    "kubectl": "install it with gcloud components install kubectl, or from kubernetes.io",
    "gcloud": "install the Google Cloud CLI",
}
_ADVICE: tuple[tuple[str, str, type[CommandError]], ...] = (
    (
        r"gcloud auth login|reauthentic|active account|must be logged in|Unauthorized"
        r"|UNAUTHENTICATED|credentials? (were|was) not found|invalid_grant",
        "log in with gcloud auth login",
        UserError,
    ),
    (
        r"quota|RESOURCE_EXHAUSTED",
        "ask for more quota, or choose another accelerator, zone or queue",
        UserError,
    ),
    (
        r"no matches for kind \"?JobSet|doesn't have a resource type \"?jobset",
        "install JobSet in the cluster (jobset.sigs.k8s.io, Installation)",
        UserError,
    ),
    (
        r"unknown field .*onJobFailureMessagePatterns",
        "update JobSet in the cluster to 0.10 or newer",
        UserError,
    ),
    (
        r"current-context is not set|no configuration has been provided|localhost:8080"
        r"|no such host|cluster .* does not exist|context .* does not exist",
        "choose a cluster with gcloud container clusters get-credentials CLUSTER",
        UserError,
    ),
    (r"namespaces? .*not found", "create the namespace, or set --namespace", UserError),
    (
        r"PERMISSION_DENIED|forbidden|does not have permission|Required '.*' permission",
        "ask an administrator for this permission, or check --project and --namespace",
        UserError,
    ),
    (r"\[?project\]?.*(required|not set|must be)|core/project", "set --project", UserError),
    (r"\[?zone\]?.*(required|not set|must be)|compute/zone", "set --zone", UserError),
    (r"invalid partition", "set --partition to one that sinfo lists", UserError),
    (r"invalid account|account/partition", "set --account to one of yours", UserError),
    (
        r"node configuration is not available|node count specification invalid",
        "change --nodes, --gpus-per-node or --partition",
        UserError,
    ),
    (r"time limit", "set --time below the partition's limit", UserError),
    (
        r"Unable to contact slurm|slurm_load",
        "run this on a login node of the cluster",
        RunError,
    ),
    (
        r"publickey|Host key verification",
        "allow your SSH key on the machines (gcloud compute os-login or project metadata)",
        UserError,
    ),
    (
        r"port 22|ssh.*(255|timed out|refused)",
        "allow SSH to the machines (a firewall rule for TCP port 22)",
        RunError,
    ),
    (r"", "run the same command again; it reattaches to the job if there is one", RunError),
)


class Terminated(CommandError):
    """SIGTERM or SIGHUP: cleans up as Ctrl-C does."""

    exit_code = TERMINATED


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished tool printed, and its exit code."""

    code: int
    output: str
    errors: str

    def says(self, pattern: str) -> bool:
        return bool(re.search(pattern, self.errors + self.output, re.IGNORECASE))


def attempt(arguments: Sequence[str], given: str | None = None) -> Result:
    """Runs a tool, with ``given`` on its stdin; `UserError` if it is not installed."""
    with _installed(arguments[0]):
        done = subprocess.run(
            arguments,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,  # Ctrl-C in the terminal must not stop a deletion halfway
        )
    return Result(done.returncode, done.stdout, done.stderr)


def run(arguments: Sequence[str], given: str | None = None) -> str:
    """A tool's stdout; `UserError` or `RunError` of one line if it fails."""
    result = attempt(arguments, given)
    if result.code:
        raise failure(arguments, result.code, result.errors or result.output)
    return result.output


def failure(arguments: Sequence[str], code: int, output: str) -> CommandError:
    """The error for a tool that exited with ``code``: its own last line, and the fix.

    gcloud prints advice after its error, so the last line that calls itself an error comes first.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+: )?error\b", line, re.IGNORECASE)]
    own = (errors or lines or [f"exit code {code}"])[-1]
    for pattern, fix, kind in _ADVICE:
        if re.search(pattern, output, re.IGNORECASE):
            return kind(f"{_named(arguments)} failed: {own.rstrip('.')}; {fix}")
    raise AssertionError  # the last pattern matches everything


def _named(arguments: Sequence[str]) -> str:
    """The tool and its subcommand, without flags and names."""
    words = [arguments[0]]
    for word in arguments[1:]:
        if word.startswith("-") or not re.fullmatch("[a-z-]+", word):
            break
        words.append(word)
    return " ".join(words)


@contextlib.contextmanager
def _installed(tool: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        fix = _INSTALL.get(tool, "run this on a login node of the SLURM cluster")
        raise UserError(f"{tool} is not installed or not on the PATH; {fix}") from None


class Followed:
    """A tool in the background: prints what ``shown`` makes of each line of its output."""

    def __init__(self, arguments: Sequence[str], shown: Callable[[str], str] = lambda line: line):
        self.arguments = tuple(arguments)
        self.last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self._shown, self._is_printing = shown, False
        with _installed(arguments[0]):
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.last_lines.append(line)
            self._is_printing = True
            with contextlib.suppress(BrokenPipeError):  # nobody reads; the job goes on
                print(self._shown(line), end="", flush=True)
            self._is_printing = False

    def code(self) -> int | None:
        """The exit code; None while the tool runs."""
        if self._process.poll() is not None:
            self._reader.join(timeout=10)  # the last lines
            while self._is_printing and self._reader.is_alive():  # whoever reads ours is slow
                self._reader.join(timeout=1)
        return self._process.returncode

    def finish(self, seconds: float) -> None:
        """Waits at most ``seconds`` for the tool to end, then stops it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        self.stop()

    def stop(self) -> None:
        """Stops the tool and everything that it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(timeout=10)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated`, so that they clean up as Ctrl-C does."""

    def receive(number: int, _frame: object) -> None:
        raise Terminated(f"stopped by {signal.Signals(number).name}")

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, receive) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignores signals during a deletion, so that a second Ctrl-C leaves nothing behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printed(arguments: Sequence[str]) -> str:
    """A command line that a shell reads as ``arguments``."""
    return shlex.join(arguments)


def patiently(ask: Callable[[], T], pause: float, patience: int = 5) -> T:
    """Calls ``ask``, and raises its error only if it fails more than ``patience`` times.

    During hours of polling, the network may be down for a moment.
    """
    for left in reversed(range(patience + 1)):
        try:
            return ask()
        except Terminated:
            raise
        except CommandError as error:
            if not left:
                raise
            print(f"warning: {error}", file=sys.stderr)
            time.sleep(pause)
    raise AssertionError  # the last round returns or raises
