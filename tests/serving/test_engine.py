"""The network behind the server: the numbers of `Detector`, all compiled before the start."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from served import detect, serving, wait_until

from retina_jax import Detector
from retina_jax.data.images import PictureError, TooManyPixels
from retina_jax.prediction.network import from_workdir
from retina_jax.serving.engine import NetworkEngine

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def engine(finished_run):
    """On one device, as a user with one has; the suite sees eight."""
    import dataclasses

    from retina_jax import parallel
    from retina_jax.config.backbones import BACKBONES

    one = parallel.Devices.local(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel.Devices, "local", lambda count=None: one)
        shallow = dataclasses.replace(BACKBONES["resnet18"], blocks=(1, 1, 1, 1))
        patch.setitem(BACKBONES, "resnet18", shallow)
        network = from_workdir(finished_run)
        made = NetworkEngine(network, "tiny", 4)
        made.detector = Detector(network, batch_size=4)
        yield made


def pictures():
    """PNG files of several shapes and modes, by name."""
    rng = np.random.default_rng(0)
    made = {}
    for k, (shape, mode) in enumerate(
        [((96, 128, 3), "RGB"), ((128, 128), "L"), ((200, 90, 4), "RGBA"), ((64, 64, 3), "RGB"),
         ((130, 131, 3), "RGB")]
    ):  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8), mode).save(file, "PNG")
        made[f"{k}.png"] = file.getvalue()
    return made


def test_a_server_gives_the_numbers_of_the_detector_and_compiles_nothing(engine, tmp_path):
    import jax

    files = pictures()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: engine.detector(tmp_path / name) for name in files}
    programs = []
    with serving(engine) as site:
        listen = lambda event, *_, **__: programs.append(event)  # noqa: E731
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            engine._pays_from[0] = 2
            together = detect(site.port, *files.items())
            engine._pays_from[0] = 9
            apart = detect(site.port, *files.items())
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        assert site.service.statistics.figures()["images_per_batch"] > 1
    assert not [event for event in programs if "backend_compile" in event]
    for status, _, content in (together, apart):
        assert status == 200
        for image in content["images"]:
            found = expected[image["source"]]
            assert (image["height"], image["width"]) == found.size
            assert len(image["detections"]) == len(found) > 10
            scores = np.array([d["score"] for d in image["detections"]])
            np.testing.assert_allclose(scores, found.scores, atol=2e-6)
            # where scores tie within rounding, the order of two may differ
            boxes = sorted(map(tuple, np.round([d["box"] for d in image["detections"]], 2)))
            others = sorted(map(tuple, np.round(found.boxes, 2)))
            np.testing.assert_allclose(boxes, others, atol=0.02)
            assert {(d["label"], d["name"], d["category_id"]) for d in image["detections"]} == {
                (d.label, d.name, found.classes.ids[d.label]) for d in found
            }
            assert np.bincount([d["label"] for d in image["detections"]]).tolist() == (
                np.bincount(found.labels).tolist()
            )


def png_of(width, height):
    """A PNG that states a size, whose pixels are missing."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_the_size_is_checked_before_anything_is_decoded(engine, monkeypatch):
    monkeypatch.setattr("retina_jax.serving.engine.Predictor.read", lambda *_: pytest.fail("read"))
    with pytest.raises(
        TooManyPixels, match=r"has 9000×9000 pixels \(81.0 megapixels\); .* is 50 m"
    ):
        engine.read("a.png", png_of(9000, 9000), 50_000_000)
    with pytest.raises(TooManyPixels, match="has more than 178956970 pixels"):
        engine.read("a.png", png_of(60_000, 60_000), 50_000_000)
    tiff = struct.pack("<2sHIHHHIIHHIII", b"II", 42, 8, 2, 256, 4, 1, 90_000, 257, 4, 1, 90_000, 0)
    with pytest.raises(TooManyPixels, match=r"has 90000×90000 pixels"):
        engine.read("a.tif", tiff, 50_000_000)


def test_a_file_that_is_no_image_is_named(engine):
    with pytest.raises(PictureError, match="PDF is not supported"):
        engine.read("a.pdf", b"%PDF-1.7 ...", 50_000_000)
    with pytest.raises(PictureError, match="cannot be decoded"):
        engine.read("a.png", png_of(64, 64), 50_000_000)


def test_a_batch_is_used_from_where_it_is_faster(engine, monkeypatch):
    taken = {1: 0.010, 4: 0.025}
    monkeypatch.setattr(engine, "_timed", lambda bucket, count: taken[count])
    told = []
    for seconds, least in ((0.025, 3), (0.011, 2), (0.2, 4)):
        taken[4] = seconds
        engine.warm_up(told.append)
        assert engine.pays_from(0) == least
    assert told[:2] == ["128×128, batch 1", "128×128, batch 4"]


def test_an_error_of_one_run_leaves_the_server_alive(engine, monkeypatch):
    name, content = next(iter(pictures().items()))
    with serving(engine) as site:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "run", lambda *_: 1 / 0)
            site.service._batcher._run = engine.run
            assert detect(site.port, (name, content))[0] == 500
        site.service._batcher._run = engine.run
        assert detect(site.port, (name, content))[0] == 200
        wait_until(lambda: not site.service.open)
