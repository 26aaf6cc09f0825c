"""SLURM: the batch script, run by bash, and a launch against commands that play the cluster."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest

from retina_jax.launch.slurm import Tail

FLAGS = ("--kind=slurm", "--nodes=2", "--gpus-per-node=8", "--name=run")
COMMAND = ["--", "train", "--config=experiments/coco.py", "--workdir=runs/r50"]
ODD = ["train", "--workdir=my run", "--a='b' \"c\" $HOME $(HOME) $$ \\ *", "", "--x=ä\ny"]
PROGRAM = f"""#!{sys.executable} -ISE
import json, os, sys
names = "COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"
seen = {{name: os.environ.get("RETINA_JAX_" + name) for name in names}}
print(json.dumps([sys.argv[1:], seen]))
sys.exit(int(os.environ.get("CODE_" + seen["PROCESS_ID"], "0")))
"""
SRUN = """#!/bin/bash
# one process after the other; as srun does, reports the highest exit code
while [ "${1#--}" != "$1" ]; do shift; done
highest=0
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do
    SLURM_PROCID=$i "$@"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""


@pytest.fixture
def batch(tools, launch, tmp_path, monkeypatch):
    """Runs the printed script as SLURM does on the first node; what it printed, and the code."""
    tools.add("srun", SRUN)
    tools.add("retina-jax", PROGRAM)
    tools.says("scontrol show hostnames", "gpu-007\ngpu-012\n")
    tools.says("scontrol requeue")

    def batch(words=COMMAND[1:], state="RUNNING", restarts=3, **codes):
        tools.says("scontrol show job", f"JobId=4711 JobState={state} ExitCode=0:0\n")
        flags = (*FLAGS, "--image=i", f"--max-restarts={restarts}")
        _, script, _ = launch(*flags, "--dry-run", "--", *words)
        given = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu-[007,012]",
                 "SLURM_JOB_NUM_NODES": "2", **{k: str(v) for k, v in codes.items()}}  # fmt: skip
        return subprocess.run(
            ["bash", "-s"], input=script, capture_output=True, text=True, cwd=tmp_path,
            env={**tools.environment, **given}, check=False,
        )  # fmt: skip

    return batch


def test_the_script_asks_for_what_was_meant(launch):
    options = ["--partition=gpu", "--account=me", "--time=1-00:00:00", "--grace-period=120"]
    _, script, _ = launch(*FLAGS, *options, "--dry-run", *COMMAND)
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert set(asked) >= {
        "--job-name=run", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue",
        "--open-mode=append", "--signal=TERM@120", "--partition=gpu", "--account=me",
        "--time=1-00:00:00", "--output=run-%j.log",
    }  # fmt: skip
    assert lines[1 : 1 + len(asked)] == [f"#SBATCH {each}" for each in asked], "sbatch reads on"
    assert "export JAX_PLATFORMS=cuda,cpu" in lines
    (command,) = [line for line in lines if line.startswith("set -- ")]
    assert shlex.split(command)[2:] == ["--", sys.executable, "-m", "retina_jax.main", *COMMAND[1:]]


def test_a_container_sees_the_mounted_folders(launch):
    mounts = ["--image=i", "--mount=/a:/a", "--mount=/b:/c"]
    _, script, _ = launch(*FLAGS, *mounts, "--dry-run", *COMMAND)
    (command,) = [line for line in script.splitlines() if line.startswith("set -- ")]
    expected = ["--container-image=i", "--container-mounts=/a:/a,/b:/c", "--", "retina-jax"]
    assert shlex.split(command)[2:6] == expected


def test_every_process_gets_its_words_and_its_place(batch):
    done = batch(ODD)
    assert done.returncode == 0, done.stderr
    port = 61440 + 4711 % 4096
    for i, line in enumerate(done.stdout.splitlines()):
        words, seen = json.loads(line)
        assert words == ODD
        assert seen == {"COORDINATOR": f"gpu-007:{port}", "NUM_PROCESSES": "2",
                        "PROCESS_ID": str(i)}  # fmt: skip
    assert i == 1


