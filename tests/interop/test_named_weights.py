"""Weights by name, from the command line to the first step."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
import weight_server

from experiments.finetune import get_config as finetune
from retina_jax.errors import UserError
from retina_jax.interop import catalogue, fetch
from retina_jax.interop.catalogue import CATALOGUE, Digest
from retina_jax.interop.export import export_names
from retina_jax.interop.files import write_arrays
from retina_jax.interop.fit import fit
from retina_jax.interop.weights import MSRA
from retina_jax.runs.train import train
from retina_jax.runs.weights import read_source
from retina_jax.training.loop import TrainingLoop
from retina_jax.training.workdir import read_config
from tests.faults.processes import REPOSITORY, SMALL, Run, said

NAME = "torchvision:resnet18"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Both systems' folders, on this machine; the cache is empty."""
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path / "cache"))
    with weight_server.serve() as server:
        for system in catalogue.BASES:
            monkeypatch.setitem(catalogue.BASES, system, f"{server.url}{system}/")
        yield server


@pytest.fixture
def small_resnet(server, tiny_config, random_weights, shallow, tmp_path, monkeypatch):
    """A backbone as narrow as that of ``tiny_config``, published as ``NAME``; its arrays."""
    tree = random_weights(tiny_config)
    tree = {kind: {"backbone": part["backbone"]} for kind, part in tree.items()}
    arrays = export_names(tree, "torchvision")
    arrays = {name.removeprefix("backbone.body."): value for name, value in arrays.items()}
    write_arrays(tmp_path / "small.safetensors", arrays)
    content = (tmp_path / "small.safetensors").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    file = f"resnet18-{digits}.safetensors"
    server.files[f"torchvision/{file}"] = content
    row = dataclasses.replace(CATALOGUE[NAME], file=file, digest=Digest("sha256", digits))
    monkeypatch.setitem(CATALOGUE, NAME, row)
    return tree


class _FirstStepError(Exception):
    pass


@pytest.fixture
def start(tiny_config, monkeypatch):
    """``start(workdir, config)``: begins a run and returns its state before the first step."""
    states = []

    def run(loop, state, *_):
        states.append(state)
        raise _FirstStepError

    monkeypatch.setattr(TrainingLoop, "run", run)

    def start(workdir, config=tiny_config):
        with pytest.raises(_FirstStepError):
            train(config, workdir)
        return states.pop()

    return start


def test_training_starts_from_the_weights_of_a_name(
    server, small_resnet, tiny_config, start, tmp_path
):
    tiny_config.model.init_from = NAME
    state = start(tmp_path / "run")
    for kind, values in (("params", state.params), ("batch_stats", state.batch_stats)):
        theirs = small_resnet[kind]["backbone"]
        assert theirs.keys() == values["backbone"].keys()
        for module, layers in theirs.items():
            _assert_equal(layers, values["backbone"][module])
    assert read_config(tmp_path / "run").model.init_from == NAME
    server.status = 404  # from now on
    read_source(NAME, "config.model.init_from")
    assert len(server.requests) == 1


def _assert_equal(theirs, ours):
    if isinstance(theirs, dict):
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            _assert_equal(value, ours[name])
    else:
        np.testing.assert_array_equal(theirs, np.asarray(ours))


@pytest.mark.faults
def test_two_processes_fit_and_fetch_as_one_does(server, small_resnet, start, shapes_dir, tmp_path):
    """Fitted to the data, from weights by name: one download, and in each process the same run."""
    fields = {
        "data.dir": str(shapes_dir), "data.pixel_budget": 128 * 128,
        "model.backbone": "resnet18", "model.width": 8, "model.fpn_channels": 16,
        "model.head_channels": 16, "model.head_convs": 1, "model.init_from": NAME,
    }  # fmt: skip
    config = finetune()
    for name, value in fields.items():
        group, leaf = name.split(".")
        config[group][leaf] = value
    state = start(tmp_path / "one", config)
    server.requests.clear()
    row = CATALOGUE[NAME]
    with Run(
        tmp_path / "two",
        shapes_dir,
        count=2,
        devices=2,
        experiment="finetune",
        environment={"RETINA_JAX_CACHE": str(tmp_path / "theirs")},
        program=(REPOSITORY / "tests/published_program.py", NAME, row.url.removesuffix(row.file),
                 row.file, row.digest.digits, tmp_path),
        **dict.fromkeys(SMALL) | fields,
    ) as run:  # fmt: skip
        codes, printed = run.end()
    assert codes == [0, 0], printed
    assert len(server.requests) == 1
    assert "fitted to 24 training images" in printed[0]
    assert f"weights from {NAME}" in printed[0]
    assert said(printed[1]) == ""
    one, two = (
        json.loads((tmp_path / workdir / "config.json").read_text()) for workdir in ("one", "two")
    )
    assert {"data.short_side", "train.steps", "data.max_boxes"} <= set(two["resolved"]["fitted"])
    assert two == one
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    weights = state.params, state.batch_stats
    for process in ("0", "1"):
        with np.load(tmp_path / f"{process}.npz") as theirs:
            assert len(theirs) == len(jax.tree.leaves(weights))
            for name, ours in zip(theirs, jax.tree.leaves_with_path(weights), strict=True):
                path, value = ours
                if jax.tree_util.DictKey("backbone") in path:
                    np.testing.assert_array_equal(theirs[name], value)


