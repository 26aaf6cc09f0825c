"""Eight virtual devices, shapes checked at run time, and small data sets that tests share."""

import dataclasses
import fcntl
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

# Set before JAX is imported. Workers of pytest-xdist and every subprocess inherit the folder from
# the first process, so a program that several of them run is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="retina_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores Ctrl-C for what it starts with "&", and so would every program under test
    signal.signal(signal.SIGINT, signal.default_int_handler)

from support import (
    EXPORTED,
    PURE,
    compile_in_full,
    compile_quickly,
    compiled_quickly,
    is_quick,
    leave_out_the_surroundings,
    prepare_coco,
)

leave_out_the_surroundings()
compile_quickly()

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(PURE, "beartype.beartype")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from rich.console import Console  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# the first example of a jitted property compiles; speed is the benchmarks' business
hypothesis.settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("ci")


_LONGEST = (
    "faults/", "jobs/test_train", "training/test_step", "interop/test_scripts", "parity/",
    "models/", "jobs/", "test_experiments", "test_wheel", "ablation/",
)  # fmt: skip
"""Files that take longest come first, so that two workers end together (`scripts/test.sh`)."""


def pytest_collection_modifyitems(items):
    """The longest files first; within a file, compilation changes its mode once."""
    first = {}
    for i, item in enumerate(items):
        first.setdefault(item.path, i)

    def turn(item):
        name = item.nodeid.removeprefix("tests/")
        longest = next((i for i, x in enumerate(_LONGEST) if name.startswith(x)), len(_LONGEST))
        return longest, first[item.path], not is_optimized(item)

    items.sort(key=turn)