@pytest.mark.parametrize(
    ("codes", "expected", "requeued"),
    [
        ((0, 0), 0, False), ((1, 0), 1, True), ((143, 143), 143, True), ((134, 1), 134, True),
        ((2, 0), 2, False), ((3, 3), 3, False), ((4, 4), 4, False), ((2, 134), 2, False),
        ((143, 4), 4, False),
    ],
)  # fmt: skip
def test_exit_codes_queue_the_job_again_or_end_it(codes, expected, requeued, batch, tools):
    done = batch(CODE_0=codes[0], CODE_1=codes[1])
    assert done.returncode == expected, done.stderr
    assert bool(tools.called("scontrol", "requeue", "4711")) == requeued


def test_faults_are_counted_and_preemptions_are_not(batch, tools, tmp_path):
    for _ in range(3):
        assert batch(restarts=2, CODE_0=143).returncode == 143
    assert len(tools.called("requeue")) == 3
    for _ in range(2):
        batch(restarts=2, CODE_0=1)
    assert len(tools.called("requeue")) == 5
    done = batch(restarts=2, CODE_0=1)
    assert len(tools.called("requeue")) == 5
    assert (done.returncode, done.stderr) == (1, "stopped: exit code 1 after 2 restarts\n")
    assert not list(tmp_path.glob("*.faults"))


def test_a_job_that_its_user_cancels_stays_cancelled(batch, tools):
    assert batch(state="CANCELLED", CODE_0=143).returncode == 143
    assert not tools.called("requeue")


def test_a_cluster_without_requeue_is_told(batch, tools):
    tools._rules.clear()
    tools.says("scontrol show hostnames", "gpu-007\n")
    tools.says("scontrol requeue", err="scontrol: error: Operation disabled\n", code=1)
    done = batch(CODE_0=1)
    assert done.returncode == 1
    assert "cannot requeue the job; submit it again to resume" in done.stderr


def test_sigterm_to_the_shells_leaves_the_exit_code_to_the_program(batch, tools):
    """SLURM signals the shell around the program as well as the program."""
    tools.add("retina-jax", "#!/bin/bash\ntrap 'sleep 0.1; echo saved; exit 4' TERM\n"
              "kill -TERM $PPID $$\nsleep 5 & wait\n")  # fmt: skip
    done = batch()
    assert done.stdout == "saved\nsaved\n"
    assert done.returncode == 4, "not 143: the shell has waited"


