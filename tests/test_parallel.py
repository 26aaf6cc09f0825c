"""The seam of devices: split and join, and batches that cannot be shared."""

import jax
import numpy as np
import pytest

from retina_jax import main, parallel, placement
from retina_jax.errors import RunError, UserError
from retina_jax.parallel import Devices, fetch, join, prefetch


def test_shard_and_join_are_inverse():
    devices = Devices.local(4)
    tree = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    sharded = devices.shard(tree)
    assert sharded["a"].shape == (4, 2, 3)
    back = join(fetch(sharded))
    for name in tree:
        np.testing.assert_array_equal(back[name], tree[name])


def test_a_batch_that_cannot_be_shared_names_one_that_can():
    devices = Devices.local(4)
    assert devices.check_batch(8, "train.batch_size") == 8
    with pytest.raises(
        UserError, match=r"=6 must be a multiple of the 4 devices; set .*batch_size=8"
    ):
        devices.check_batch(6, "train.batch_size")
    with pytest.raises(
        UserError, match=r"=1 must be a multiple of the 4 devices; set .*batch_size=4"
    ):
        devices.check_batch(1, "train.batch_size")


def test_a_share_that_micro_batches_cannot_split_names_one_that_they_can():
    devices = Devices.local(4)
    assert devices.check_batch(24, "train.batch_size", 3) == 24
    with pytest.raises(
        UserError,
        match=r"train\.batch_size=16 must be a multiple of the 4 devices × 3 micro-batches "
        r"\(config\.train\.accumulate\); set --config\.train\.batch_size=12$",
    ):
        devices.check_batch(16, "train.batch_size", 3)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_ahead_gives_all_in_order_and_puts_early(count):
    put = []
    for item in prefetch(range(count), lambda i: put.append(i) or i):
        assert len(put) == min(count, item + 3)
    assert put == list(range(count))


NONE = {"coordinator": None, "num_processes": None, "process_id": None}


@pytest.fixture
def place(monkeypatch):
    """Where a command would start, with flags and an environment; nothing is started."""
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"RETINA_JAX_{name}", raising=False)

    def place(environment=(), **flags):
        for name, value in dict(environment).items():
            monkeypatch.setenv(name, value)
        return placement.place_in_run(*{**NONE, **flags}.values())

    return place


def test_one_process_starts_nothing(place):
    assert place() is None
    assert place(coordinator="a:1", num_processes=1, process_id=0) is None
    assert place({"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n", "SLURM_NTASKS": "1",
                  "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None  # fmt: skip
    assert place({"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_flags_and_our_own_variables_give_the_place(place):
    expected = {"coordinator_address": "a:1234", "num_processes": 3, "process_id": 2,
                "cluster_detection_method": "deactivate"}  # fmt: skip
    assert place(coordinator="a:1234", num_processes=3, process_id=2) == expected
    own = {"RETINA_JAX_COORDINATOR": "a:1234", "RETINA_JAX_NUM_PROCESSES": "3",
           "RETINA_JAX_PROCESS_ID": "2"}  # fmt: skip
    assert place(own) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1,node2", "node1"), ("node[001-004]", "node001"), ("a[07,9-12],b3", "a07")],
)
def test_slurm_with_one_process_a_node_takes_all_its_devices(place, nodes, first):
    options = place({"SLURM_JOB_ID": "70", "SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": "4",
                     "SLURM_PROCID": "3", "SLURM_LOCALID": "0",
                     "SLURM_STEP_TASKS_PER_NODE": "1(x4)"})  # fmt: skip
    assert options == {"coordinator_address": f"{first}:{61440 + 70}", "num_processes": 4,
                       "process_id": 3, "cluster_detection_method": "deactivate"}  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a", "TPU_WORKER_HOSTNAMES": "a"},
        {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n", "SLURM_NTASKS": "8", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "8"},
    ],
)  # fmt: skip
def test_where_the_cluster_says_more_jax_reads_it(place, environment):
    assert place(environment) == {}


@pytest.mark.parametrize("command", [
    "ablate --config=experiments/shapes.py --study=focal --out=o",
    "export --workdir=w --out=o", "predict --workdir=w --input=i --out=o",
    "replay --workdir=w --batch=b",
])  # fmt: skip
@pytest.mark.parametrize(
    ("variable", "value"), [("RETINA_JAX_NUM_PROCESSES", "3"), ("TPU_WORKER_HOSTNAMES", "a,b,c")]
)
def test_commands_of_one_process_refuse_to_run_as_several(
    command, variable, value, monkeypatch, capsys, finished_run
):
    monkeypatch.setenv(variable, value)
    words = command.replace("=w ", f"={finished_run} ").split()
    assert main.main(["retina-jax", *words]) == 2
    said = capsys.readouterr().err
    assert f"{words[0]} runs in one process, but ${variable} indicates 3 processes; " in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "a:1"}, "missing: --num-processes, --process-id; set all of"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "--coordinator=a has no port"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2},
         "--process-id=2 must be 0 to 1, because --num-processes=2; correct one of them"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_a_place_are_one_line(place, flags, message):
    with pytest.raises(UserError, match=message):
        place(**flags)


def test_devices_that_differ_are_named(monkeypatch):
    devices = parallel.Devices.local(2)
    tree = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.int32)}
    same = devices.replicate(tree)
    devices.check_equal(same, "at the start")
    parts = [np.array(tree["a"]), np.array(tree["a"])]
    parts[1][3] = np.nextafter(parts[1][3], 9)  # one bit on one device
    drifted = jax.make_array_from_single_device_arrays(
        (6,), devices._sharding(),
        [jax.device_put(p, d) for p, d in zip(parts, devices.devices, strict=True)],
    )  # fmt: skip
    with pytest.raises(RunError, match="step 7: weights, batch statistics or optimiser state"):
        devices.check_equal(same | {"a": drifted}, "step 7")
