"""Queued resources: a launch against a gcloud that plays Cloud TPU, and the script on a worker."""

import csv
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "scripts/tpu/start.sh"
FLAGS = ("--kind=queued-resource", "--image=i", "--accelerator=v6e-8", "--name=run", "--zone=z",
         "--mount=nfs:/share:/runs")  # fmt: skip
COMMAND = ["--", "train", "--config=experiments/coco.py", "--workdir=/runs/r50"]
ODD = ["train", "--workdir=/runs/my run", "--a='b' \"c\" $HOME $(HOME) $$ \\ *", "", "--x=ä\ny"]
STATE = "queued-resources describe run --format=value(state.state) "
NOT_FOUND = "ERROR: (gcloud.x) NOT_FOUND: Resource 'projects/p/queuedResources/run' was not found"


def exits(code, worker="w-0", log=""):
    """What the start script prints at the end, and gcloud's exit code."""
    return dict(out=f"{log}[{worker}] retina-jax exited with code {code}\n", code=code)


class Cloud:
    """Answers of gcloud, in the order of their use."""

    def __init__(self, tools):
        self.tools = tools

    def states(self, *states):
        """Each state once; the last one stays. GONE is an error."""
        for i, state in enumerate(states):
            gone = dict(err=NOT_FOUND, code=1) if state == "GONE" else dict(out=f"{state}\n")
            times = 1 if i < len(states) - 1 else None
            self.tools.says(STATE, times=times, **gone)

    def rest(self):
        """Everything else goes well."""
        self.tools.says("queued-resources create")
        self.tools.says("tpu-vm describe", "READY\n")
        self.tools.says("tpu-vm scp")
        self.tools.says("queued-resources delete")
        self.tools.says("state.failedData", "no more capacity\n")


@pytest.fixture
def cloud(tools):
    return Cloud(tools)


def verbs(tools):
    """The steps that change something, in order."""
    return [call[4] for call in tools.calls if call[4] != "describe"]


def test_a_run_is_created_followed_and_deleted(cloud, tools, launch):
    cloud.states("GONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    tools.says("tpu-vm ssh", **exits(0, log="[w-0] step 1\n"))
    cloud.rest()
    code, out, lines = launch(*FLAGS, "--project=p", "--spot", "--valid-until=6h", *COMMAND)
    assert code == 0, lines
    assert "[w-0] step 1\n" in out
    assert verbs(tools) == ["create", "scp", "ssh", "delete"]
    assert all({"--zone=z", "--project=p", "--quiet"} <= set(call) for call in tools.calls)
    (create,) = tools.called("create")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "run"]
    assert {"--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--node-id=run",
            "--spot", "--valid-until-duration=6h"} <= set(create)  # fmt: skip
    (ssh,) = tools.called("ssh")
    assert {"run", "--worker=all"} <= set(ssh)
    assert "--force" in tools.called("delete")[0]
    said = [line.removeprefix("queued resource run: ") for line in lines]
    assert said == ["created queued resource run", "WAITING_FOR_RESOURCES", "PROVISIONING",
                    "ACTIVE", "running the command on all workers",
                    "deleted queued resource run"]  # fmt: skip


