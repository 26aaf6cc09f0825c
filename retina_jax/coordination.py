"""Coordinates the processes of a run: they exchange values, stop together and end together.

Everything goes through the key-value store of JAX's coordination service, which process 0 serves.
A thread in each process renews a heartbeat key and watches for three events: another process ended
with an error, no longer answers, or was asked to stop. So no process waits forever in a collective
that the others have left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from retina_jax.errors import FAULT, RunError

BEAT = 1.0  # seconds between signs of life
LOST_AFTER = 20.0
"""Seconds without a heartbeat after which a process counts as lost.

Less than JAX's own heartbeat, whose abort would end the program before it could say why.
"""
PATIENCE = 600.0  # seconds that a process waits for another one's part of an exchange
_POLL = 0.05
Point = tuple[int, int]
"""A place in the run that all processes pass: the step, and the batch of its evaluation (0: the
step itself)."""


class Store(Protocol):
    """The part of JAX's ``DistributedRuntimeClient`` that is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_try_get(self, key: str) -> str: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


class Group:
    """The processes of one run, as one of them sees them."""

    def __init__(self, store: Store | None, index: int, count: int, host: str):
        """``store``: None for a run of one process."""
        self._store = store
        self.index = index
        self.count = count
        self.hosts: list[str] = [host]
        self._rounds: dict[str, int] = {}
        self._answers: list[str] = []
        self._lock = threading.Lock()
        self._passed: Point = (-1, 0)
        self._asked: int | None = None
        self._decision: Point | None = None
        self.unchanged = False
        """Whether nothing has changed since the last checkpoint: a stop then ends all at once."""
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self.before_leaving: list[Callable[[], None]] = []
        """Called before the program ends without returning to its main thread."""
        if store is not None:
            self.hosts = self.exchange("host", host)
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def name(self, index: int) -> str:
        """Name of a process, for messages."""
        return f"host {self.hosts[index]} (process {index})"

    # exchange

    def exchange(self, name: str, value: str, patience: float = PATIENCE) -> list[str]:
        """The ``value`` of every process, by index; all processes must make the same calls.

        Only the main thread calls this and `tell`, so a process that is in one call has read the
        answers of all earlier calls; their keys are then removed.

        Raises `RunError` if a process has not provided one after ``patience`` seconds.
        """
        if self._store is None:
            return [value]
        turn = self._turn(name)
        self._store.key_value_set(f"exchange/{turn}/{self.index}", value)
        if self.index == 0:
            values = [self._get(f"exchange/{turn}/{i}", patience) for i in range(self.count)]
            self._store.key_value_set(f"exchange/{turn}/all", json.dumps(values))
            # every process is in this call, so each has read the answers of those before
            self._forget([*(f"exchange/{turn}/{i}" for i in range(self.count)), *self._answers])
            self._answers = [f"exchange/{turn}/all"]
            return values
        return json.loads(self._get(f"exchange/{turn}/all", patience))

    def tell(self, name: str, value: str, patience: float = PATIENCE) -> str:
        """The ``value`` of process 0, in every process; those of the others are ignored."""
        if self._store is None:
            return value
        turn = self._turn(name)
        if self.index == 0:
            self._answers.append(f"tell/{turn}")
            self._store.key_value_set(self._answers[-1], value)
            return value
        return self._get(f"tell/{turn}", patience)

    def barrier(self, name: str, patience: float = PATIENCE) -> None:
        """Waits until every process has arrived; `RunError` after ``patience`` seconds."""
        if self._store is None:
            return
        try:
            self._store.wait_at_barrier(self._turn(name), round(patience * 1000))
        except Exception as error:
            first = str(error).splitlines()[0]
            raise RunError(
                f"not every host reached {name!r} within {patience:.0f} s ({first}); run the same "
                "command again"
            ) from error

    def _forget(self, keys: Sequence[str]) -> None:
        """Removes keys that nobody will read again: a run of weeks would fill the store."""
        for key in keys:
            self._store.key_value_delete(key)

    def _turn(self, name: str) -> str:
        """A key of its own for each call with ``name``."""
        self._rounds[name] = self._rounds.get(name, 0) + 1
        return f"{name}/{self._rounds[name]}"

    def _get(self, key: str, patience: float) -> str:
        try:
            return self._store.blocking_key_value_get(key, round(patience * 1000))
        except Exception as error:
            raise RunError(
                f"no answer from another host within {patience:.0f} s ({key}); run the same "
                "command again"
            ) from error

    # stop together

    def ask_to_stop(self, number: int) -> None:
        """Asks all processes to stop at the same point, because of signal ``number``."""
        if self._store is None:
            if self.unchanged:
                self.leave(128 + number, [stopped_at_once(number)])
        else:
            with contextlib.suppress(Exception):  # another process asked first
                self._store.key_value_set("stop/asked", str(number))

    def must_stop(self, point: Point) -> bool:
        """Whether to stop before ``point``; all processes call it for the same points, in order.

        The answer is the same on all of them: once one is asked to stop, each publishes how far
        it has come and waits there, and all stop after the furthest of these points.
        """
        with self._lock:
            if self._asked is None:
                self._passed = point
                return False
        deadline = time.monotonic() + PATIENCE
        while self._decision is None:
            if time.monotonic() > deadline:
                raise RunError(
                    "the hosts did not agree on when to stop; run the same command again"
                )
            time.sleep(_POLL)
        return point > self._decision

    @property
    def asked(self) -> int | None:
        """The signal that asked any process to stop."""
        return self._asked

    # end together

    def fail(self, code: int, lines: Sequence[str]) -> None:
        """Tells the other processes that this one ends with an error, and that they must too.

        Process 0 waits until they know, because the store ends with it.
        """
        if self._store is None or self._ended.is_set():
            return
        self._ended.set()
        end = {"by": self.index, "code": code, "lines": list(lines)}
        with contextlib.suppress(Exception):
            self._store.key_value_set("end", json.dumps(end))
            if self.index == 0:
                deadline = time.monotonic() + 5 * BEAT
                while time.monotonic() < deadline:
                    if len(self._store.key_value_dir_get("heard/")) >= self.count - 1:
                        break
                    time.sleep(_POLL)

    def finish(self) -> None:
        """Waits until all processes have come to the end of the command."""
        self.barrier("end of the command", 3600.0)
        self._ended.set()

    def wait_for_verdict(self) -> None:
        """After an error in a collective: gives the thread time to notice a lost process."""
        if self._store is not None and not self._ended.is_set():
            time.sleep(LOST_AFTER + 5 * BEAT)

    def leave(self, code: int, lines: Sequence[str]) -> NoReturn:
        """Ends the program at once, from any thread, even if the main thread is blocked."""
        self._ended.set()
        print("\n".join(lines), file=sys.stderr, flush=True)
        for call in self.before_leaving:
            with contextlib.suppress(Exception):
                call()
        os._exit(code)

    def why_aborted(self) -> str:
        """The message for an abort by JAX: process 0 lost others, or the others lost process 0."""
        if self.index:
            return (
                f"stopped: {self.name(0)}, the coordinator, has ended or cannot be reached; run "
                "the same command again on all hosts"
            )
        now = time.monotonic()
        silent = [i for i, (_, since) in self._seen.items() if i and now - since > 5 * BEAT]
        return self._lost(silent or range(1, self.count))

    def _lost(self, silent: Sequence[int]) -> str:
        names = ", ".join(map(self.name, silent))
        return (
            f"stopped: {names} has not answered for {LOST_AFTER:.0f} s: it was killed, or its "
            "machine is gone; run the same command again on all hosts"
        )

    # the watch

    def _watch(self) -> None:
        count = failures = 0
        while not self._ended.wait(BEAT):
            count += 1
            try:
                self._store.key_value_set(f"alive/{self.index}", str(count), allow_overwrite=True)
                if self.index == 0:
                    self._look_for_lost()
                self._look_for_end()
                self._look_for_stop()
                failures = 0
            except Exception as error:  # of the store, for which JAX has no type of its own
                failures += 1
                if failures * BEAT >= 5 and not self._ended.is_set():
                    self.leave(FAULT, [f"{error!r}"[:300], self.why_aborted()])

    def _look_for_lost(self) -> None:
        now = time.monotonic()
        beats = dict(self._store.key_value_dir_get("alive/"))
        for i in range(self.count):
            value = beats.get(f"alive/{i}", "")
            before, since = self._seen.setdefault(i, (value, now))
            if value != before:
                self._seen[i] = (value, now)
            elif now - since > LOST_AFTER and i != self.index:
                line = self._lost([i])
                self.fail(FAULT, [line])
                self.leave(FAULT, [line])

    def _look_for_end(self) -> None:
        text = self._try_get("end")
        if text is None or self._ended.is_set():
            return
        end: dict[str, Any] = json.loads(text)
        if end["by"] == self.index:
            return
        self._store.key_value_set(f"heard/{self.index}", "")
        self.leave(end["code"], [f"{self.name(end['by'])}: {line}" for line in end["lines"]])

    def _look_for_stop(self) -> None:
        text = self._try_get("stop/asked")
        if text is None or self._decision is not None:
            return
        with self._lock:
            if self._asked is None:
                self._asked = int(text)
                mine = json.dumps([list(self._passed), self.unchanged])
                self._store.key_value_set(f"stop/at/{self.index}", mine)
        if self.index == 0 and self._try_get("stop/decision") is None:
            posted = [json.loads(v) for _, v in self._store.key_value_dir_get("stop/at/")]
            if len(posted) == self.count:
                decision = [max(point for point, _ in posted), any(u for _, u in posted)]
                self._store.key_value_set("stop/decision", json.dumps(decision))
        decided = self._try_get("stop/decision")
        if decided is not None:
            point, unchanged = json.loads(decided)
            if unchanged:  # no host can have finished a step that one has not begun
                self.leave(128 + self._asked, [stopped_at_once(self._asked)])
            self._decision = (point[0], point[1])

    def _try_get(self, key: str) -> str | None:
        try:
            return self._store.key_value_try_get(key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise


def stopped_at_once(number: int) -> str:
    return (
        f"stopped by {signal.Signals(number).name}; nothing has changed since the last checkpoint; "
        "run the same command to resume"
    )
