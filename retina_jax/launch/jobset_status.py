"""What kubectl says about a JobSet and its pods."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from retina_jax.errors import FAULT
from retina_jax.launch import codes

LAUNCH = "retina-jax/launch"
"""The annotation with the digest of the launch."""


@dataclasses.dataclass(frozen=True)
class State:
    """What a JobSet's status says."""

    completed: bool
    failed: bool
    message: str
    restarts: int
    digest: str | None

    @classmethod
    def of(cls, text: str) -> State | None:
        """The state in ``kubectl get --output=json``; None if there is no such JobSet."""
        if not text.strip():
            return None
        found = json.loads(text)
        status = found.get("status", {})
        conditions = {
            condition["type"]: condition.get("message", "")
            for condition in status.get("conditions", ())
            if condition.get("status") == "True"
        }
        return cls(
            "Completed" in conditions,
            "Failed" in conditions,
            conditions.get("Failed", ""),
            status.get("restarts", 0),
            found["metadata"].get("annotations", {}).get(LAUNCH),
        )

    @property
    def ended(self) -> bool:
        return self.completed or self.failed


class Pods:
    """The pods of a JobSet at one moment."""

    def __init__(self, items: Sequence[dict]):
        self._statuses = [item.get("status", {}) for item in items]

    @property
    def started(self) -> bool:
        """Whether every pod has a log."""
        phases = {status.get("phase") for status in self._statuses}
        return bool(phases) and phases <= {"Running", "Succeeded", "Failed"}

    def describe(self, hosts: int) -> str:
        """How many pods run, and why the others wait."""
        running = sum(status.get("phase") == "Running" for status in self._statuses)
        reasons = dict.fromkeys(filter(None, map(_why_waiting, self._statuses)))
        return f"{running} of {hosts} pods running" + "".join(f"; {why}" for why in reasons)


def _why_waiting(status: dict) -> str:
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    for condition in status.get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
    return ""


def exit_code(items: Sequence[dict]) -> int:
    """The exit code of a failed run, from its pods and the messages of its Jobs."""
    found = []
    for item in items:
        status = item.get("status", {})
        for container in status.get("containerStatuses", ()):
            ended = container.get("state", {}).get("terminated")
            if ended:
                found.append(ended["exitCode"])
        for condition in status.get("conditions", ()):
            match = re.search(r"failed with exit code (\d+)", condition.get("message", ""))
            if match:
                found.append(int(match[1]))
    return codes.of_all_hosts(found) or FAULT
