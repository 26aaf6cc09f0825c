"""A workdir belongs to one run: the run holds a lease, which it renews while it is alive.

File locks do not work across all hosts of a shared disk, object stores have none, and a killed
program cannot remove a file. So the lease is a file or an object that is renewed every ten seconds
and expires after sixty.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from retina_jax import files, parallel
from retina_jax.errors import FAULT, UserError
from retina_jax.progress import Reporter
from retina_jax.training.lease_file import (
    FILE,
    RENEWED_EVERY,
    STALE_AFTER,
    has_ended,
    identity,
    runs_here,
)


class Lease:
    """Holds the lease of ``folder`` inside a ``with`` block.

    Waits until the lease of a killed program is stale. Raises `UserError`, with host and process,
    if another program renews it meanwhile.
    """

    def __init__(self, folder: Path, report: Reporter):
        self._path = folder / FILE
        self._report = report
        self._own = {**identity(), "token": secrets.token_hex(8)}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        doubt = 0.0
        while not (self._take() and self._is_own_after(doubt)):
            doubt = self._wait_for_holder()
        self._thread.start()
        parallel.group.before_leaving.append(self._release)
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        parallel.group.before_leaving.remove(self._release)
        self._release()

    def _take(self) -> bool:
        """Creates the lease; False if there is one."""
        return files.create(self._path, json.dumps(self._own))

    def _is_own_after(self, seconds: float) -> bool:
        """Whether the lease is still this program's.

        Another program that waited for the same lease may have removed this one in its place.
        """
        if not seconds:
            return True
        time.sleep(seconds)
        return self._read().get("token") == self._own["token"]

    def _wait_for_holder(self) -> float:
        """Removes the lease once it is stale; `UserError` if it is renewed.

        Returns how many seconds others may take to remove the same lease.
        """
        first = self._renewed()
        if first is None:
            return 0.0
        holder = self._read()
        if has_ended(holder):
            self._remove(holder)
            return 0.1
        who = f"process {holder.get('pid', '?')} on host {holder.get('host', '?')}"
        age = self._now() - first
        if runs_here(holder) and age < RENEWED_EVERY:
            raise self._refused(who)
        left = STALE_AFTER - age
        if left > 0:
            self._report.note(
                f"{self._path.parent} was in use by {who}; waiting {left:.0f} s in case it "
                "still runs"
            )
        while (left := STALE_AFTER - (self._now() - first)) > 0:
            time.sleep(min(left, 1.0))
            renewed = self._renewed()
            if renewed is None:
                return 1.0
            if renewed != first:
                raise self._refused(who)
        self._remove(holder)
        return 1.0

    def _refused(self, who: str) -> UserError:
        return UserError(
            f"--workdir={self._path.parent} is in use by {who}; wait until that run has ended, or "
            "use another --workdir"
        )

    def _remove(self, holder: dict[str, Any]) -> None:
        if self._read() == holder:  # not that of a program that was faster
            with files.os_errors(self._path):
                self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            with files.os_errors(self._path):
                content = json.loads(self._path.read_text())
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError):  # not written yet, or cut short
            return {}

    def _renewed(self) -> float | None:
        """When the lease was last renewed, by the clock of its disk; None if there is none."""
        return files.modified(self._path)

    def _now(self) -> float:
        """The time by the clock of the disk, which is not this host's."""
        return files.clock(self._path.parent)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_EVERY):
            with contextlib.suppress(OSError):  # a full disk, for example
                holder = self._read()
                if holder.get("token", self._own["token"]) != self._own["token"]:
                    line = (
                        f"stopped: process {holder.get('pid')} on host {holder.get('host')} has "
                        f"taken over {self._path.parent}, because this process did not renew its "
                        f"lease for {STALE_AFTER:.0f} s"
                    )
                    parallel.group.fail(FAULT, [line])
                    parallel.group.leave(FAULT, [line])
                files.write_json(self._path, self._own)

    def _release(self) -> None:
        self._over.set()
        with contextlib.suppress(ConnectionError), files.os_errors(self._path):
            if self._read().get("token") == self._own["token"]:
                self._path.unlink(missing_ok=True)
