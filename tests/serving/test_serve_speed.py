"""The load of `benchmark serve`: what it sends, what it counts, and what it notices."""

import contextlib

import numpy as np
import pytest
from served import NumberedEngine, ask, serving

from retina_jax.data.images import stored_size
from retina_jax.errors import MISTAKE, RunError
from retina_jax.prediction.pictures import Picture
from retina_jax.prediction.result import ImageDetections
from retina_jax.serving import speed
from retina_jax.types import Detections


class SizedEngine(NumberedEngine):
    """Finds nothing, in images of the size that they have."""

    wrong = 0

    def read(self, name, encoded, most_pixels):
        width, height = stored_size(encoded)
        return 0, (height, width)

    def run(self, bucket, images):
        self.batches.append(images)
        if self.wrong:
            images = images[1:] + images[:1]
            images = [(h, w + (len(images) == 1)) for h, w in images]
            self.wrong -= 1
        nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32))
        picture = Picture("image", b"")
        return [ImageDetections.of(nothing, size, self.classes, picture) for size in images]


def test_images_differ_in_size():
    images = speed.images_of((96, 64))
    assert len({size for size, _ in images}) == len(images) == 64
    assert all(stored_size(jpeg) == size[::-1] for size, jpeg in images)


def test_every_request_is_counted_and_a_wrong_answer_noticed():
    engine = SizedEngine()
    images = speed.images_of((64, 64))
    with serving(engine) as site:
        seconds, taken, wrong = speed.load("127.0.0.1", site.port, images, 4, 40)
        assert (len(taken), wrong) == (40, [])
        assert 0 < max(taken) <= seconds
        assert sum(map(len, engine.batches)) == 40
        engine.wrong = 1
        assert speed.load("127.0.0.1", site.port, images, 1, 3)[2] == [
            "an answer to another request"
        ]
        broken = [(images[0][0], b"")]
        assert speed.load("127.0.0.1", site.port, broken, 1, 1)[2] == [
            "400: image 1 (image) is empty"
        ]
    (gone,) = speed.load("127.0.0.1", site.port, images, 1, 1)[2]
    assert gone.startswith("no answer: ")


@pytest.fixture
def servers(monkeypatch):
    """Stands in for servers in processes of their own."""
    with contextlib.ExitStack() as stack:

        class Running:
            code = 143

            def __init__(self, workdir, batch_size, most):
                self.batch_size = batch_size
                site = stack.enter_context(serving(SizedEngine()))
                self.address = type("Address", (), {"hostname": "127.0.0.1", "port": site.port})

            def health(self):
                status, _, content = ask(self.address.port)
                return status, content

            def wait_until_ready(self):
                return self.health()[1]

            def resident_mebibytes(self):
                return 7.0

            def stop(self):
                return self.code

        monkeypatch.setattr(speed, "_Running", Running)
        yield Running


def test_servers_take_turns_alone_and_with_many_clients(servers):
    rows = list(speed.time_serving("run", 4, runs=2, steps=3, clients=2))
    assert [(row["batch_size"], row["clients"], row["requests"]) for row in rows] == [
        (4, 1, 6), (1, 1, 6), (4, 2, 12), (1, 2, 12),
    ]  # fmt: skip
    for row in rows:
        assert row["lost_or_wrong"] == 0
        assert row["images_per_second"] > 0
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_batch"] >= 1
        assert row["resident_mib"] == [7.0, 7.0]
    servers.code = -9
    with pytest.raises(RunError, match=r"exit codes \[-9, -9\]"):
        list(speed.time_serving("run", 4, 1, 1, 1))


def test_a_server_that_does_not_start_is_named(tmp_path):
    with pytest.raises(RunError, match=r"did not start: error: --workdir=.*none is not a folder"):
        next(speed.time_serving(f"{tmp_path}/none", 4, 1, 1, 1))


def test_the_command_needs_a_run(program):
    done = program("benchmark", "serve")
    assert done.returncode == MISTAKE
    assert "--workdir is missing; set it to the folder of a run" in done.stderr
