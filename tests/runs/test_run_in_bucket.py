"""A run whose data and workdir are in a bucket is the run on disk, through a fault."""

import json
import time

import jax
import numpy as np
import pytest
from bucket_server import ADDRESS

from retina_jax import parallel
from retina_jax.errors import FAULT, explain
from retina_jax.files import open_path
from retina_jax.object_store import upload
from retina_jax.progress import Reporter
from retina_jax.runs.draw import draw
from retina_jax.runs.evaluate import evaluate
from retina_jax.runs.train import train
from retina_jax.runs.weights import export_run, read_source
from retina_jax.training import lease
from retina_jax.training.checkpoint import weights_of
from retina_jax.training.loop import MetricsLog
from retina_jax.training.workdir import read_config

pytestmark = pytest.mark.faults
WORKDIR = f"{ADDRESS}/runs/a"


@pytest.fixture
def stored_config(bucket, tiny_config, shapes_dir, tmp_path, monkeypatch):
    """``tiny_config``, with its data in the bucket."""
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path / "cache"))
    two = parallel.Devices.local(2)
    monkeypatch.setattr(parallel.Devices, "local", lambda: two)
    open_path(ADDRESS, "--config.data.dir")
    for path in shapes_dir.rglob("*"):
        if path.is_file():
            upload(path, f"{ADDRESS}/data/{path.relative_to(shapes_dir)}")
    tiny_config.data.dir = f"{ADDRESS}/data"
    return tiny_config


def entries(folder):
    rates = ("images_per_second", "input_wait")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in rates} for line in lines]


def test_a_run_without_network_keeps_its_checkpoint_and_goes_on_as_on_disk(
    bucket, stored_config, finished_run, shallow, monkeypatch, quiet
):
    write = MetricsLog.write

    def write_and_lose_the_network(log, step, values):
        write(log, step, values)
        if step == 3:
            complete = "runs/a/checkpoints/2/commit_success.txt"
            deadline = time.monotonic() + 120
            while complete not in bucket.names() and time.monotonic() < deadline:
                time.sleep(0.05)
            bucket.is_gone = True

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_lose_the_network)
        with pytest.raises(Exception, match=r".") as caught:
            train(stored_config, WORKDIR)
    code, (line,) = explain(caught.value)
    assert code == FAULT
    assert line.startswith("stopped: the object store failed (")
    bucket.is_gone = False
    bucket.remove(f"runs/a/{lease.FILE}")  # this process holds it as long as it lives

    result = train(stored_config, WORKDIR, Reporter(quiet))
    folder = result.folder
    assert str(folder) == WORKDIR
    assert result.failed_evaluations == 0
    assert entries(folder) == entries(finished_run)
    ours, theirs = weights_of(WORKDIR), weights_of(finished_run)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    names = {name.removeprefix("runs/a/") for name in bucket.names("runs/a/")}
    assert names >= {"config.json", "curves.png", "eval/4/detections.png"}
    assert [name for name in names if name.startswith("tensorboard/events")]
    assert lease.FILE not in names

    config = read_config(folder)
    assert config.data.dir == f"{ADDRESS}/data"
    config.eval.max_detections = 50
    metrics = evaluate(config, WORKDIR).metrics
    assert metrics["images"] == 10
    assert str(draw(folder, count=2)) == f"{WORKDIR}/eval/4/detections.png"
    out = open_path(f"{ADDRESS}/out/weights.safetensors", "--out")
    export_run(WORKDIR, "retina_jax", out)
    taken = read_source(str(out), "config.model.init_from").tree
    assert jax.tree.all(jax.tree.map(np.array_equal, taken["params"], theirs["params"]))
