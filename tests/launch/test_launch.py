"""The launcher's command line, and what all kinds share."""

import re
import shlex
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.launch import accelerators, codes, tools
from retina_jax.launch.command import flag_value, kubernetes_arguments, with_flag

GKE = ("--kind=gke", "--image=i", "--accelerator=tpu-v6e-slice", "--topology=4x4",
       "--mount=c:/runs")  # fmt: skip
QUEUED = ("--kind=queued-resource", "--image=i", "--accelerator=v6e-8", "--mount=nfs:/share:/runs")
TRAIN = ("--", "train", "--config=experiments/coco.py", "--workdir=/runs/r50")
MISTAKES = {
    "no kind": ([], "--kind"),
    "unknown kind": (["--kind=k8s"], "invalid choice: 'k8s'"),
    "no command": ([*GKE], "the command to run is missing; append it after --"),
    "empty command": ([*GKE, "--"], "the command to run is missing"),
    "unknown command": ([*GKE, "--", "fly"], "unknown command 'fly'; available: train"),
    "itself": ([*GKE, "--", "launch", "--kind=gke"], "cannot be launched"),
    "help alone": ([*GKE, "--", "--help"], "cannot be launched"),
    "command without --": ([*GKE, "train"], "unrecognized arguments: train"),
    "no image": (["--kind=gke", *TRAIN], "--image is missing; set --image="),
    "no accelerator": (["--kind=gke", "--image=i", *TRAIN], "--accelerator is missing"),
    "flag of another kind": (["--kind=slurm", "--topology=4x4", *TRAIN],
                             "--topology is not a flag of --kind=slurm; remove it"),
    "no slices": ([*GKE, "--slices=0", *TRAIN], "--slices=0 must be at least 1"),
    "word for a number": ([*GKE, "--slices=two", *TRAIN], "invalid int value: 'two'"),
    "no topology": ([*GKE[:3], *TRAIN], "needs the topology of the node pool"),
    "topology of another chip": ([*GKE, "--topology=2x2x4", *TRAIN], "must have 2 dimensions"),
    "topology of no chip": ([*GKE, "--topology=4xfour", *TRAIN], "must have 2 dimensions"),
    "chips that do not divide": ([*GKE, "--chips-per-host=3", *TRAIN], "not a multiple of"),
    "accelerator of another kind": (["--kind=gke", "--image=i", "--accelerator=v6e-16", *TRAIN],
                                    "is not a GKE accelerator; set one of tpu-v4-podslice"),
    "nodes of a TPU": ([*GKE, "--nodes=2", *TRAIN], "--nodes=2 is for a GPU"),
    "slices of a GPU": (["--kind=gke", "--image=i", "--accelerator=nvidia-l4", "--slices=2",
                         *TRAIN], "--slices=2 is for a TPU"),
    "newer than queued resources": (
        ["--kind=queued-resource", "--image=i", "--accelerator=tpu7x-8", *TRAIN],
        "use --kind=gke"),
    "no accelerator type": (
        ["--kind=queued-resource", "--image=i", "--accelerator=tpu-v6e-slice", *TRAIN],
        "for example, set --accelerator=v6e-8"),
    "spot and reserved": ([*QUEUED, "--spot", "--reserved", *TRAIN], "remove one"),
    "name": ([*GKE, "--name=My_Run", *TRAIN], "--name=My_Run must have"),
    "name of a queued resource": ([*QUEUED, "--name=-x", *TRAIN], "--name=-x must have"),
    "name for SLURM": (["--kind=slurm", "--name=a b", *TRAIN], "--name=a b may contain"),
    "mount": ([*GKE, "--mount=/data", *TRAIN], "--mount=/data must be a volume claim or a bucket"),
    "folder of a bucket": ([*GKE, "--mount=gs://b/f:/data", *TRAIN],
                           "such as --mount=CLAIM:/runs or --mount=gs://BUCKET:/runs"),
    "bucket of a TPU VM": ([*QUEUED, "--mount=gs://b:/runs", *TRAIN],
                           "--mount=gs://b:/runs must be an NFS export and a path"),
    "claim of a TPU VM": ([*QUEUED, "--mount=c:/runs", *TRAIN], "such as --mount=HOST:/EXPORT:/"),
    "mount without a container": (["--kind=slurm", "--mount=/a:/a", *TRAIN], "set --image"),
    "workdir of a pod": (
        [*GKE[:4], "--", "train", "--workdir=runs/r50"],
        "--workdir=runs/r50 is lost when the job restarts on another machine; mount a bucket with "
        "--mount=gs://BUCKET:/PATH or a volume claim with --mount=CLAIM:/PATH, and set "
        "--workdir=/PATH/FOLDER, or set --workdir=gs://BUCKET/FOLDER"),
    "workdir of a TPU VM": ([*QUEUED[:3], "--", "train", "--workdir", "/runs"],
                            "mount an NFS export with --mount=HOST:/EXPORT:/PATH, and set"),
    "workdir beside the mounts": (
        [*GKE, "--mount=d:/data", "--", "train", "--workdir=/runs2/r"],
        "put it below /runs or /data"),
    "workdir out of the mount": ([*QUEUED, "--", "train", "--workdir=/runs/../r"],
                                 "--workdir=/runs/../r is lost"),
    "negative restarts": ([*GKE, "--max-restarts=-1", *TRAIN], "--max-restarts=-1"),
}  # fmt: skip


