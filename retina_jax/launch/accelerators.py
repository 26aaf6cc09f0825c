"""TPU slices: hosts of a topology on GKE, software versions of Cloud TPU VMs."""

from __future__ import annotations

import math
import re

from retina_jax.errors import UserError

DIMENSIONS = {
    "tpu-v4-podslice": 3,
    "tpu-v5-lite-podslice": 2,
    "tpu-v5p-slice": 3,
    "tpu-v6e-slice": 2,
    "tpu7x": 3,
}
"""Values of GKE's node label ``gke-tpu-accelerator`` and the dimensions of their topologies."""

CHIPS_PER_HOST = 4
"""Of every GKE machine type that belongs to slices of several hosts."""

RUNTIME_VERSIONS = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""Software of Cloud TPU VMs by generation, the first part of an accelerator type."""


def is_tpu(accelerator: str) -> bool:
    """Whether a GKE accelerator is a TPU; `UserError` if it is neither a TPU nor a GPU."""
    if accelerator in DIMENSIONS:
        return True
    if accelerator.startswith("nvidia-"):
        return False
    known = ", ".join(DIMENSIONS)
    raise UserError(
        f"--accelerator={accelerator} is not a GKE accelerator; set one of {known} with "
        "--topology, or the GPU of the node pool, such as nvidia-h100-80gb"
    )


def hosts_per_slice(
    accelerator: str, topology: str, chips_per_host: int | None = None
) -> tuple[int, int]:
    """Hosts of one slice and chips of one host; `UserError` if the topology does not fit.

    The default is four chips per host, or all of them in a smaller slice.
    """
    dimensions = DIMENSIONS[accelerator]
    example = "4x4" if dimensions == 2 else "2x2x4"
    sides = topology.split("x")
    if len(sides) != dimensions or not all(re.fullmatch("[1-9][0-9]*", side) for side in sides):
        raise UserError(
            f"--topology={topology} must have {dimensions} dimensions for {accelerator}; for "
            f"example, set --topology={example}"
        )
    chips = math.prod(map(int, sides))
    per_host = chips_per_host or min(CHIPS_PER_HOST, chips)
    if chips % per_host:
        raise UserError(
            f"--topology={topology} has {chips} chips, not a multiple of {per_host} chips per "
            "host; set --chips-per-host to the number of chips of the node pool's machine type"
        )
    return chips // per_host, per_host


def runtime_version(accelerator_type: str) -> str:
    """The default software of a queued resource; `UserError` for types that it cannot create."""
    generation = accelerator_type.partition("-")[0]
    if not re.fullmatch(r"v\w+-[1-9][0-9]*", accelerator_type):
        if re.match(r"(tpu)?v?[7-9]", accelerator_type):
            _refuse_newer(accelerator_type)
        raise UserError(
            f"--accelerator={accelerator_type} is not a Cloud TPU type; for example, set "
            "--accelerator=v6e-8"
        )
    if generation not in RUNTIME_VERSIONS:
        _refuse_newer(accelerator_type)
    return RUNTIME_VERSIONS[generation]


def _refuse_newer(accelerator_type: str) -> None:
    known = ", ".join(RUNTIME_VERSIONS)
    raise UserError(
        f"--accelerator={accelerator_type}: queued resources exist for {known} only; use "
        "--kind=gke, for example with --accelerator=tpu7x --topology=2x2x4"
    )
