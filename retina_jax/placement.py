"""This process's place in a run of several processes, from flags or the environment."""

from __future__ import annotations

import os
import re
from typing import Any

from retina_jax.errors import UserError

_TPU_HOSTS, _SLICES = "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def place_in_run(
    coordinator: str | None, processes: int | None, process: int | None
) -> dict[str, Any] | None:
    """Arguments of ``jax.distributed.initialize``; None for a run of one process."""
    if (coordinator, processes, process) == (None, None, None):
        coordinator, processes, process = _own_variables()
    values = {"coordinator": coordinator, "num-processes": processes, "process-id": process}
    if any(value is not None for value in values.values()):
        missing = [f"--{name}" for name, value in values.items() if value is None]
        if missing:
            raise UserError(f"missing: {', '.join(missing)}; set all of --{', --'.join(values)}")
        if not re.fullmatch(r".+:\d+", coordinator):
            raise UserError(f"--coordinator={coordinator} has no port; set it to HOST:PORT")
        if not 0 <= process < processes:
            raise UserError(
                f"--process-id={process} must be 0 to {processes - 1}, because "
                f"--num-processes={processes}; correct one of them"
            )
        if processes == 1:
            return None
        # otherwise JAX would ask SLURM too, and take one device of several
        return {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    environment = os.environ
    if all(name in environment for name in _SLURM):
        if environment["SLURM_NTASKS"] == "1":
            return None
        if environment.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] != "1":
            return {}  # several processes on a host: JAX gives each one device
        first = re.sub(r"\[(\w+).*", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]
        port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096
        return {
            "coordinator_address": f"{first}:{port}",
            "num_processes": int(environment["SLURM_NTASKS"]),
            "process_id": int(environment["SLURM_PROCID"]),
            "cluster_detection_method": "deactivate",
        }
    if _SLICES in environment or len(environment.get(_TPU_HOSTS, "").split(",")) > 1:
        return {}
    from jax._src import cloud_tpu_init  # takes a second to import

    on_tpu = cloud_tpu_init.running_in_cloud_tpu_vm and _TPU_HOSTS not in environment
    # a TPU VM's metadata names its neighbours
    return {} if on_tpu and "TPU_SKIP_MDS_QUERY" not in environment else None


def _own_variables() -> tuple[str | None, int | None, int | None]:
    values = [os.environ.get(f"RETINA_JAX_{n}") for n in ("NUM_PROCESSES", "PROCESS_ID")]
    try:
        return os.environ.get("RETINA_JAX_COORDINATOR"), *(v and int(v) for v in values)
    except ValueError:
        raise UserError(
            f"$RETINA_JAX_NUM_PROCESSES={values[0]} and $RETINA_JAX_PROCESS_ID={values[1]} must be "
            "whole numbers"
        ) from None


def check_alone(command: str) -> None:
    """Raises `UserError` if the environment says that several processes run ``command``.

    Each of them would do all the work and write the same files.
    """
    own = os.environ.get("RETINA_JAX_NUM_PROCESSES", "1")
    tasks = os.environ["SLURM_NTASKS"] if all(name in os.environ for name in _SLURM) else "1"
    hosts = str(len(os.environ.get(_TPU_HOSTS, "").split(",")))
    for variable, count in (
        ("RETINA_JAX_NUM_PROCESSES", own), ("SLURM_NTASKS", tasks), (_TPU_HOSTS, hosts)
    ):  # fmt: skip
        if count != "1":
            raise UserError(
                f"{command} runs in one process, but ${variable} indicates {count} processes; "
                f"start it on one host, without ${variable}"
            )
