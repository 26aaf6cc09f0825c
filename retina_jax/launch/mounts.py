"""Shared folders in a job's container: volume claims, buckets and NFS exports.

A mount is written ``SOURCE:/PATH``. SLURM's mounts go to its container plugin as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from retina_jax.errors import UserError

IMAGE_USER = 1000
"""The user of ``scripts/cluster/Dockerfile``."""
BUCKET = "gs://"
FUSE_ANNOTATION = {"gke-gcsfuse/volumes": "true"}
"""Makes GKE add Cloud Storage FUSE to a pod."""
_ON_GKE = r"(gs://[a-z0-9][-_.a-z0-9]*|[a-z0-9]([-a-z0-9.]*[a-z0-9])?):/[^:]+"
_ON_TPU_VM = r"[A-Za-z0-9][-.A-Za-z0-9]*:/(?!/)[^:]*:/[^:]+"
# Without a hierarchical namespace, a bucket renames no folder unless a limit is set, and a
# checkpoint is complete once its folder has its name.
_FUSE_OPTIONS = "implicit-dirs,rename-dir-limit=200000"
# The lock daemon of NFS 3 does not run on TPU VMs; NFS 3 is what every Filestore tier offers.
_NFS_OPTIONS = "nfsvers=3,nolock,hard"


def check_gke(mounts: Sequence[str]) -> None:
    """`UserError` unless each mount is ``CLAIM:/PATH`` or ``gs://BUCKET:/PATH``."""
    for mount in mounts:
        if not re.fullmatch(_ON_GKE, mount):
            raise UserError(
                f"--mount={mount} must be a volume claim or a bucket, and a path in the container, "
                "such as --mount=CLAIM:/runs or --mount=gs://BUCKET:/runs"
            )


def check_nfs(mounts: Sequence[str]) -> None:
    """`UserError` unless each mount is ``HOST:/EXPORT:/PATH``."""
    for mount in mounts:
        if not re.fullmatch(_ON_TPU_VM, mount):
            raise UserError(
                f"--mount={mount} must be an NFS export and a path in the container, such as "
                "--mount=HOST:/EXPORT:/runs"
            )


def paths(mounts: Sequence[str]) -> list[str]:
    """The paths in the container."""
    return [mount.rpartition(":")[2] for mount in mounts]


def pod_volume(name: str, mount: str, as_root: bool) -> dict:
    """A pod's volume of a claim or bucket, writable for the container's user.

    Buckets are mounted by Cloud Storage FUSE as CSI ephemeral volumes
    (cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-ephemeral).
    """
    source = mount.rpartition(":")[0]
    if not source.startswith(BUCKET):
        return {"name": name, "persistentVolumeClaim": {"claimName": source}}
    owner = "" if as_root else f",uid={IMAGE_USER},gid={IMAGE_USER}"
    attributes = {
        "bucketName": source.removeprefix(BUCKET),
        "mountOptions": _FUSE_OPTIONS + owner,
        # on the host's network, a pod has the rights of its node unless it asks for its own
        "hostNetworkPodKSA": "true",
    }
    csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    return {"name": name, "csi": csi}


def docker_mount(mount: str) -> str:
    """The value of ``docker run --mount``, a line of CSV, for an NFS export."""
    host, export, path = mount.split(":")
    fields = [
        "type=volume",
        f"dst={path}",
        "volume-nocopy=true",  # else Docker fills an empty export from the image
        "volume-driver=local",
        "volume-opt=type=nfs",
        f"volume-opt=o=addr={host},{_NFS_OPTIONS}",
        f"volume-opt=device=:{export}",
    ]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