def test_a_run_resumes_without_network_and_file(
    server, tiny_config, finished_run, shallow, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "cache_folder", lambda: 1 / 0)
    tiny_config.model.init_from = "torchvision:resnet18"
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert train(tiny_config, run).metrics is not None
    assert read_config(run).model.init_from == "torchvision:resnet18"
    assert server.requests == []


def test_import_weights_takes_names_too(program, server, small_resnet, tiny_config, tmp_path):
    flags = [
        f"--config.model.{name}={tiny_config.model[name]}"
        for name in ("width", "fpn_channels", "head_channels", "head_convs")
    ]
    command = ["import-weights", "--config=experiments/shapes.py", *flags, "--classes=3"]
    done = program(*command, f"--weights={NAME}", f"--out={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert f"fetching {server.url}torchvision/resnet18-" in done.stderr
    assert (tmp_path / "run/checkpoints/0").is_dir()
    done = program(*command, "--weights=torchvision:resnet19", f"--out={tmp_path}/other")
    assert done.returncode == 2
    assert "did you mean torchvision:resnet18" in done.stderr
    done = program(*command, "--weights=resnet18", f"--out={tmp_path}/other")
    assert done.returncode == 2
    assert "did you mean torchvision:resnet18" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = program(*command, "--weights=detectron2:MSRA/R-50", f"--out={tmp_path}/other")
    assert done.returncode == 2
    assert "add --trust" in done.stderr
    done = program(*command, "--weights=detectron2:MSRA/R-50", f"--out={tmp_path}/o", "--trust")
    assert "HTTP 404" in done.stderr


def test_the_list_has_a_line_for_each_name(program, tmp_path, monkeypatch):
    monkeypatch.setenv("RETINA_JAX_CACHE", str(tmp_path))
    done = program("import-weights", "--list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(CATALOGUE)]] == list(CATALOGUE)
    assert "SHA-256, first 8 digits" in lines[1]
    assert f"{tmp_path}/weights" in lines[-1]


def test_weights_of_detectron2_tell_that_their_pixels_differ(
    server, config_of, random_weights, tmp_path
):
    config = config_of(backbone="resnet50", norm="frozen")
    fresh = random_weights(config)
    arrays = export_names(fresh, "detectron2")
    write_arrays(tmp_path / "theirs.pkl", arrays)
    row = CATALOGUE["detectron2:retinanet_R_50_FPN_1x"]
    content = (tmp_path / "theirs.pkl").read_bytes()
    server.files[f"detectron2/{row.file}"] = content
    with pytest.raises(UserError, match=r"has MD5 .* but detectron2:retinanet_R_50_FPN_1x has MD5"):
        read_source(row.name, "--weights")
    with pytest.MonkeyPatch.context() as patch:
        md5 = Digest("md5", hashlib.md5(content).hexdigest()[:6])
        patch.setitem(CATALOGUE, row.name, dataclasses.replace(row, digest=md5))
        imported = read_source(row.name, "--weights")
    assert imported.system == "Detectron2 RetinaNet"
    assert row.pixels == catalogue.BGR_MSRA
    assert {name: imported.expects[name] for name in MSRA} == MSRA
    differs = "\n".join(fit(imported, fresh, config, range(3), "theirs").differs)
    assert "--config.data.pixel_order=BGR" in differs
    assert "--config.data.std=" in differs