ADDRESSES = {
    "--workdir": ["--", "train", "--workdir={}"],
    "--config.data.dir": ["--", "evaluate", "--workdir=/runs/r", "--config.data.dir", "{}"],
    "--workdir of launch": ["--workdir={}", *TRAIN],
    "--data-dir": ["--data-dir={}", *TRAIN, "--config.data.dir=/runs/data"],
}


@pytest.mark.parametrize("kind", [GKE, QUEUED, ("--kind=slurm",)], ids=lambda kind: kind[0])
@pytest.mark.parametrize("flag", ADDRESSES)
def test_addresses_of_buckets_alone_are_opened(flag, kind, launch, tools):
    words = [word.format("s3://b/r") for word in ADDRESSES[flag]]
    code, out, (line,) = launch(*kind, *words)
    name = flag.removesuffix(" of launch")
    assert (code, out) == (2, "")
    assert f"{name}=s3://b/r is an address that the command cannot open; set {name}=gs://" in line
    assert not tools.calls
    words = [word.format("gs://b/r") for word in ADDRESSES[flag]]
    code, out, _ = launch(*kind, "--dry-run", *words)
    assert code == 0
    assert "gs://b/r" in out


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_that_names_the_fix(mistake, launch, tools):
    arguments, expected = MISTAKES[mistake]
    code, out, lines = launch(*arguments)
    assert (code, out, len(lines)) == (2, "", 1), lines
    assert expected in lines[0]
    assert not tools.calls


def test_poll_must_be_positive(launch):
    assert "--poll=0 must be above 0" in launch("--poll=0", *GKE, *TRAIN)[2][0]


@pytest.mark.parametrize("kind", [GKE, QUEUED, ("--kind=slurm",)], ids=lambda kind: kind[0])
def test_flags_take_dashes_and_underscores_and_the_command_stays_as_typed(kind, launch, tools):
    words = ["train", "--workdir=/runs/r50", "--config.data.name=a_b", "--my-flag=x_y-z"]
    dashes = launch(*kind, "--dry-run", "--max-restarts=3", "--", *words)
    underscores = launch(*kind, "--dry_run", "--max_restarts=3", "--", "retina-jax", *words)
    assert dashes == underscores
    assert "--my-flag=x_y-z" in dashes[1]
    assert not tools.calls, "a dry run calls nothing"


def test_paths_of_the_launcher_replace_those_of_the_command(launch):
    command = ["train", "--workdir", "runs/r50", "--config=c.py", "--config.data.dir=DATA"]
    _, out, _ = launch(*GKE, "--workdir=/runs/new", "--data-dir=/runs/data", "--dry-run", "--",
                       *command)  # fmt: skip
    arguments = [line.split("- ")[1] for line in out.splitlines() if re.match(r"\s+- [t-]", line)]
    assert "train --config=c.py --workdir=/runs/new --config.data.dir=/runs/data" in " ".join(
        arguments
    )
    assert "runs/r50" not in out
    assert "=DATA" not in out


def test_the_default_name_tells_runs_apart(launch):
    def name(*arguments):
        return re.search(r"name: (retina-jax-\w{8})\n", launch(*arguments)[1])[1]

    again = name(*GKE, "--dry-run", *TRAIN)
    assert name(*GKE, "--dry-run", *TRAIN) == again
    assert name(*GKE, "--dry-run", *TRAIN, "--config.seed=1") != again
    assert name(*GKE, "--slices=2", "--dry-run", *TRAIN) != again


def test_with_flag_replaces_every_spelling():
    words = ["train", "--workdir=a", "-workdir=b", "--workdir", "c", "--workdirs=d"]
    assert flag_value(words, "workdir") == "c"
    assert with_flag(words, "workdir", "e") == ["train", "--workdirs=d", "--workdir=e"]
    assert flag_value(["train"], "workdir") is None


