"""Google Kubernetes Engine: a JobSet on TPU slices or GPU nodes.

Of JobSet's and Kubernetes' failure policies, this program uses two rules. A Job fails at once if a
container exits with a final code (2, 3 or 4) or if its pod is disrupted (host maintenance,
preemption); the JobSet tells the two apart by the Job's message. It fails for good after the
first, and restarts as a whole, uncounted, after the second. Any other failure restarts the whole
JobSet and counts towards ``maxRestarts``. Rules on messages need JobSet 0.10.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retina_jax.errors import DONE, CommandError, RunError, UserError
from retina_jax.launch import accelerators, codes, mounts, tools
from retina_jax.launch.command import check_workdir, digest, kubernetes_arguments
from retina_jax.launch.jobset_status import LAUNCH, Pods, State, exit_code
from retina_jax.launch.log_lines import LogLines
from retina_jax.wording import counted

if TYPE_CHECKING:
    from retina_jax.progress import Reporter

CONTAINER, REPLICATED_JOB = "main", "slice"
COORDINATOR_PORT = 8476
_LONGEST_NAME = 40
"""Pods are named NAME-slice-SLICE-HOST-RANDOM; a label holds at most 63 characters."""
_OF_JOBSET = "jobset.sigs.k8s.io/jobset-name"


@dataclasses.dataclass(frozen=True)
class Job:
    """A JobSet and the command that its pods run."""

    name: str
    words: Sequence[str]
    """The command, without the program's name."""
    image: str
    accelerator: str
    """The value of GKE's node label ``gke-tpu-accelerator`` or ``gke-accelerator``."""
    topology: str | None = None
    slices: int | None = None
    chips_per_host: int | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    queue: str | None = None
    namespace: str | None = None
    service_account: str | None = None
    spot: bool = False
    mounts: Sequence[str] = ()
    """``CLAIM:/PATH`` of persistent volume claims, ``gs://BUCKET:/PATH`` of buckets."""
    max_restarts: int = 20
    grace_period: int = 300

    def __post_init__(self):
        if (
            not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", self.name)
            or len(self.name) > _LONGEST_NAME
        ):
            raise UserError(
                f"--name={self.name} must have at most {_LONGEST_NAME} characters: lower-case "
                "letters, digits and -, a letter first; for example, set --name=retina-r50"
            )
        mounts.check_gke(self.mounts)
        self.shape()
        check_workdir(self.words, "gke", mounts.paths(self.mounts))

    def shape(self) -> tuple[int, int, int]:
        """Jobs (slices), hosts of each, and accelerators of each host."""
        if accelerators.is_tpu(self.accelerator):
            for flag in ("nodes", "gpus_per_node"):
                _refuse(self, flag, "a GPU")
            if self.topology is None:
                raise UserError(
                    f"--accelerator={self.accelerator} needs the topology of the node pool; for "
                    "example, set --topology=4x4 or --topology=2x2x4"
                )
            hosts, chips = accelerators.hosts_per_slice(
                self.accelerator, self.topology, self.chips_per_host
            )
            return self.slices or 1, hosts, chips
        for flag in ("topology", "slices", "chips_per_host"):
            _refuse(self, flag, "a TPU")
        return 1, self.nodes or 1, self.gpus_per_node or 8

    @property
    def hosts(self) -> int:
        slices, hosts, _ = self.shape()
        return slices * hosts

    def manifest(self) -> dict:
        """The JobSet (``jobset.x-k8s.io/v1alpha2``)."""
        slices, hosts, _ = self.shape()
        annotations = {LAUNCH: digest(dataclasses.asdict(self))}
        if accelerators.is_tpu(self.accelerator):
            annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = (
                "cloud.google.com/gke-nodepool"
            )
        metadata = {"name": self.name, "annotations": annotations}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if self.queue:
            metadata["labels"] = {"kueue.x-k8s.io/queue-name": self.queue}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "failurePolicy": {
                    "maxRestarts": self.max_restarts,
                    "rules": [
                        {
                            "name": "finalExitCode",
                            "action": "FailJobSet",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                            "onJobFailureMessagePatterns": ["failed with exit code [0-9]+"],
                        },
                        {
                            "name": "disruption",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                            "onJobFailureMessagePatterns": ["has condition DisruptionTarget"],
                        },
                    ],
                },
                "replicatedJobs": [
                    {
                        "name": REPLICATED_JOB,
                        "replicas": slices,
                        "template": {
                            "spec": {
                                "parallelism": hosts,
                                "completions": hosts,
                                "completionMode": "Indexed",
                                "backoffLimit": 0,
                                "podFailurePolicy": {"rules": _pod_failure_rules()},
                                "template": self._pod_template(),
                            }
                        },
                    }
                ],
            },
        }

    def _pod_template(self) -> dict:
        template = {"spec": self._pod()}
        if any(mount.startswith(mounts.BUCKET) for mount in self.mounts):
            template["metadata"] = {"annotations": mounts.FUSE_ANNOTATION}
        return template

    def _pod(self) -> dict:
        tpu = accelerators.is_tpu(self.accelerator)
        _, _, per_host = self.shape()
        resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
        labels = "tpu-accelerator" if tpu else "accelerator"
        selector = {f"cloud.google.com/gke-{labels}": self.accelerator}
        tolerations = [{"key": resource, "operator": "Exists"}]
        if tpu:
            selector["cloud.google.com/gke-tpu-topology"] = self.topology
        if self.spot:
            selector["cloud.google.com/gke-spot"] = "true"
            tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
        # Grain's worker processes need more than the 64 MiB that a container has by default
        volumes = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
        places = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        for i, path in enumerate(mounts.paths(self.mounts)):
            volumes.append(mounts.pod_volume(f"mount-{i}", self.mounts[i], as_root=tpu))
            places.append({"name": f"mount-{i}", "mountPath": path})
        container = {
            "name": CONTAINER,
            "image": self.image,
            "args": kubernetes_arguments(self.words),
            "env": self._environment(),
            "resources": {"requests": {resource: per_host}, "limits": {resource: per_host}},
            "volumeMounts": places,
        }
        if tpu:  # the device files of the TPU belong to root; the image's user cannot open them
            container["securityContext"] = {"privileged": True, "runAsUser": 0}
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_period,
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "nodeSelector": selector,
            "tolerations": tolerations,
            "containers": [container],
            "volumes": volumes,
        }
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        return pod

    def _environment(self) -> list[dict]:
        """On TPUs, GKE itself tells JAX the peers; with GPUs, these variables do.

        With ``JAX_PLATFORMS``, an accelerator that fails to start is an error; without it, JAX
        would train on the CPU.
        """
        if accelerators.is_tpu(self.accelerator):
            return [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}]
        first = f"{self.name}-{REPLICATED_JOB}-0-0.{self.name}"
        # $(JOB_COMPLETION_INDEX) would stay as it is: Kubernetes adds that variable after these
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        return [
            {"name": "JAX_PLATFORMS", "value": "cuda,cpu"},
            {"name": "RETINA_JAX_COORDINATOR", "value": f"{first}:{COORDINATOR_PORT}"},
            {"name": "RETINA_JAX_NUM_PROCESSES", "value": str(self.hosts)},
            {"name": "RETINA_JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]

    def dry_run(self) -> str:
        """The manifest as YAML, for ``kubectl create -f -``."""
        import yaml

        return yaml.safe_dump(self.manifest(), sort_keys=False, width=100)

    def _kubectl(self, *arguments: str) -> list[str]:
        return ["kubectl", *arguments, *([f"--namespace={self.namespace}"] * bool(self.namespace))]

    def run(self, report: Reporter, poll: float, keep: bool) -> int:
        """Submits the JobSet or attaches to it, follows its logs, deletes it.

        Returns the exit code of the command.
        """
        state = State.of(self._get())
        if state and state.digest != self.manifest()["metadata"]["annotations"][LAUNCH]:
            raise UserError(
                f"JobSet {self.name} exists and was created by another command; set another "
                f"--name, or delete it with {self._how_to_delete()}"
            )
        if state and state.ended:
            self._delete(report)
            state = None
        try:
            if state:
                report.say(f"JobSet {self.name} exists; following it")
            else:
                tools.run(self._kubectl("create", "-f", "-"), self.dry_run())
                state = True
                report.say(f"created JobSet {self.name}: {counted(self.hosts, 'host')}")
            code = self._follow(report, poll)
        except (KeyboardInterrupt, tools.Terminated):
            self._clean_up(report, keep)
            raise
        except CommandError:
            if state:
                how = self._how_to_delete()
                report.note(f"JobSet {self.name} was not deleted; delete it with {how}")
            raise
        self._clean_up(report, keep)
        return code

    def _how_to_delete(self) -> str:
        return tools.printed(self._kubectl("delete", "jobset", self.name))

    def _clean_up(self, report: Reporter, keep: bool) -> None:
        if keep:
            report.say(f"kept JobSet {self.name}; delete it with {self._how_to_delete()}")
        else:
            self._delete(report)

    def _delete(self, report: Reporter) -> None:
        with tools.undisturbed():
            tools.run(self._kubectl("delete", "jobset", self.name, "--ignore-not-found"))
        report.say(f"deleted JobSet {self.name}")

    def _get(self) -> str:
        return tools.run(
            self._kubectl("get", "jobset", self.name, "--ignore-not-found", "--output=json")
        )

    def _parts(self, kinds: str) -> list[dict]:
        arguments = ("get", kinds, f"--selector={_OF_JOBSET}={self.name}", "--output=json")
        return json.loads(tools.run(self._kubectl(*arguments)))["items"]

    def _follow(self, report: Reporter, poll: float) -> int:
        logs, lines, shown, restarts = None, LogLines(), "", 0
        try:
            while True:
                state = State.of(tools.patiently(self._get, poll))
                if state is None:
                    raise RunError(
                        f"JobSet {self.name} was deleted; run the same command to start it"
                    )
                if state.restarts != restarts:
                    restarts = state.restarts
                    report.say(f"JobSet {self.name}: restart {restarts}")
                if state.ended:
                    break
                if logs and logs.code() is not None:
                    logs = None
                if logs is None:
                    pods = Pods(tools.patiently(lambda: self._parts("pods"), poll))
                    if (line := pods.describe(self.hosts)) != shown:
                        shown = line
                        report.say(f"JobSet {self.name}: {line}")
                    if pods.started:
                        logs = tools.Followed(self._logs("--follow"), lines.new)
                time.sleep(poll)
            if logs is None or logs.code():  # it ended, or the connection did, between two looks
                logs = tools.Followed(self._logs(), lines.new)
            logs.finish(30)
        finally:
            if logs:
                logs.stop()
        if state.completed:
            report.say(f"JobSet {self.name}: completed")
            return DONE
        code = exit_code(self._parts("pods,jobs"))
        report.note(f"JobSet {self.name} failed: {state.message} (exit code {code})", "stopped")
        return code

    def _logs(self, *how: str) -> list[str]:
        """All lines, each time: `LogLines` leaves out those that were there before."""
        return self._kubectl(
            "logs",
            f"--selector={_OF_JOBSET}={self.name}",
            f"--container={CONTAINER}",
            "--prefix",
            "--timestamps",
            "--tail=-1",
            f"--max-log-requests={self.hosts}",
            *how,
        )


def _refuse(job: Job, flag: str, of: str) -> None:
    value = getattr(job, flag)
    if value is not None:
        spelt = flag.replace("_", "-")
        raise UserError(
            f"--{spelt}={value} is for {of}, not for --accelerator={job.accelerator}; remove it"
        )


def _pod_failure_rules() -> list[dict]:
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": CONTAINER,
                "operator": "In",
                "values": list(codes.FINAL_FAILURES),
            },
        },
        {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