def test_slices_are_nodes_with_one_connection_each(cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("ssh run-0", **exits(134, "a"))
    tools.says("ssh run-1", **exits(2, "b"))
    cloud.rest()
    code, _, lines = launch(*FLAGS, "--slices=2", *COMMAND)
    assert code == 2, lines  # the mistake of one aborted the other
    assert {"--node-count=2", "--node-prefix=run"} <= set(tools.called("create")[0])
    assert sorted(call[5] for call in tools.called("ssh")) == ["run-0", "run-1"]
    assert verbs(tools)[-1] == "delete"


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_final_code_ends_the_launch(code, cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("tpu-vm ssh", **exits(code))
    cloud.rest()
    found, _, lines = launch(*FLAGS, *COMMAND)
    assert found == code
    assert f"stopped: the command exited with code {code}" in lines
    assert verbs(tools) == ["create", "scp", "ssh", "delete"]


@pytest.mark.parametrize("code", [1, 143, 134])
def test_a_fault_restarts_on_the_same_machines(code, cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("tpu-vm ssh", **exits(code), times=1)
    tools.says("tpu-vm ssh", **exits(0))
    cloud.rest()
    found, _, lines = launch(*FLAGS, *COMMAND)
    assert found == 0, lines
    assert verbs(tools) == ["create", "scp", "ssh", "scp", "ssh", "delete"]
    runs = [shlex.split(word)[2] for call in tools.called("ssh") for word in call
            if word.startswith("--command=")]  # fmt: skip
    assert [run.rpartition("-")[2] for run in runs] == ["0", "1"], "a new container"


def test_faults_end_after_max_restarts(cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("tpu-vm ssh", **exits(1))
    cloud.rest()
    code, _, lines = launch(*FLAGS, "--max-restarts=2", *COMMAND)
    assert code == 1
    assert len(tools.called("ssh")) == 3
    assert "stopped: no restarts left (--max-restarts=2)" in lines


LOSSES = {
    "suspended, and SSH broke": (["SUSPENDED"], "READY", dict(err="ssh: 255\n", code=255)),
    "suspended after SIGTERM": (["SUSPENDED"], "READY", exits(143)),
    "failed": (["FAILED"], "READY", dict(err="ssh: 255\n", code=255)),
    "gone": (["GONE"], "READY", exits(1)),
    "node gone, resource active": (["ACTIVE"], NOT_FOUND, dict(err="ssh: 255\n", code=255)),
    "node preempted, resource active": (["ACTIVE"], "PREEMPTED", exits(1)),
    "suspended while SSH hangs": (["SUSPENDED"], "READY", dict(shell="exec sleep 900")),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_after_a_preemption_it_is_created_anew_and_resumes(loss, cloud, tools, launch):
    states, node, ssh = LOSSES[loss]
    tools.says("tpu-vm ssh", **ssh, times=1)
    tools.says("tpu-vm ssh", **exits(0))
    # the answers that belong to each life are chosen by what has been created so far
    count = 'grep -c queued-resources.*create "$CALLS"'
    state = f"""n=$({count}); case $n in
        0) echo "{NOT_FOUND}" >&2; exit 1 ;;
        1) if ! grep -q "'ssh'" "$CALLS"; then echo ACTIVE
           elif grep -q "'delete'" "$CALLS"; then echo "{NOT_FOUND}" >&2; exit 1
           elif [ {states[0]} = GONE ]; then echo "{NOT_FOUND}" >&2; exit 1
           else echo {states[0]}; fi ;;
        *) echo ACTIVE ;; esac"""
    tools.says(STATE, shell=f"CALLS={tools.folder}/calls\n{state}")
    if node == NOT_FOUND:
        tools.says("tpu-vm describe", err=NOT_FOUND, code=1, times=2)
    elif node != "READY":
        tools.says("tpu-vm describe", f"{node}\n", times=2)
    cloud.rest()
    code, _, lines = launch(*FLAGS, "--max-restarts=0", *COMMAND)
    assert code == 0, lines
    assert verbs(tools) == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete"]
    assert any("preempted" in line or "was lost" in line for line in lines)
    first, second = tools.called("ssh")
    assert first == second, "a preemption is not a fault; the same command resumes"


STEPS = {
    "create": ("ERROR: Quota limit 'TPUV6EPerProject' has been exceeded.", 2, "more quota", []),
    "scp": ("ERROR: [/usr/bin/scp] exited with return code [1].", 1, "tpu-vm scp failed",
            ["create"]),
    "ssh": ("root@10.0.0.2: Permission denied (publickey).", 2, "allow your SSH key",
            ["create", "scp"]),
    "describe": ("ERROR: (gcloud.x) Please run: gcloud auth login", 2, "log in with", []),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_each_step_that_fails_is_one_line(step, cloud, tools, launch):
    message, expected, words, before = STEPS[step]
    group = "queued-resources" if step in ("create", "describe") else "tpu-vm"
    tools.says(f"{group} {step}", err=f"{message}\n", code=1)
    cloud.states("GONE", *["GONE"] * (step == "create"), "ACTIVE")
    tools.says("tpu-vm ssh", **exits(0))
    cloud.rest()
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == expected, lines
    errors = [line for line in lines if line.startswith(("error:", "stopped:"))]
    assert len(errors) == 1
    assert message in errors[0] or message.rstrip(".") in errors[0]
    assert words in errors[0]
    assert "Traceback" not in "".join(lines)
    if step != "describe":
        assert verbs(tools) == [*before, step, "delete"], "nothing is left that costs money"


def test_a_resource_that_fails_to_start_says_why(cloud, tools, launch):
    cloud.states("GONE", "WAITING_FOR_RESOURCES", "FAILED")
    cloud.rest()
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == 1
    assert "queued resource run is FAILED (no more capacity); try another --zone" in lines[-1]
    assert verbs(tools) == ["create", "delete"]


def test_a_deletion_that_fails_says_what_may_cost_money(cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("tpu-vm ssh", **exits(0))
    tools.says("queued-resources delete", err="ERROR: internal\n", code=1)
    cloud.rest()
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == 0
    assert "it may cost money until you delete it: gcloud compute tpus" in lines[-1]


def test_the_same_command_goes_on_with_what_was_kept(cloud, tools, launch):
    cloud.states("ACTIVE")
    tools.says("tpu-vm ssh", **exits(0))
    cloud.rest()
    code, _, lines = launch(*FLAGS, "--keep", *COMMAND)
    assert code == 0
    assert lines[0] == "queued resource run: ACTIVE"
    assert "kept queued resource run; delete it with gcloud compute tpus" in lines[-1]
    assert verbs(tools) == ["scp", "ssh"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_deletes_and_says_so(number, cloud, tools):
    cloud.states("GONE", "ACTIVE")
    tools.says("tpu-vm ssh", "step 1\n", shell="exec sleep 900")
    cloud.rest()
    process = subprocess.Popen(
        [sys.executable, "-m", "retina_jax.main", "launch", "--poll=0.05", *FLAGS, *COMMAND],
        env=tools.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "step 1\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert "deleted queued resource run" in said
    assert "Traceback" not in said
    assert verbs(tools)[-1] == "delete"


@pytest.fixture
def worker(tools, tmp_path):
    """A worker's home, where gcloud's ssh runs commands as OpenSSH does; a docker that records."""
    home = tmp_path / "home"
    home.mkdir()
    tools.says("tpu-vm scp", shell=f'cp "$5" {shlex.quote(str(home))}/"${{6#*:}}"')
    tools.says("tpu-vm ssh", shell=f'cd {shlex.quote(str(home))}; for word; do case $word in '
               '--command=*) exec sh -c "${word#--command=}" ;; esac; done')  # fmt: skip
    return home


def test_the_command_reaches_the_container_word_for_word(worker, cloud, tools, launch):
    cloud.states("GONE", "ACTIVE")
    tools.says("docker container inspect", code=1)
    tools.says("docker ps")
    tools.says("docker pull")
    tools.says("docker run")
    tools.says("docker logs", "step 1\n")
    tools.says("docker wait", "0\n")
    cloud.rest()
    flags = ("--image=r-docker.pkg.dev/p/r/i:1", """--mount=10.0.0.2:/a, "b" '$c':/my data""")
    tools.says("gcloud auth configure-docker")
    code, out, lines = launch(*FLAGS, *flags, "--", *ODD)
    assert code == 0, lines
    assert "] step 1\n" in out
    (run,) = tools.called("docker", "run")
    place = run.index("r-docker.pkg.dev/p/r/i:1")
    assert run[place + 1 :] == ODD
    assert {"--detach", "--privileged", "--network=host", "JAX_PLATFORMS=tpu,cpu"} <= set(run)
    assert tools.called("configure-docker", "r-docker.pkg.dev")
    values = [run[i + 1] for i in range(place) if run[i] == "--mount"]
    # Docker reads a line of CSV, and each field up to the first =
    assert [dict(field.split("=", 1) for field in row if not field.startswith("volume-opt="))
            for row in csv.reader(values, strict=True)] == [
        {"type": "volume", "dst": path, "volume-driver": "local", "volume-nocopy": "true"}
        for path in ("/runs", "/my data")
    ]  # fmt: skip
    assert [dict(field.split("=", 2)[1:] for field in row if field.startswith("volume-opt="))
            for row in csv.reader(values, strict=True)] == [
        {"type": "nfs", "o": f"addr={host},nfsvers=3,nolock,hard", "device": f":{export}"}
        for host, export in (("nfs", "/share"), ("10.0.0.2", """/a, "b" '$c'"""))
    ]  # fmt: skip


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_second_start_goes_on_with_the_container(code, worker, cloud, tools, launch):
    """gcloud starts the command again where the connection broke."""
    cloud.states("GONE", "ACTIVE")
    tools.says("docker container inspect")
    tools.says("docker logs", "step 1\n")
    tools.says("docker wait", f"{code}\n")
    cloud.rest()
    found, _, lines = launch(*FLAGS, "--max-restarts=0", *COMMAND)
    assert found == code, lines
    assert not tools.called("docker", "run")


def test_a_worker_with_another_run_is_a_mistake(worker, cloud, tools, launch):
    cloud.states("ACTIVE")
    tools.says("docker container inspect", code=1)
    tools.says("docker ps", "other-1\n")
    cloud.rest()
    code, out, _ = launch(*FLAGS, *COMMAND)
    assert code == 2
    assert "error: other-1 holds the TPU" in out


def test_the_dry_run_is_what_a_launch_calls(worker, cloud, tools, launch):
    """The printed script, run by bash, and the launch itself give the same calls."""
    cloud.states("GONE", "ACTIVE")
    tools.says("docker container inspect")
    tools.says("docker logs")
    tools.says("docker wait", "0\n")
    cloud.rest()
    launch(*FLAGS, "--", *ODD)
    changing = [call for call in tools.calls if call[0] == "gcloud" and "describe" not in call]
    tools.forget()
    _, script, _ = launch(*FLAGS, "--dry-run", "--", *ODD)
    done = subprocess.run(["bash", "-c", script], env=tools.environment, check=False)
    assert done.returncode == 0
    printed = [call for call in tools.calls if call[0] == "gcloud" and "describe" not in call]
    assert json.dumps(printed) == json.dumps(changing)
