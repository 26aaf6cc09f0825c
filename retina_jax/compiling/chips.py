"""TPU chips: published peaks, the memory that XLA may use, and the names of slices."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re

from retina_jax import parallel
from retina_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: a chip, or one of the two halves of a TPU7x chip."""

    tflops: float
    """Published peak, 10¹² bfloat16 operations per second."""
    gbps: float
    """Published HBM bandwidth, 10⁹ bytes per second."""
    hbm: float
    """HBM that libtpu lets a program use, GiB (from its messages; less than the chip has)."""
    source: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Options of libtpu's description of a slice."""
    example: str = "2x2x1"


_DOCS = "cloud.google.com/tpu/docs/"
CHIPS = {
    # both TensorCores as one device, as on a TPU VM
    "v4": Chip(275, 1200, 30.75, _DOCS + "v4", {"chip_config_name": "megacore"}),
    "v5e": Chip(197, 819, 15.75, _DOCS + "v5e"),
    "v5p": Chip(459, 2765, 95.74, _DOCS + "v5p"),
    "v6e": Chip(918, 1638, 31.25, _DOCS + "v6e"),
    # published per chip: 2307 TFLOP/s, 7380 GB/s
    "tpu7x": Chip(2307 / 2, 7380 / 2, 94.75, _DOCS + "tpu7x"),
}
SPELLINGS = ", ".join(f"{kind}:{chip.example}" for kind, chip in CHIPS.items())


def chip_of(topology: str) -> Chip:
    """The chip of a slice such as ``v5e:2x2x1``; `UserError` for any other spelling."""
    match = re.fullmatch(r"(\w+):\d+x\d+(x\d+)?", topology)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"--topology={topology} is not a TPU slice; write KIND:AxB or KIND:AxBxC, "
            f"for example {SPELLINGS}"
        )
    return CHIPS[match[1]]


def open_slice(topology: str) -> parallel.AbsentSlice:
    """The devices of a slice; `UserError` if there is no such slice, or no libtpu."""
    chip = chip_of(topology)
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise UserError(
            "compiling for a TPU needs libtpu, even on a machine without a TPU; "
            "install it with: pip install 'retina_jax[tpu]'"
        )
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    options: dict[str, object] = dict(chip.options)
    if 1 in sides[:2]:  # part of a host, which has 2x2 chips
        options["chips_per_host_bounds"] = (min(2, sides[0]), min(2, sides[1]), 1)
    try:
        return parallel.AbsentSlice.named(topology, **options)
    except Exception as error:  # libtpu's own, of several types
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={topology}: {reason}; valid shapes include {SPELLINGS}"
        ) from error
