"""One network of four steps, and its validation pictures as files."""

import json

import pytest


@pytest.fixture(scope="module")
def one_device():
    """The same device as a user with one has; the suite sees eight."""
    from retina_jax import parallel

    one = parallel.Devices.local(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel.Devices, "local", lambda count=None: one)
        yield one


@pytest.fixture(scope="session")
def sources(finished_run, shapes_dir, tmp_path_factory):
    """The validation pictures of ``finished_run`` as files, and their detections by file name.

    `prepare` stores JPEG and PNG files as they are, so its records are the source files.
    """
    from retina_jax.data.data_set import find_data_set, open_split

    split = open_split(find_data_set(shapes_dir, "shapes"), "validation")
    folder = tmp_path_factory.mktemp("sources")
    names = {}
    for row in range(len(split)):
        name = str(split.file_names[row])
        (folder / name).write_bytes(split[row].image)
        names[int(split.image_ids[row])] = name
    (evaluation,) = finished_run.glob("eval/*/detections.json")
    by_name = {name: [] for name in names.values()}
    for result in json.loads(evaluation.read_text()):
        by_name[names[result["image_id"]]].append(result)
    return folder, by_name


@pytest.fixture(scope="module")
def network(finished_run):
    from retina_jax.config.backbones import BACKBONES, ResidualKind
    from retina_jax.prediction.network import from_workdir

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet18", ResidualKind((1, 1, 1, 1), bottleneck=False))
        return from_workdir(finished_run)
