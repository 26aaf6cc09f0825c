"""Shared folders of pods; `test_queued_resource` has those of TPU VMs."""

import pytest

TPU = ("--kind=gke", "--image=i", "--accelerator=tpu-v6e-slice", "--topology=4x4",
       "--mount=c:/runs")  # fmt: skip
GPU = ("--kind=gke", "--image=i", "--accelerator=nvidia-l4", "--mount=c:/runs")


def template(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def volumes(found):
    """Volumes of the pod by the path at which its container sees them."""
    pod = template(found)["spec"]
    named = {volume.pop("name"): volume for volume in pod["volumes"]}
    (container,) = pod["containers"]
    return {mount["mountPath"]: named[mount["name"]] for mount in container["volumeMounts"]}


def test_claims_are_volumes(manifest):
    found = manifest(*TPU, "--mount=data.v2:/data")
    assert "metadata" not in template(found)
    assert volumes(found) == {
        "/dev/shm": {"emptyDir": {"medium": "Memory"}},
        "/runs": {"persistentVolumeClaim": {"claimName": "c"}},
        "/data": {"persistentVolumeClaim": {"claimName": "data.v2"}},
    }


@pytest.mark.parametrize(
    ("flags", "owner"), [(TPU, ""), (GPU, ",uid=1000,gid=1000")], ids=["TPU", "GPU"]
)
def test_buckets_are_mounted_for_the_user_of_the_container(flags, owner, manifest):
    words = ["train", "--workdir=/bucket/r50", "--config.data.dir=/bucket/data"]
    found = manifest(*flags, "--service-account=s", "--mount=gs://my_b.1:/bucket", words=words)
    assert template(found)["metadata"] == {"annotations": {"gke-gcsfuse/volumes": "true"}}
    assert template(found)["spec"]["serviceAccountName"] == "s"
    assert volumes(found)["/bucket"] == {
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {
                "bucketName": "my_b.1",
                "mountOptions": f"implicit-dirs,rename-dir-limit=200000{owner}",
                "hostNetworkPodKSA": "true",
            },
        }
    }
    (container,) = template(found)["spec"]["containers"]
    user = container.get("securityContext", {}).get("runAsUser")
    assert user == (0 if not owner else None), "the image's own user"
