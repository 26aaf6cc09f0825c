"""JobSets: the manifest, and a launch against a kubectl that plays the cluster."""

import copy
import json
import re
import signal
import subprocess
import sys

import pytest
import yaml

models = pytest.importorskip("kubeflow_trainer_api.models")

TPU = ("--kind=gke", "--image=i", "--accelerator=tpu-v6e-slice", "--topology=4x4", "--slices=2",
       "--mount=c:/runs", "--name=run")  # fmt: skip
GPU = ("--kind=gke", "--image=i", "--accelerator=nvidia-h100-80gb", "--nodes=3",
       "--mount=c:/runs", "--name=run")  # fmt: skip
COMMAND = ["train", "--config=experiments/coco.py", "--workdir=/runs/r50"]
ODD = ["train", "--workdir=/runs/my run", "--a='b' \"c\" $HOME $(HOME) $$ \\ *", "", "--x=ä\ny: -"]


def job_spec(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]


def container(found):
    return job_spec(found)["template"]["spec"]["containers"][0]


def differences(manifest):
    """Where the published model of a JobSet does not give ``manifest`` back, or None."""
    read = models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest))
    back = json.loads(json.dumps(read.to_dict()))
    return None if back == manifest else back


@pytest.mark.parametrize(
    "flags",
    [
        TPU, GPU,
        (*TPU, "--queue=q", "--namespace=n", "--service-account=s", "--spot", "--mount=c:/data"),
        (*GPU, "--queue=q", "--spot", "--mount=gs://b:/data"),
    ],
    ids=["TPU", "GPU", "TPU with all flags", "GPU with flags"],
)  # fmt: skip
def test_the_published_model_accepts_every_field(flags, manifest):
    found = manifest(*flags)
    assert differences(found) is None
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_the_published_model_sees_a_field_that_does_not_exist(manifest):
    for path in (("spec", "failurePolicy"), ("spec", "network"), ("metadata",)):
        broken = manifest(*TPU)
        place = broken
        for step in path:
            place = place[step]
        place["maxRestart"] = 3
        assert differences(broken) is not None
    broken = manifest(*TPU)
    container(broken)["imagee"] = "i"
    assert differences(broken) is not None
    broken = manifest(*TPU)
    job_spec(broken)["parallelism"] = "four"
    with pytest.raises(ValueError, match="parallelism"):
        differences(broken)


