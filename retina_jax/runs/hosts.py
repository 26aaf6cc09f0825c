"""What the hosts of a run must have in common, checked before the first step."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from pathlib import Path

import jax
import ml_collections

from retina_jax import parallel
from retina_jax.config.values import leaves
from retina_jax.data.data_set import Split
from retina_jax.errors import UserError
from retina_jax.version import __version__

_SEEN_WITHIN = 30.0  # seconds until a new file must appear on all hosts of a shared disk


def code_version() -> str:
    """The version of this package with a digest of its source."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return f"{__version__} ({digest.hexdigest()[:12]})"


def check_alike(
    config: ml_collections.ConfigDict, splits: list[Split], devices: parallel.Devices
) -> None:
    """Raises `UserError` with the first difference between hosts, by host and value."""
    if parallel.process_count() == 1:
        return
    # fingerprints say whether data are the same, wherever each host keeps them
    fields = {name: value for name, value in leaves(config).items() if name != "data.dir"}
    facts = {f"config.{name}": repr(value) for name, value in fields.items()}
    for split in splits:
        digests = split.fingerprints()
        facts |= {f"the digest of the {what} of {split.name!r}": digests[what] for what in digests}
    facts |= {"the version of retina_jax": code_version(), "the version of jax": jax.__version__}
    facts["the number of local devices"] = str(len(devices))
    every = [json.loads(text) for text in parallel.group.exchange("facts", json.dumps(facts))]
    for name in facts:
        for i, other in enumerate(every):
            if other.get(name) != every[0].get(name):
                raise UserError(
                    f"{name} is {every[0].get(name)} on {parallel.group.name(0)} and "
                    f"{other.get(name)} on {parallel.group.name(i)}; start the same command, with "
                    "the same code and data, on every host"
                )


def check_shared(folder: Path) -> None:
    """Raises `UserError` unless all hosts see the same ``folder``: the first writes a file there.

    The folder exists on the first host; others may only see it.
    """
    if parallel.process_count() == 1:
        return
    name = f".shared-{secrets.token_hex(8)}"
    name = parallel.group.tell("shared", name)
    file = folder / name
    if parallel.is_main():
        file.write_text(parallel.group.hosts[0])
    parallel.group.barrier("shared")
    deadline = time.monotonic() + _SEEN_WITHIN
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    sees = parallel.group.exchange("sees", "yes" if seen else "")
    if parallel.is_main():
        file.unlink()
    blind = [parallel.group.name(i) for i, text in enumerate(sees) if not text]
    if blind:
        raise UserError(
            f"--workdir={folder} is not shared: {', '.join(blind)} does not see what "
            f"{parallel.group.name(0)} writes there; use a folder on a disk that all hosts share"
        )