def expanded(text, variables):
    """What Kubernetes makes of an argument, from its documentation."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]),
        text,
    )


@given(st.text(alphabet="$()aB '\"\\{}" + string.digits, max_size=12))
def test_kubernetes_gives_the_command_its_own_words(word):
    variables = {"a": "wrong", "": "wrong", "B": "wrong"}
    (argument,) = kubernetes_arguments([word])
    assert expanded(argument, variables) == word


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([0, 0], 0), ([0, 1], 1), ([134, 2], 2), ([1, 4, 1], 4), ([3, 0], 3), ([143, 143], 143),
        ([143, 1], 1), ([137, 0], 1), ([], 0),
    ],
)  # fmt: skip
def test_the_exit_code_of_a_run_is_that_of_the_host_that_began_it(found, code):
    assert codes.of_all_hosts(found) == code
    assert codes.restarts(code) == (code in (1, 143))


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "expected"),
    [
        ("tpu-v6e-slice", "4x4", None, (4, 4)),
        ("tpu-v6e-slice", "1x1", None, (1, 1)),
        ("tpu-v6e-slice", "2x4", None, (2, 4)),
        ("tpu-v6e-slice", "2x4", 8, (1, 8)),
        ("tpu-v5-lite-podslice", "16x16", None, (64, 4)),
        ("tpu-v5p-slice", "2x2x1", None, (1, 4)),
        ("tpu7x", "4x4x4", None, (16, 4)),
    ],
)
def test_hosts_follow_from_the_topology(accelerator, topology, chips, expected):
    assert accelerators.hosts_per_slice(accelerator, topology, chips) == expected


FAILURES = {
    "gcloud without a login, advice last": (
        "ERROR: (gcloud.x) You do not currently have an active account selected.\nPlease run:\n\n"
        "  $ gcloud auth login\n\nto select an account.\n",
        "ERROR: (gcloud.x) You do not currently have an active account selected; log in with", 2),
    "kubectl without a cluster": (
        "E1 memcache.go\nThe connection to the server localhost:8080 was refused - did you specify "
        "the right host or port?", "choose a cluster with gcloud container clusters", 2),
    "no JobSet": ('error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"',
                  "install JobSet in the cluster", 2),
    "old JobSet": ('Error from server (BadRequest): strict decoding error: unknown field '
                   '"spec.failurePolicy.rules[0].onJobFailureMessagePatterns"', "0.10 or newer", 2),
    "namespace": ('Error from server (NotFound): namespaces "x" not found', "--namespace", 2),
    "zone": ("ERROR: (gcloud.x) Error parsing [queued_resource].\nFailed to find attribute [zone]."
             "\n- set the property `compute/zone`.", "set --zone", 2),
    "quota": ("ERROR: Quota 'TPUV6EPerProject' exceeded.", "ask for more quota", 2),
    "permission": ("ERROR: PERMISSION_DENIED: tpu.nodes.create", "ask an administrator", 2),
    "partition": ("sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job "
                  "submission failed: Invalid partition name specified", "set --partition", 2),
    "controller": ("slurm_load_jobs error: Unable to contact slurm controller", "login node", 1),
    "ssh key": ("Permission denied (publickey).\nERROR: [/usr/bin/ssh] exited with return code "
                "[255].", "allow your SSH key", 2),
    "firewall": ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", "firewall", 1),
    "anything": ("boom", "boom; run the same command again", 1),
    "nothing": ("", "exit code 7; run the same command again", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_of_a_tool_is_its_own_line_and_the_fix(name):
    output, expected, code = FAILURES[name]
    error = tools.failure(["kubectl", "get", "jobset", "--x=y"], 7, output)
    assert str(error).startswith("kubectl get jobset failed: ")
    assert expected in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == code


@pytest.mark.parametrize(
    ("kind", "tool"),
    [(GKE, "kubectl"), (QUEUED, "gcloud"), (("--kind=slurm",), "squeue")],
    ids=lambda value: value[0],
)
def test_a_missing_tool_is_named(kind, tool, launch, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, lines = launch(*kind, *TRAIN)
    assert code == 2
    assert f"error: {tool} is not installed or not on the PATH; " in lines[-1]


def test_printed_commands_round_trip():
    words = ["gcloud", "--command=bash x 'a b' \"$HOME\"", "", "*"]
    assert shlex.split(tools.printed(words)) == words