def test_a_tpu_slice(manifest):
    found = manifest(*TPU, "--queue=q")
    (replicated,) = found["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    spec = job_spec(found)
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container(found)["resources"]["limits"] == {"google.com/tpu": 4}
    assert container(found)["args"] == COMMAND
    names = [variable["name"] for variable in container(found)["env"]]
    assert not any(name.startswith("RETINA_JAX") for name in names), "JAX asks GKE"
    metadata = found["metadata"]
    assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    annotation = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert metadata["annotations"][annotation] == "cloud.google.com/gke-nodepool"


def test_gpu_nodes_meet_at_the_first_pod(manifest):
    found = manifest(*GPU, "--gpus-per-node=4")
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert job_spec(found)["completions"] == 3
    assert container(found)["resources"]["limits"] == {"nvidia.com/gpu": 4}
    variables = {v["name"]: v for v in container(found)["env"]}
    assert variables["RETINA_JAX_COORDINATOR"]["value"] == "run-slice-0-0.run:8476"
    assert variables["RETINA_JAX_NUM_PROCESSES"]["value"] == "3"
    path = variables["RETINA_JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert "securityContext" not in container(found)
    assert "exclusive-topology" not in str(found)


def job_failure(spec, pod_exit=None, disrupted=False):
    """Reason and message of a Job with one failed pod, as Kubernetes' job controller gives them."""
    for i, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        if codes := rule.get("onExitCodes"):
            assert (codes["operator"], codes["containerName"]) == ("In", "main")
            if pod_exit in codes["values"]:
                failed = f"Container main for pod n/p failed with exit code {pod_exit}"
                return "PodFailurePolicy", f"{failed} matching FailJob rule at index {i}"
        elif (
            disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]
        ):
            has = "Pod n/p has condition DisruptionTarget"
            return "PodFailurePolicy", f"{has} matching FailJob rule at index {i}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action(found, reason, message):
    """What JobSet does after a Job's failure: the first rule that fits, else a counted restart."""
    for rule in found["spec"]["failurePolicy"]["rules"]:
        fits = any(re.search(p, message) for p in rule["onJobFailureMessagePatterns"])
        if reason in rule["onJobFailureReasons"] and fits:
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "expected"),
    [
        (1, False, "RestartJobSet"), (143, False, "RestartJobSet"), (134, False, "RestartJobSet"),
        (137, False, "RestartJobSet"),
        (2, False, "FailJobSet"), (3, False, "FailJobSet"), (4, False, "FailJobSet"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (2, True, "FailJobSet"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flags", [TPU, GPU], ids=["TPU", "GPU"])
def test_exit_codes_restart_or_end_the_jobset(flags, code, disrupted, expected, manifest):
    found = manifest(*flags)
    assert action(found, *job_failure(job_spec(found), code, disrupted)) == expected


def test_the_command_survives_yaml_and_kubernetes(manifest):
    from test_launch import expanded

    arguments = container(manifest(*TPU, words=ODD))["args"]
    assert [expanded(argument, {"HOME": "wrong"}) for argument in arguments] == ODD


def jobset(*conditions, restarts=0, digest=None):
    """The answer of ``kubectl get jobset``."""
    status = {"restarts": restarts, "conditions": [
        {"type": kind, "status": "True", "message": f"{kind}: why"} for kind in conditions
    ]}  # fmt: skip
    return json.dumps({"metadata": {"annotations": {"retina-jax/launch": digest}},
                       "status": status})  # fmt: skip


def pods(*phases, **status):
    return json.dumps({"items": [{"status": {"phase": phase, **status}} for phase in phases]})


@pytest.fixture
def digest(manifest):
    def digest(*flags):
        return manifest(*flags)["metadata"]["annotations"]["retina-jax/launch"]

    return digest


def test_a_run_is_submitted_followed_and_deleted(tools, launch, digest):
    own = digest(*GPU)
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    unschedulable = {"conditions": [{**waits, "message": "0/3 nodes"}]}
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset("Completed", digest=own), after=("logs", 2))
    tools.says("get jobset", jobset(digest=own))
    tools.says("get pods", pods("Running", "Running", "Pending", **unschedulable), times=1)
    tools.says("get pods", pods("Running", "Running", "Running"))
    first = "[pod/run/main] 2026-11-27T01:02:03.5Z step 1\n"
    tools.says("logs", first, times=1)
    tools.says("logs", first + "[pod/run/main] 2026-11-27T01:02:03.512345678Z step 2\n")
    tools.says("delete")
    code, out, lines = launch(*GPU, "--namespace=n", "--", *COMMAND)
    assert (code, out) == (0, "[pod/run/main] step 1\n[pod/run/main] step 2\n"), lines
    assert lines[0] == "created JobSet run: 3 hosts"
    assert "JobSet run: 2 of 3 pods running; Unschedulable: 0/3 nodes" in lines
    assert lines[-2:] == ["JobSet run: completed", "deleted JobSet run"]
    assert all("--namespace=n" in call for call in tools.calls)
    assert yaml.safe_load(tools.stdin())["kind"] == "JobSet"
    first, *again = [call for call in tools.called("logs") if "--follow" in call]
    assert "--tail=-1" in first
    assert "--max-log-requests=3" in first
    assert again
    for call in again:  # no pod's first lines are missed, however late it starts
        assert "--tail=-1" in call


def test_a_short_run_shows_its_log(tools, launch, digest):
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset("Completed", digest=digest(*TPU)))
    tools.says("logs", "all of it\n")
    tools.says("delete")
    assert launch(*TPU, "--", *COMMAND)[:2] == (0, "all of it\n")


def test_what_a_lost_connection_missed_is_shown_at_the_end(tools, launch, digest):
    own = digest(*TPU)
    first = "[pod/run/main] 2026-11-27T01:02:03Z step 1\n"
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset("Completed", digest=own), after=("--follow", 1))
    tools.says("get jobset", jobset(digest=own))
    tools.says("get pods", pods("Running"))
    tools.says("--follow", first, err="error: connection reset\n", code=1)
    tools.says("logs", first + "[pod/run/main] 2026-11-27T01:02:04Z step 2\n")
    tools.says("delete")
    code, out, lines = launch(*TPU, "--", *COMMAND)
    assert code == 0, lines
    assert [line for line in out.splitlines() if "step" in line] == [
        "[pod/run/main] step 1", "[pod/run/main] step 2",
    ]  # fmt: skip


def test_a_preemption_is_followed_into_the_next_run(tools, launch, digest):
    own = digest(*TPU)
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset("Completed", restarts=1, digest=own), after=("logs", 2))
    preempted = jobset("StartupPolicyCompleted", restarts=1, digest=own)
    tools.says("get jobset", preempted, after=("logs", 1))
    tools.says("get jobset", jobset(digest=own))
    tools.says("get pods", pods("Running"))
    tools.says("logs", "before\n", times=1)
    tools.says("logs", "after\n", times=1)
    tools.says("logs")
    tools.says("delete")
    code, out, lines = launch(*TPU, "--", *COMMAND)
    assert (code, out) == (0, "before\nafter\n"), lines
    assert "JobSet run: restart 1" in lines
    assert len(tools.called("create")) == 1


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([134, 2], 2), ([4, 1], 4), ([3], 3), ([1, 1], 1),
        (["Container main for pod n/p failed with exit code 2 matching"], 2), ([], 1),
    ],
)  # fmt: skip
def test_a_failure_has_the_exit_code_of_the_command(items, expected, tools, launch, digest):
    def item(found):
        if isinstance(found, str):
            return {"status": {"conditions": [{"type": "Failed", "message": found}]}}
        ended = {"state": {"terminated": {"exitCode": found}}}
        return {"status": {"phase": "Failed", "containerStatuses": [ended]}}

    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset("Failed", digest=digest(*TPU)))
    tools.says("get pods,jobs", json.dumps({"items": [item(found) for found in items]}))
    tools.says("logs", "error: --config=x is wrong\n")
    tools.says("delete")
    code, out, lines = launch(*TPU, "--", *COMMAND)
    assert (code, out) == (expected, "error: --config=x is wrong\n")
    assert f"JobSet run failed: Failed: why (exit code {expected})" in " ".join(lines)
    assert lines[-1] == "deleted JobSet run"


