"""Where a network comes from: a workdir, or weights and a config; errors of one line."""

import json
import shutil

import jax
import numpy as np
import pytest

from retina_jax import Detector
from retina_jax.errors import UserError
from retina_jax.prediction.network import from_weights, from_workdir

pytestmark = pytest.mark.usefixtures("shallow")


def test_exported_weights_are_the_networks(network, finished_run, tmp_path):
    from retina_jax.runs.weights import export_run

    file = tmp_path / "weights.safetensors"
    export_run(finished_run, "retina_jax", file)
    notes = []
    loaded = from_weights(file, finished_run, note=notes.append)
    assert loaded.classes == network.classes
    assert loaded.digest() == network.digest()
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
    named = from_weights(file, network.config, class_names="abcde"[: len(network.classes.names)])
    assert named.classes.names == tuple("abcde"[: len(network.classes.names)])
    assert named.classes.ids == network.classes.ids
    (tmp_path / "mine.py").write_text(
        "from retina_jax.training.workdir import read_config\n"
        f"from pathlib import Path\nget_config = lambda: read_config(Path({str(finished_run)!r}))"
    )
    detector = Detector.from_weights(file, tmp_path / "mine.py", batch_size=2)
    assert detector.class_names == network.classes.names
    assert detector.category_ids == network.classes.ids
    with pytest.raises(UserError, match=r"class_names has 2 names, but .* has \d classes"):
        from_weights(file, network.config, class_names=["a", "b"])
    with pytest.raises(UserError, match="is neither an experiment"):
        from_weights(file, tmp_path / "none.py")


def test_a_checkpoint_is_chosen_by_its_step(finished_run):
    from retina_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(finished_run)
    step = checkpoints.steps()[0]
    checkpoints.close()
    assert from_workdir(finished_run, step).source.startswith(f"checkpoint of step {step} in ")
    with pytest.raises(UserError, match=rf"no checkpoint of step 99; choose from: .*\b{step}\b"):
        from_workdir(finished_run, 99)


def test_weights_that_name_no_classes_have_numbers_for_names(network, finished_run, tmp_path):
    """Those of other systems name none."""
    from retina_jax.interop.files import read_file, write_arrays
    from retina_jax.runs.weights import export_run

    file = tmp_path / "unnamed.safetensors"
    export_run(finished_run, "retina_jax", file)
    write_arrays(file, read_file(file)[0], {})
    notes = []
    loaded = from_weights(file, finished_run, note=notes.append)
    count = len(network.classes.names)
    assert loaded.classes.names == tuple(f"class {i}" for i in range(count))
    assert any("does not name its" in note for note in notes)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)


def test_weights_of_another_network_are_refused(network, finished_run, tmp_path):
    from retina_jax.runs.weights import export_run

    file = tmp_path / "weights.safetensors"
    export_run(finished_run, "retina_jax", file)
    other = network.config.copy_and_resolve_references().unlock()
    other.model.head_convs = 3
    with pytest.raises(UserError, match=r"--config.model.head_convs=1"):
        from_weights(file, other)
    other = network.config.copy_and_resolve_references().unlock()
    other.loss.box = "dfl"
    refused = r"lacks params/box_head/predict/.* predicts 4 values per box, this one 68; .*=giou"
    with pytest.raises(UserError, match=refused):
        from_weights(file, other)


def test_the_pixel_scale_of_training_comes_along(finished_run, tmp_path):
    from retina_jax.runs.weights import export_run

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["pixel_scale"] = [0.0, 4095.0]
    (run / "config.json").write_text(json.dumps(config))
    assert from_workdir(run).pixel_scale == (0.0, 4095.0)
    export_run(run, "retina_jax", tmp_path / "w.safetensors")
    assert from_weights(tmp_path / "w.safetensors", run).pixel_scale == (0.0, 4095.0)


def test_no_data_set_is_needed(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["dir"] = config["resolved"]["data.dir"] = "/nowhere"
    (run / "config.json").write_text(json.dumps(config))
    assert from_workdir(run, "latest").source.startswith("checkpoint of step 4 in ")


def test_a_folder_without_a_run_is_one_line(finished_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "begun")
    for name, message in (
        ("none", "none is not a folder; set it to the workdir of a run"),
        ("empty", "empty is not a workdir: it has no config.json"),
        ("begun", "begun has no checkpoint; train it first"),
    ):
        with pytest.raises(UserError, match=f"^--workdir=.*{message}"):
            from_workdir(tmp_path / name)
    with pytest.raises(UserError, match="checkpoint='first' must be best, latest or a step"):
        from_workdir(finished_run, "first")
