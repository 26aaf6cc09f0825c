"""Run a command on Cloud TPUs, GKE or SLURM, and restart it after preemptions and faults.

usage: retina-jax launch --kind=gke --image=IMAGE --accelerator=tpu-v6e-slice --topology=4x4
           --mount=CLAIM:/PATH [flags] -- COMMAND [command's flags]
       retina-jax launch --kind=queued-resource --image=IMAGE --accelerator=v6e-8 --zone=ZONE
           --mount=HOST:/EXPORT:/PATH [flags] -- COMMAND [command's flags]
       retina-jax launch --kind=slurm --nodes=2 --gpus-per-node=8 [flags] -- COMMAND
           [command's flags]

After -- comes the command as you would run it on your own machine, such as

    train --config=experiments/coco.py --config.data.dir=DATA --workdir=DIR

--workdir and --data-dir before the -- replace those of the command. The launcher submits the job,
prints its logs, and deletes it at the end or on Ctrl-C, unless --keep is set. If the job still
exists, the same launch command reattaches to it. --dry-run prints what would be submitted: the
manifest for kubectl create -f -, the gcloud commands as a shell script, or the script for sbatch.

The job is done if the command exits with code 0. Codes 2, 3 and 4 also end it, because a restart
would end the same way. Any other code, such as 1 (a fault) or 143 (SIGTERM), restarts it on all
hosts, at most --max-restarts times; preemptions and maintenance do not count. A training run
resumes from its workdir, which must therefore outlive the machines. The workdir is either a
gs://BUCKET/FOLDER address or a folder. On GKE and TPU VMs, the folder must be below a --mount; on
SLURM, it must be on a disk that all nodes see. --config.data.dir may be a gs:// address, too; each
host then copies the data set to its disk. For gs:// addresses, the service account of the TPU VMs
(on GKE, that of the node pool) must have access to the Cloud Storage bucket. The image is built
with scripts/cluster/Dockerfile.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from retina_jax.config.flags import ArgumentParser
from retina_jax.errors import DONE, UserError

if TYPE_CHECKING:
    from retina_jax.launch import gke, queued_resource, slurm

GKE, QUEUED, SLURM = "gke", "queued-resource", "slurm"
_TYPES = {"number": int, "seconds": int}
FLAGS = (
    ("image", "IMAGE", (GKE, QUEUED, SLURM), "container image; optional with slurm (Pyxis)"),
    ("accelerator", "TYPE", (GKE, QUEUED), "on GKE, the accelerator in the node label, such as "
     "tpu-v6e-slice, tpu7x or nvidia-h100-80gb; for a queued resource, the accelerator type, such "
     "as v6e-8"),
    ("topology", "AxB[xC]", (GKE,), "TPU topology of a slice, such as 4x4"),
    ("slices", "number", (GKE, QUEUED), "number of TPU slices (default: 1)"),
    ("chips-per-host", "number", (GKE,), "TPU chips per host (default: 4, or all chips of a "
     "smaller slice)"),
    ("nodes", "number", (GKE, SLURM), "number of nodes (default: 1)"),
    ("gpus-per-node", "number", (GKE, SLURM), "GPUs per node (default: 8 on GKE, none on SLURM)"),
    ("queue", "QUEUE", (GKE,), "local queue of Kueue"),
    ("namespace", "NAMESPACE", (GKE,), "Kubernetes namespace (default: kubectl's)"),
    ("service-account", "ACCOUNT", (GKE, QUEUED), "Kubernetes service account of the pods, or "
     "service account of the TPU VMs; --mount=gs://BUCKET:/PATH needs one that can read and write "
     "the bucket's objects"),
    ("mount", "SOURCE:PATH", (GKE, QUEUED, SLURM), "shared folder to mount at PATH in the "
     "container; may be repeated; on GKE, a persistent volume claim (CLAIM:/PATH) or a Cloud "
     "Storage bucket (gs://BUCKET:/PATH); for a queued resource, an NFS export such as Filestore's "
     "(HOST:/EXPORT:/PATH); on SLURM, with --image, a folder (FOLDER:/PATH)"),
    ("runtime-version", "VERSION", (QUEUED,), "version of the TPU software (default: the one "
     "for the TPU generation)"),
    ("reserved", "", (QUEUED,), "use a reservation"),
    ("spot", "", (GKE, QUEUED), "use spot capacity"),
    ("valid-until", "DURATION", (QUEUED,), "give up if there is no capacity within this time, such "
     "as 6h"),
    ("project", "PROJECT", (QUEUED,), "Google Cloud project (default: gcloud's)"),
    ("zone", "ZONE", (QUEUED,), "Google Cloud zone (default: gcloud's)"),
    ("partition", "PARTITION", (SLURM,), "SLURM partition"),
    ("account", "ACCOUNT", (SLURM,), "SLURM account"),
    ("time", "TIME", (SLURM,), "time limit of the job, after which it is queued again"),
    ("grace-period", "seconds", (GKE, SLURM), "time between SIGTERM and SIGKILL, for saving "
     "a checkpoint (default: 300)"),
)  # fmt: skip
"""Flags that only some kinds have: name, metavar, kinds, help."""
REQUIRED = {
    GKE: {"image": "REGION-docker.pkg.dev/PROJECT/REPOSITORY/retina_jax", "accelerator": "tpu7x"},
    QUEUED: {"image": "REGION-docker.pkg.dev/PROJECT/REPOSITORY/retina_jax",
             "accelerator": "v6e-8"},
    SLURM: {},
}  # fmt: skip


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own flags, and the words after ``--``."""
    parser = ArgumentParser(prog="retina-jax launch", description=__doc__)
    parser.add_argument(
        "--kind", choices=(GKE, QUEUED, SLURM), required=True, help="where the job runs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument("--keep", action="store_true", help="do not delete the job at the end")
    parser.add_argument(
        "--name", help="name of the job (default: retina-jax-HASH, from the command and the flags)"
    )
    parser.add_argument("--workdir", help="replaces the --workdir of the command")
    parser.add_argument("--data-dir", help="replaces the --config.data.dir of the command")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=20,
        metavar="NUMBER",
        help="maximum number of restarts after faults (default: %(default)s)",
    )
    parser.add_argument(
        "--poll",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="seconds between checks of the job (default: %(default)g)",
    )
    for name, metavar, kinds, meaning in FLAGS:
        options = {"help": f"{', '.join(kinds)}: {meaning}"}
        if not metavar:
            options |= {"action": "store_true", "default": None}
        elif name == "mount":
            options |= {"action": "append", "metavar": metavar}
        else:
            options |= {"type": _TYPES.get(metavar, str), "metavar": metavar.upper()}
        parser.add_argument(f"--{name}", **options)
    own, words = argv, []
    if "--" in argv:
        own, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    options = parser.parse_args(own)
    _check(options)
    return options, _command(options, words)