def is_optimized(item):
    return item.get_closest_marker("optimized") is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiles in full for tests marked ``optimized``, else quickly; before any fixture is made.

    Most tests compile for longer than they run. The options are not part of jit's key, so programs
    of the other mode are dropped; they are part of the key of the compilation cache on disk.
    """
    quick = not is_optimized(item)
    if is_quick() != quick:
        import jax

        (compile_quickly if quick else compile_in_full)()
        jax.clear_caches()


_maps_counted = 0.0


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Frees compiled programs before Linux's 65,530 memory maps of a process are used up.

    A training step on eight CPU devices takes thousands; XLA then aborts, or ends in a
    segmentation fault, wherever it asks for the next.
    """
    global _maps_counted
    yield
    if time.monotonic() - _maps_counted < 5:
        return  # counting takes milliseconds, and programs take longer to compile
    _maps_counted = time.monotonic()
    with open("/proc/self/maps", "rb") as maps:
        count = sum(1 for _ in maps)
    if count > 15_000:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def golden():
    """Reads a case of another system's RetinaNet; skips only where the folder is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared/golden")
    return lambda system: np.load(SHARED / "golden" / system / "case.npz")


@pytest.fixture(scope="session")
def bccd():
    """The folder of real blood-cell images; skips only where it is absent."""
    folder = SHARED / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/bccd")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(name, make)``: a folder that ``make(folder)`` fills, for all workers of xdist.

    Tests only read it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder_of(name, make):
        folder = base / f"shared_{name}"
        with open(base / f"shared_{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = base / f"shared_{name}.made"
            if not made.exists():
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def shapes_dir(made_once):
    """A data folder with ``shapes``, cut to 24 training and 10 validation pictures."""
    from retina_jax.prepare import shapes

    return made_once("shapes", lambda out: shapes.build(out, {"train": 24, "validation": 10}))


@pytest.fixture(scope="session")
def bccd_data(bccd, made_once):
    """The blood-cell images as a data set."""
    return made_once("bccd", lambda out: prepare_coco(
        bccd / "images", (bccd / "train.json", bccd / "val.json"), out))  # fmt: skip


def tiny(data_dir):
    """The shapes experiment cut to seconds: a quarter of the width, four images a step."""
    from experiments.shapes import get_config

    config = get_config()
    config.data.dir = str(data_dir)
    config.model.width = 8
    config.model.fpn_channels = config.model.head_channels = 16
    config.model.head_convs = 1
    config.train.batch_size = config.eval.batch_size = 8
    config.train.steps = 4
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.eval.every = 0
    config.eval.pictures = 2
    config.eval.report = False
    config.eval.score_threshold = 0.0  # a network of four steps is sure of nothing
    config.optimizer.warmup_steps = 0
    return config


@pytest.fixture
def tiny_config(shapes_dir):
    return tiny(shapes_dir)


@pytest.fixture(scope="session")
def finished_run(shapes_dir, made_once):
    """The workdir of four steps of ``tiny_config`` on two devices; tests only read it.

    Its network is ``shallow``; so is that of each test that takes it up.
    """
    from retina_jax import parallel
    from retina_jax.runs.train import train

    two = parallel.Devices.local(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel.Devices, "local", lambda: two)
        _make_shallow(patch)
        config = tiny(shapes_dir)
        config.eval.report = True
        return made_once("run", lambda folder: train(config, folder / "run")) / "run"


@pytest.fixture(scope="session")
def exported(finished_run, made_once):
    """``finished_run``, exported by the command: a folder for each format; tests only read it."""
    from retina_jax.main import main

    def make(folder):
        for kind in EXPORTED:
            arguments = [f"--workdir={finished_run}", f"--format={kind}", f"--out={folder / kind}"]
            assert main(["retina-jax", "export", *arguments]) == 0

    with pytest.MonkeyPatch.context() as patch:
        _make_shallow(patch)
        return made_once("exported", make)


@pytest.fixture
def quick_init(monkeypatch):
    """Compiles `init_state` quickly, also in ``optimized`` tests; returns it."""
    import jax

    from retina_jax.runs import train
    from retina_jax.training.step import init_state

    def initial(*arguments):
        with compiled_quickly():
            return jax.block_until_ready(init_state(*arguments))

    monkeypatch.setattr(train, "init_state", initial)
    return initial


@pytest.fixture
def shallow(monkeypatch):
    """Networks with one block a stage, in this process: half as long to compile, or less."""
    _make_shallow(monkeypatch)


def _make_shallow(patch):
    from retina_jax.config.backbones import BACKBONES

    for name in ("resnet18", "resnet50", "resnext50_32x4d"):
        patch.setitem(BACKBONES, name, dataclasses.replace(BACKBONES[name], blocks=(1, 1, 1, 1)))


@pytest.fixture
def small_model(monkeypatch):
    """A network that compiles in a second instead of RetinaNet, in this process."""
    import small_network

    from retina_jax.models import retinanet

    monkeypatch.setattr(retinanet, "build", small_network.build)


@pytest.fixture
def program(capsys, monkeypatch):
    """Runs a command in this process, on one device: its exit code, stdout and stderr."""
    from retina_jax import parallel
    from retina_jax.main import main

    one = parallel.Devices.local(1)
    monkeypatch.setattr(parallel.Devices, "local", lambda: one)
    monkeypatch.chdir(REPOSITORY)

    def run(*arguments):
        code = main(["retina-jax", *map(str, arguments)])
        said = capsys.readouterr()
        return types.SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


@pytest.fixture
def quiet():
    return Console(file=sys.stderr, soft_wrap=True, highlight=False)


def _prepare_coco_tree(root, categories, images):
    """A small COCO tree, and the data set that prepare makes of it, in ``data``."""
    from PIL import Image

    (root / "images").mkdir(parents=True)
    files = []
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        content = {"categories": categories, "images": [], "annotations": []}
        for i, (width, height) in enumerate(images):
            name = f"{split}_{i:03d}.jpg"
            picture = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
            Image.fromarray(picture).resize((width, height)).save(root / "images" / name)
            content["images"].append(
                {"id": 1000 + 7 * i, "file_name": name, "width": width, "height": height}
            )
            for k in range(i % 5):  # some images have no boxes
                x, y = rng.uniform(0, width / 2), rng.uniform(0, height / 2)
                box = [x, y, rng.uniform(10, width / 2), rng.uniform(10, height / 2)]
                category = int(rng.choice([c["id"] for c in categories]))
                if k == 3:  # of a crowd alone nothing could be learned
                    category = content["annotations"][-1]["category_id"]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": 1000 + 7 * i,
                        "category_id": category,
                        "bbox": [round(v, 2) for v in box],
                        "area": round(box[2] * box[3] * 0.7, 2),
                        "iscrowd": int(k == 3),
                    }
                )
        path = root / f"instances_{split}.json"
        path.write_text(json.dumps(content))
        files.append(path)
    prepare_coco(root / "images", files, root / "data")


@pytest.fixture(scope="session")
def coco_tree(made_once):
    """COCO-shaped: 80 classes with ids 1 to 90 and gaps, crowds, empty images, all aspects."""
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 91) if i not in gaps]
    sizes = [(640, 480), (480, 640), (500, 333), (640, 640), (300, 500), (640, 200)] * 3
    make = lambda folder: _prepare_coco_tree(folder, categories, sizes)  # noqa: E731
    return made_once("coco", make) / "data"


@pytest.fixture(scope="session")
def two_aspects(made_once):
    """Three classes, ids 1, 3, 7; landscape and portrait pictures."""
    categories = [{"id": i, "name": f"thing {i}"} for i in (1, 3, 7)]
    sizes = [(160, 120), (120, 160)] * 8
    make = lambda folder: _prepare_coco_tree(folder, categories, sizes)  # noqa: E731
    return made_once("aspects", make) / "data"


@pytest.fixture(scope="session")
def _bucket_server():
    """A server of one bucket, to which gcsfs, TensorStore and google-cloud-storage are pointed."""
    import bucket_server

    with bucket_server.serve() as bucket, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", bucket.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google for credentials
        yield bucket


@pytest.fixture
def bucket(_bucket_server, monkeypatch):
    """The empty bucket ``gs://bucket``; gcsfs tries again soon, instead of after seconds."""
    import asyncio

    import gcsfs.retry

    async def sleep(_):
        await asyncio.sleep(0.05)

    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=sleep))
    _bucket_server.wipe()
    return _bucket_server


@pytest.fixture(scope="session")
def odd_folder(two_aspects, tmp_path_factory):
    """Annotations called x_train and x_test, in a folder whose name a shell would split."""
    folder = tmp_path_factory.mktemp("printed") / "my 'odd' $HOME"
    folder.mkdir()
    source = two_aspects.parent
    shutil.copy(source / "instances_train.json", folder / "x_train.json")
    shutil.copy(source / "instances_val.json", folder / "x_test.json")
    (folder / "images").symlink_to(source / "images")
    return folder
