"""Runs the application until a signal: start-up, readiness, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from retina_jax.errors import UserError
from retina_jax.progress import Reporter
from retina_jax.serving.app import make_app
from retina_jax.serving.engine import Engine
from retina_jax.serving.limits import Limits
from retina_jax.serving.service import Service

_LOOPBACK = ("127.", "::1")
_SENDING = 5  # seconds for the last answers to be sent
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening; port 0: any free port.

    Raises `UserError` for an address that does not belong to this machine or is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port}: {error}; set --host=127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port={port} is in use on {host}; stop that program, or set another port, such "
                f"as --port={port + 1}"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(
                f"--port={port} needs root privileges; set a port above 1023, such as --port=8000"
            ) from None
        raise UserError(
            f"--host={host} is not an address of this machine ({error.strerror}); set "
            "--host=127.0.0.1"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs on this machine can connect."""
    return bound.getsockname()[0].startswith(_LOOPBACK)


class Server(uvicorn.Server):
    """Serves an engine: compiles its programs, answers requests, stops on SIGINT or SIGTERM.

    After the first signal, it stops when all open requests are answered, or after
    ``limits.stop_seconds``; after the second one, at once.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        started: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
        compiled: Callable[[str], None] = lambda line: None,
        note: Callable[[str], None] | None = None,
    ):
        """
        Args:
          started: called when clients can connect.
          ready: called when images can be sent.
          compiled: called with a line for each program.
          note: called with a line for each request.
        """
        self.service = Service(engine, limits)
        config = uvicorn.Config(
            make_app(self.service, note),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SENDING,
            backlog=_BACKLOG,
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        super().__init__(config)
        self._limits = limits
        self._tell_started, self._tell_ready, self._compiled = started, ready, compiled
        self._fault: BaseException | None = None
        self._signal: signal.Signals | None = None
        self._end = float("inf")
        self._warm = threading.Event()
        self.has_ended = False
        """Whether all threads have ended; if not, the process should exit without waiting."""

    def serve_on(self, bound: socket.socket) -> signal.Signals | None:
        """Runs until a signal, and returns it. Raises the error that made the start fail."""
        try:
            self.run(sockets=[bound])
        finally:
            bound.close()
            patience = _SENDING if time.monotonic() < self._end else 0.5
            self.has_ended = self.service.close(patience) and self._warm.is_set()
        if self._fault is not None:
            raise self._fault
        return self._signal

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stops as a signal does."""
        if self._signal is not None:
            self._end = 0.0
            return
        self._end = time.monotonic() + self._limits.stop_seconds
        self._signal = signal.Signals(number)
        self.service.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop(sig)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter) or self._fault is not None:
            return True
        if self._signal is None:
            return False
        if self.service.open and time.monotonic() < self._end:
            return False
        self.service.give_up()
        await asyncio.sleep(0)
        return True

    def _warm_up(self) -> None:
        try:
            self.service.engine.warm_up(self._compiled)
        except BaseException as error:
            self._fault = error
        else:
            self.service.is_warm = True
            self._tell_ready()
        self._warm.set()


def serve(
    engine: Engine, limits: Limits, bound: socket.socket, report: Reporter, log_requests: bool
) -> tuple[signal.Signals | None, bool]:
    """Serves on a bound socket until a signal; returns it, and whether all threads have ended.

    Prints the address to stdout, everything else through ``report``.
    """
    url = url_of(bound)
    if not is_loopback(bound):
        report.note(
            f"anyone who can reach this machine can use {url}: it has neither encryption nor a "
            "log-in; put a proxy that provides both in front of it",
            "warning",
        )
    programs = len(engine.buckets) * len({1, engine.batch_size})
    with contextlib.ExitStack() as compiling:
        bars = []

        def started() -> None:
            print(f"serving {engine.name} at {url}", flush=True)  # a bar would redirect stdout
            bars.append(compiling.enter_context(report.progress("compiling", programs)))

        def ready() -> None:
            compiling.close()
            report.say("ready; press Ctrl-C to stop")

        server = Server(
            engine,
            limits,
            started=started,
            ready=ready,
            compiled=lambda line: bars[0].advance(line),
            note=report.say if log_requests else None,
        )
        number = server.serve_on(bound)
    return number, server.has_ended
