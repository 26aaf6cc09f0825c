"""The commands, as a user runs them: import, evaluate, train on, export, load in torchvision."""

import re

import numpy as np
import pytest
from torchvision_cpu import import_torchvision

from retina_jax.errors import UserError
from retina_jax.interop.export import export_names
from retina_jax.interop.files import read_arrays, write_arrays
from retina_jax.models import retinanet
from retina_jax.training.checkpoint import weights_of
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.workdir import read_config

NARROW = [
    "--config=experiments/shapes.py", "--config.model.fpn_channels=64",
    "--config.model.width=64", "--config.model.head_convs=4", "--config.eval.pictures=0",
    "--config.data.short_side=64", "--config.data.long_side=64", "--config.data.buckets=((64,64),)",
    "--config.train.batch_size=2", "--config.eval.batch_size=2",
]  # fmt: skip


@pytest.fixture
def torchvision_file(tmp_path, config_of, random_weights):
    """A file of torchvision's names: ResNet-18 with group norm heads, 5 classes."""
    config = config_of(
        backbone="resnet18", width=64, fpn_channels=64, head_channels=64, head_norm="group"
    )
    tree = random_weights(config, 5)
    path = tmp_path / "theirs.safetensors"
    write_arrays(path, export_names(tree, "torchvision", batch_counters=True))
    return path


@pytest.mark.slow
def test_there_and_back_bit_for_bit_and_on_from_there(
    shallow, program, torchvision_file, shapes_dir, tmp_path, monkeypatch
):
    data = f"--config.data.dir={shapes_dir}"
    own = [*NARROW, data, "--config.anchors.order=ratio_major"]
    done = program("import-weights", *own, f"--weights={torchvision_file}",
                   f"--workdir={tmp_path}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "torchvision RetinaNet:" in done.stderr
    assert "num_batches_tracked" in done.stderr
    again = program("import-weights", *own, f"--weights={torchvision_file}",
                    f"--workdir={tmp_path}/run")  # fmt: skip
    assert again.returncode == 2
    assert "already has checkpoints" in again.stderr

    exported = program("export-weights", f"--workdir={tmp_path}/run",
                       "--to=torchvision", f"--out={tmp_path}/back.safetensors")  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    theirs, back = read_arrays(torchvision_file), read_arrays(tmp_path / "back.safetensors")
    assert theirs.keys() == back.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value)

    exported = program("export-weights", f"--workdir={tmp_path}/run",
                       "--to=retina_jax", f"--out={tmp_path}/own.safetensors")  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    taken = program(
        "import-weights", *NARROW, data, "--config.data.pixel_order=BGR",
        f"--weights={tmp_path}/own.safetensors", f"--workdir={tmp_path}/own",
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    assert "anchors reordered from ratio_major to size_major" in taken.stderr
    assert "set --config.data.pixel_order=RGB" in taken.stderr

    scored = program(*own, f"--workdir={tmp_path}/run",
                     "--mode=evaluate")  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    trained = program(*own, f"--workdir={tmp_path}/run",
                      "--config.train.steps=1", "--config.optimizer.warmup_steps=0")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "weights from the checkpoint of step 0" in trained.stderr

    def stop_before_the_first_step(*_):
        raise UserError("stopped here")  # its program would be another, for the order of channels

    monkeypatch.setattr(TrainingLoop, "run", stop_before_the_first_step)
    started = program(
        *own, f"--workdir={tmp_path}/other", "--config.train.steps=1",
        f"--config.model.init_from={torchvision_file}", "--config.data.pixel_order=BGR",
    )  # fmt: skip
    assert "stopped here" in started.stderr
    assert f"weights from {torchvision_file} (torchvision RetinaNet)" in started.stderr
    assert "set --config.data.pixel_order=RGB" in started.stderr


@pytest.mark.slow
def test_an_exported_detector_runs_in_torchvision(program, torchvision_file, shapes_dir, tmp_path):
    """The printed code is run as it is printed; its logits are this program's."""
    import_torchvision()
    import torch

    own = [*NARROW, f"--config.data.dir={shapes_dir}"]  # size_major: anchors are reordered
    done = program("import-weights", *own, f"--weights={torchvision_file}",
                   f"--workdir={tmp_path}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "anchors reordered from ratio_major to size_major" in done.stderr
    exported = program("export-weights", f"--workdir={tmp_path}/run",
                       "--to=torchvision", f"--out={tmp_path}/theirs.pth")  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    names: dict = {}
    exec(exported.stdout, names)
    model = names["model"].eval()
    image = np.random.default_rng(0).normal(0, 1, (1, 128, 128, 3)).astype(np.float32)
    with torch.no_grad():
        assert set(model([torch.zeros(3, 128, 128)])[0]) == {"boxes", "scores", "labels"}
        features = model.backbone(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        theirs = model.head(list(features.values()))["cls_logits"].numpy()
    config = read_config(tmp_path / "run")
    network = retinanet.build(config, 5)
    ours = network.apply(weights_of(tmp_path / "run"), image, train=False).logits
    ours = np.concatenate(ours, axis=1).reshape(-1, 3, 3, 5).swapaxes(1, 2)
    np.testing.assert_allclose(ours, theirs.reshape(-1, 3, 3, 5), atol=1e-4 * np.abs(theirs).max())


def test_mistakes_are_one_line(program, tmp_path):
    for arguments, message in (
        (["import-weights", *NARROW, "--weights=none.pth", f"--workdir={tmp_path}/a"],
         r"none\.pth: no such file"),
        (["import-weights", *NARROW, "--weights=setup.cfg", f"--workdir={tmp_path}/a"],
         r"--weights='setup\.cfg' is neither a workdir with checkpoints nor a weight file"),
        (["import-weights", *NARROW, f"--workdir={tmp_path}/a"],
         r"--weights is missing"),
        (["export-weights", f"--workdir={tmp_path}", "--to=torchvision",
          f"--out={tmp_path}/a.pth"], r"has no config\.json; set --workdir to the folder of"),
    ):  # fmt: skip
        done = program(*arguments)
        assert done.returncode == 2, done.stderr
        assert re.search(message, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