def test_the_script_alone_wants_a_command(tmp_path):
    from retina_jax.launch.scripts import script

    for arguments in ([], ["--"], ["--mem=0", "--"]):
        done = subprocess.run(
            ["bash", script("cluster/slurm.sh"), *arguments], capture_output=True, text=True,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "no command" in done.stderr


def shows(tools, *states):
    """Answers of ``scontrol show job``: each state once, the last one always."""
    for i, (state, code) in enumerate(states):
        times = 1 if i < len(states) - 1 else None
        line = f"JobId=1 JobName=run JobState={state} Reason=None Requeue=1 ExitCode={code}\n"
        tools.says("scontrol show job", line, times=times)


def test_a_job_is_submitted_and_followed(tools, launch, tmp_path):
    tools.says("squeue")
    log = tmp_path / "run-12.log"
    tools.says("sbatch", shell=f"echo step 1 > {log}; echo '12;cluster'")
    shows(tools, ("PENDING", "0:0"), ("RUNNING", "0:0"), ("PENDING", "0:0"), ("RUNNING", "0:0"),
          ("COMPLETED", "0:0"))  # fmt: skip
    code, out, lines = launch(*FLAGS, *COMMAND)
    assert (code, out) == (0, "step 1\n")
    said = [line.removeprefix("job 12: ") for line in lines[1:]]
    assert lines[0] == "submitted job 12: 2 nodes; its log is run-12.log"
    assert said == ["PENDING", "RUNNING", "PENDING", "RUNNING", "COMPLETED", "completed"]
    dry = launch(*FLAGS, "--dry-run", *COMMAND)[1]
    assert tools.stdin() == dry, "a dry run prints what is submitted"
    assert not tools.called("scancel")


@pytest.mark.parametrize(
    ("state", "shown", "expected"),
    [("FAILED", "2:0", 2), ("FAILED", "3:0", 3), ("FAILED", "4:0", 4), ("FAILED", "1:0", 1),
     ("CANCELLED", "0:15", 143), ("OUT_OF_MEMORY", "0:125", 1), ("CANCELLED", "0:0", 1)],
)  # fmt: skip
def test_the_end_of_a_job_is_the_exit_code(state, shown, expected, tools, launch):
    tools.says("squeue")
    tools.says("sbatch", "12\n")
    shows(tools, (state, shown))
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == expected
    assert re.search(rf"stopped: job 12: {state} \(exit code \d+\)", lines[-1])
    assert len(tools.called("sbatch")) == 1


@pytest.mark.parametrize(
    ("state", "shown"),
    [("PREEMPTED", "0:15"), ("NODE_FAIL", "1:0"), ("TIMEOUT", "0:1"), ("FAILED", "143:0"),
     ("FAILED", "0:15")],
)  # fmt: skip
def test_a_preempted_job_that_is_not_queued_again_is_submitted_again(state, shown, tools, launch):
    tools.says("squeue")
    tools.says("sbatch", "12\n", times=1)
    tools.says("sbatch", "13\n")
    tools.says("scontrol show job 12", f"JobState={state} ExitCode={shown}\n")
    tools.says("scontrol show job 13", "JobState=COMPLETED ExitCode=0:0\n")
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == 0
    assert f"job 12: {state}; submitting it again" in lines
    assert tools.stdin(0) == tools.stdin(1), "the same command resumes"


def test_the_same_command_goes_on_with_its_job(tools, launch):
    comment = re.search(r"--comment=(\S+)", launch(*FLAGS, "--dry-run", *COMMAND)[1])[1]
    tools.says("squeue", f"12 {comment}\n")
    shows(tools, ("COMPLETED", "0:0"))
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == 0
    assert lines[0] == "job 12 is queued or running; following it"
    assert not tools.called("sbatch")


def test_a_job_of_another_command_is_left_alone(tools, launch):
    tools.says("squeue", "12 (null)\n")
    code, _, (line,) = launch(*FLAGS, *COMMAND)
    assert code == 2
    assert "job 12 has the same name and runs another command; set another --name" in line


STEPS = {
    "squeue": ("slurm_load_jobs error: Unable to contact slurm controller", 1, "login node"),
    "sbatch": ("sbatch: error: Batch job submission failed: Invalid account or account/partition "
               "combination specified", 2, "set --account"),
    "scontrol show": ("slurm_load_jobs error: Invalid job id specified", 1, "scontrol show job"),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_each_step_that_fails_is_one_line(step, tools, launch):
    message, expected, words = STEPS[step]
    tools.says(step, err=f"{message}\n", code=1)
    tools.says("squeue")
    tools.says("sbatch", "12\n")
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == expected, lines
    errors = [line for line in lines if line.startswith(("error:", "stopped:"))]
    assert len(errors) == 1
    assert message in errors[0]
    assert words in errors[0]
    if step == "scontrol show":
        assert any("job 12 was not cancelled; cancel it with scancel 12" in line for line in lines)


def test_an_sbatch_that_prints_no_id(tools, launch):
    tools.says("squeue")
    tools.says("sbatch", "hello\n")
    code, _, lines = launch(*FLAGS, *COMMAND)
    assert code == 1
    assert "instead of a job id" in lines[-1]


@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c_cancels_and_says_so(keep, tools):
    tools.says("squeue")
    tools.says("sbatch", "12\n")
    tools.says("scontrol show job", "JobState=RUNNING ExitCode=0:0\n")
    tools.says("scancel 12")
    process = subprocess.Popen(
        [sys.executable, "-m", "retina_jax.main", "launch", "--poll=0.05", *FLAGS,
         *["--keep"] * keep, *COMMAND],
        env=tools.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "RUNNING" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert bool(tools.called("scancel")) == (not keep)
    assert ("kept job 12; cancel it with scancel 12" if keep else "cancelled job 12") in said
    assert "Traceback" not in said


def test_a_character_that_is_written_in_two_parts_is_printed_whole(tmp_path, capsys):
    log, content = tmp_path / "log", "AP 0.5 ± 0.1 – 3 µm\n".encode()
    tail = Tail(log)
    tail.print_new()
    for byte in content:
        with log.open("ab") as file:
            file.write(bytes([byte]))
        tail.print_new()
    assert capsys.readouterr().out == content.decode()
