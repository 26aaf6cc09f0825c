"""Which exit codes of a command restart it.

Every kind of job follows the same rule: 0 is done; 2, 3 and 4 are final, because a restart would
end the same way; any other code restarts the command, above all 1 (a fault), 143 (SIGTERM) and the
codes of killed and aborted processes.
"""

from __future__ import annotations

from collections.abc import Iterable

from retina_jax.errors import DONE, FAULT, LEFT_OUT, MISTAKE, NON_FINITE

FINAL_FAILURES = (MISTAKE, LEFT_OUT, NON_FINITE)
TERMINATED = 143


def restarts(code: int) -> bool:
    """Whether a command that exited with ``code`` is started again."""
    return code != DONE and code not in FINAL_FAILURES


def of_all_hosts(codes: Iterable[int]) -> int:
    """The exit code of a run, from those of its hosts.

    One host that exits with a final code aborts its peers, so a final code outranks all others.
    """
    found = set(codes) - {DONE}
    for code in (MISTAKE, NON_FINITE, LEFT_OUT):
        if code in found:
            return code
    if not found:
        return DONE
    return TERMINATED if found == {TERMINATED} else FAULT
