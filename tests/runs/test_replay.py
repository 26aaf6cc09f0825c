"""A step that was not finite, taken again: from the printed command to the module that broke."""

import io
import json
import re
import subprocess

import numpy as np
import pytest
from rich.console import Console

from retina_jax import main, parallel
from retina_jax.data.data_set import open_split
from retina_jax.data.loader import TrainLoader
from retina_jax.errors import NonFiniteLossError, UserError
from retina_jax.jobs import train
from retina_jax.prepare.shapes import open_data_set
from retina_jax.progress import Reporter
from retina_jax.runs import replay as replays
from retina_jax.runs.replay import _beginning, replay
from retina_jax.runs.replay_text import lines
from retina_jax.training import kept_batch

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    """Two of the eight virtual devices, as ``finished_run``."""
    two = parallel.Devices.local(2).devices
    monkeypatch.setattr(parallel.Devices, "local", lambda n=None: parallel.Devices(two[:n]))


@pytest.fixture
def kept(tiny_config, tmp_path):
    """Keeps the batch of a step of ``finished_run``, which kept none, as its loop would."""
    directory = open_data_set(tiny_config.data.dir, tiny_config.data.name)
    loader = TrainLoader(
        open_split(directory, tiny_config.data.train_split, tiny_config.data.labels), tiny_config
    )

    def keep(step):
        kept_batch.keep(tmp_path, step, loader, always=True)
        return tmp_path / "nonfinite" / f"step_{step}.npz"

    return keep


def contents(folder):
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_replayed_step_is_that_of_training_and_leaves_the_run_as_it_is(
    tiny_config, finished_run, kept
):
    before = contents(finished_run)
    found = replay(tiny_config, finished_run, kept(4), 1000, Reporter())
    assert contents(finished_run) == before
    logged = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[3])
    assert logged["step"] == 4
    assert found.exact  # from the checkpoint of step 2, by step 3
    for name in ("loss", "loss_classification", "loss_box", "gradient_norm", "foreground_anchors"):
        # another process may have trained the run
        assert found.metrics[name] == pytest.approx(logged[name], rel=1e-5)
    examined = found.examination
    assert examined.classification.shape == (8,)
    np.testing.assert_allclose(
        examined.classification.sum(), logged["loss_classification"], rtol=1e-5
    )
    np.testing.assert_allclose(examined.box.sum(), logged["loss_box"], rtol=1e-5)
    assert examined.foreground.sum() == logged["foreground_anchors"]
    assert found.names[0] == "backbone/stem_conv"
    assert found.names[-1] == "logits and boxes"
    assert "class_head/predict at P7" in found.names
    text = "\n".join(lines(found))
    assert "module outputs: all finite" in text
    assert "training would apply this step" in text


def test_the_first_module_that_is_not_finite_is_named(tiny_config, finished_run, kept, monkeypatch):
    restored = replays._restored

    def poisoned(*arguments):
        state = restored(*arguments)
        layer = state.params["backbone"]["stage3_block0"]["conv2"]
        layer["kernel"] = layer["kernel"].copy()
        layer["kernel"][0, 0, 0, 0] = np.inf
        return state

    monkeypatch.setattr(replays, "_restored", poisoned)
    found = replay(tiny_config, finished_run, kept(5), 1000, Reporter())
    text = "\n".join(lines(found))
    assert "step 5 with the weights of step 4 (as in training)" in text
    assert "parameters: not finite in 1 of " in text
    assert "backbone/stage3_block0/conv2/kernel (1 of " in text
    assert "first module with an output that is not finite: backbone/stage3_block0/conv2" in text
    assert "loss nan" in text
    assert "pixels, normalised: finite" in text
    assert re.search(r"gradient: not finite in \d+ of \d+ arrays", text)


def test_the_command_that_a_stopped_run_prints_replays_it(tiny_config, tmp_path, capsys):
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.optimizer.clip_norm = 0.0
    tiny_config.train.log_every = 4
    printed = io.StringIO()
    console = Console(file=printed, soft_wrap=True, highlight=False)
    with pytest.raises(NonFiniteLossError):
        train.run(tiny_config, str(tmp_path / "my 'odd' $HOME"), console)
    command = printed.getvalue().split("replay the step with: ")[1].splitlines()[0]
    words = subprocess.check_output(["sh", "-c", f"printf '%s\\n' {command}"], text=True)
    words = words.splitlines()
    assert main.main(["retina-jax", *words[words.index("replay") :]]) == 0
    out = capsys.readouterr().out
    assert "step 2 with the weights of step 1 (as in training)" in out
    assert re.search(r"^loss (nan|inf)", out, re.MULTILINE)
    assert "first module with an output that is not finite: " in out


@pytest.mark.parametrize(
    ("steps", "before", "most", "expected"),
    [
        ([10, 20], 20, 0, (20, 0)),
        ([10, 20], 25, 5, (20, 5)),
        ([10, 30], 25, 5, (30, 0)),  # too far from 10
        ([10, 30], 25, 15, (10, 15)),
        ([30], 2, 10, (0, 2)),  # from the start
        ([30], 20, 10, (30, 0)),
        ([], 3, 0, (0, 0)),
    ],
)
def test_weights_are_exact_where_few_steps_lead_to_them_else_the_nearest(
    steps, before, most, expected
):
    assert _beginning(steps, before, most) == expected


def test_weights_of_another_step_are_said_to_be_so(tiny_config, finished_run, kept):
    found = replay(tiny_config, finished_run, kept(4), 0, Reporter())
    assert not found.exact
    assert next(lines(found)) == (
        "step 4 with the weights of step 2 (training used those of step 3)"
    )


def test_a_file_that_is_missing_or_something_else_is_a_mistake(tiny_config, finished_run, tmp_path):
    with pytest.raises(
        UserError, match=r"step_9\.npz: no such file; a run writes such files to WORKDIR"
    ):
        replay(tiny_config, finished_run, tmp_path / "step_9.npz", 0, Reporter())
    (tmp_path / "step_8.npz").write_bytes(b"PK\3\4 not an archive")
    with pytest.raises(
        UserError, match=r"step_9\.npz: no such file; the last one in this folder is .*_8\."
    ):
        replay(tiny_config, finished_run, tmp_path / "step_9.npz", 0, Reporter())
    with pytest.raises(UserError, match=r"step_8\.npz is not the batch of a step"):
        replay(tiny_config, finished_run, tmp_path / "step_8.npz", 0, Reporter())
    np.savez(tmp_path / "step_7.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"step_7\.npz is not the batch of a step \(a damaged"):
        replay(tiny_config, finished_run, tmp_path / "step_7.npz", 0, Reporter())


def test_a_batch_of_many_hosts_is_shared_by_the_devices_that_can(tiny_config):
    assert len(replays._devices_for(tiny_config, 8)) == 2
    assert len(replays._devices_for(tiny_config, 7)) == 1
    tiny_config.train.accumulate = 2
    with pytest.raises(UserError, match=r"train\.batch_size=7 must be a multiple of the 1 device "):
        replays._devices_for(tiny_config, 7)