def _check(options: argparse.Namespace) -> None:
    """`UserError` for flags that the kind lacks or does not have, and for numbers below 1."""
    for name, _, kinds, _ in FLAGS:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and options.kind not in kinds:
            raise UserError(f"--{name} is not a flag of --kind={options.kind}; remove it")
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name}={value} must be at least 1; set --{name}=1 or remove it")
    if options.max_restarts < 0:
        raise UserError(
            f"--max-restarts={options.max_restarts} must be 0 or more; set --max-restarts=0"
        )
    if not options.poll > 0:
        raise UserError(f"--poll={options.poll:g} must be above 0; set --poll=15")
    for name, example in REQUIRED[options.kind].items():
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; set --{name}={example}")


def _command(options: argparse.Namespace, words: list[str]) -> list[str]:
    """The command to run, with the paths that the flags replace; `UserError` if it is none."""
    from retina_jax.launch.command import DATA_DIR, WORKDIR, check_address, flag_value, with_flag
    from retina_jax.main import read_command

    if words[:1] == ["retina-jax"]:
        words = words[1:]
    example = "-- train --config=experiments/coco.py --workdir=DIR"
    if not words:
        raise UserError(f"the command to run is missing; append it after --, such as {example}")
    name, _ = read_command(words)
    if name in (None, "launch"):
        raise UserError(
            f"{' '.join(words)!r} cannot be launched; append a command such as {example}"
        )
    for own, flag in (("workdir", WORKDIR), ("data-dir", DATA_DIR)):
        value = getattr(options, own.replace("-", "_"))
        if value:
            check_address(f"--{own}", value)
            words = with_flag(words, flag, value)
        else:
            check_address(f"--{flag}", flag_value(words, flag) or "")
    return words


def job(options: argparse.Namespace, words: list[str]) -> gke.Job | queued_resource.Job | slurm.Job:
    """The job that ``options`` describe; `UserError` where they contradict each other."""
    from retina_jax.launch import gke, queued_resource, slurm
    from retina_jax.launch.command import digest

    own = {"max_restarts": options.max_restarts}
    for flag, _, kinds, _ in FLAGS:
        name = flag.replace("-", "_")
        if options.kind in kinds and getattr(options, name) is not None:
            own[{"mount": "mounts"}.get(name, name)] = getattr(options, name)
    own["name"] = options.name or f"retina-jax-{digest([options.kind, own, words])}"
    if options.kind == GKE:
        return gke.Job(words=words, **own)
    if options.kind == QUEUED:
        return queued_resource.Job(words=words, **own)
    program = ["retina-jax"] if options.image else [sys.executable, "-m", "retina_jax.main"]
    return slurm.Job(words=[*program, *words], **own)


def main(argv: list[str]) -> int:
    options, words = parse(argv)
    launched = job(options, words)
    if options.dry_run:
        print(launched.dry_run(), end="")
        return DONE
    from retina_jax.launch.tools import stopped_by_signals
    from retina_jax.progress import Reporter

    with stopped_by_signals():
        return launched.run(Reporter.on_stderr(), options.poll, options.keep)
