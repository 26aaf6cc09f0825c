"""Logs of pods that are read again after an interruption: no line is lost, none comes twice."""

from __future__ import annotations

import datetime
import re

_STAMPED = re.compile(
    r"(\[pod/[^]]*\] )?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL
)


class LogLines:
    """Lines of ``kubectl logs --prefix --timestamps``; the clock is that of each pod's node."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[datetime.datetime, str]] = {}
        """For each pod, the time of its last line: up to the second, and the fraction's digits."""

    def new(self, line: str) -> str:
        """The line without its time; empty if it was there before."""
        match = _STAMPED.match(line)
        if match is None:  # a message of kubectl
            return line
        pod, second, fraction, zone, text = match.groups(default="")
        time = datetime.datetime.fromisoformat(second + zone), fraction[1:].ljust(9, "0")
        if pod in self._last and time <= self._last[pod]:
            return ""
        self._last[pod] = time
        return pod + text