def test_the_same_command_goes_on_with_its_jobset(tools, launch, digest):
    own = digest(*TPU)
    tools.says("get jobset", jobset(digest=own), times=2)
    tools.says("get pods", pods("Running"))
    tools.says("logs", "step 7\n")
    tools.says("get jobset", jobset("Completed", digest=own))
    code, _, lines = launch(*TPU, "--keep", "--", *COMMAND)
    assert code == 0
    assert lines[0] == "JobSet run exists; following it"
    assert lines[-1] == "kept JobSet run; delete it with kubectl delete jobset run"
    assert not tools.called("create")


def test_an_ended_jobset_is_replaced(tools, launch, digest):
    tools.says("get jobset", jobset("Failed", digest=digest(*TPU)), times=1)
    tools.says("delete")
    tools.says("create")
    tools.says("get jobset", jobset("Completed", digest=digest(*TPU)))
    tools.says("logs")
    assert launch(*TPU, "--", *COMMAND)[0] == 0
    assert [call[1] for call in tools.calls if call[1] in ("delete", "create")] == [
        "delete", "create", "delete"
    ]  # fmt: skip


def test_a_jobset_of_another_command_is_left_alone(tools, launch):
    tools.says("get jobset", jobset("Failed", digest="other"))
    code, _, (line,) = launch(*TPU, "--", *COMMAND)
    assert code == 2
    assert "JobSet run exists and was created by another command; set another --name" in line
    assert len(tools.calls) == 1


STEPS = {
    "get jobset": ("Unable to connect to the server: dial tcp: no such host", 2, "get-credentials"),
    "create": ('Error from server (Forbidden): jobsets.jobset.x-k8s.io is forbidden', 2,
               "kubectl create failed: Error from server (Forbidden)"),
    "get pods": ("Error from server: etcdserver: request timed out", 1, "kubectl get pods failed"),
    "delete": ("error: You must be logged in to the server (Unauthorized)", 2, "gcloud auth login"),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_each_step_that_fails_is_one_line(step, tools, launch, digest):
    message, expected, words = STEPS[step]
    own = digest(*TPU)
    tools.says(step, err=f"{message}\n", code=1)
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset(digest=own), times=1)
    tools.says("get pods", pods("Running"))
    tools.says("logs")
    tools.says("get jobset", jobset("Completed", digest=own))
    code, _, lines = launch(*TPU, "--", *COMMAND)
    assert code == expected, lines
    errors = [line for line in lines if line.startswith(("error:", "stopped:"))]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in "".join(lines)
    if step == "get pods":
        assert any("was not deleted; delete it with kubectl delete jobset run" in x for x in lines)


def test_a_network_that_is_away_for_a_moment_does_not_end_the_launch(tools, launch, digest):
    own = digest(*TPU)
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", err="net/http: TLS handshake timeout\n", code=1, times=3)
    tools.says("get jobset", jobset("Completed", digest=own))
    tools.says("logs")
    tools.says("delete")
    code, _, lines = launch(*TPU, "--", *COMMAND)
    assert code == 0
    assert sum("TLS handshake timeout" in line for line in lines) == 3


def test_a_jobset_that_somebody_deletes(tools, launch, digest):
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", times=1)
    code, _, lines = launch(*TPU, "--", *COMMAND)
    assert code == 1
    assert "JobSet run was deleted" in lines[-1]


@pytest.mark.parametrize(
    ("number", "code", "keep"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)],
)
def test_a_signal_deletes_and_says_so(number, code, keep, tools, digest):
    tools.says("get jobset", times=1)
    tools.says("create")
    tools.says("get jobset", jobset(digest=digest(*TPU)))
    tools.says("get pods", pods("Running"))
    tools.says("logs", "step 1\n", shell="exec sleep 900")
    # a second signal must not stop the deletion
    tools.says("delete", shell=f"kill -{number:d} $PPID")
    process = subprocess.Popen(
        [sys.executable, "-m", "retina_jax.main", "launch", "--poll=0.05", *TPU,
         *["--keep"] * keep, "--", *COMMAND],
        env=tools.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "step 1\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert bool(tools.called("delete")) == (not keep)
    expected = "kept JobSet run; delete it with" if keep else "deleted JobSet run"
    assert expected in said
