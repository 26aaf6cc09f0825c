"""A server of a detector that knows each image by its number, and a client."""

import contextlib
import http.client
import json
import threading
import time
import types

import numpy as np

from retina_jax.data.images import PictureError, TooManyPixels
from retina_jax.prediction.pictures import Picture
from retina_jax.prediction.result import ImageDetections
from retina_jax.serving.limits import Limits
from retina_jax.serving.server import Server, bind
from retina_jax.training.workdir import Classes
from retina_jax.types import Detections

BOUNDARY = "a-boundary"


class NumberedEngine:
    """Detects in the image ``number:bucket`` one box at that number."""

    name, threshold, batch_size = "numbered", 0.1, 4
    classes = Classes(("cat", "dog", "fox, red"), (1, 7, 9))
    buckets = ((64, 96), (96, 64))

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []
        self.entered = self.taken = 0  # batches that have begun, and their images
        self.go = threading.Event()
        self.go.set()
        self.fails = lambda numbers: False
        self.reading = 0  # images whose decoding has begun
        self.may_read = threading.Event()
        self.may_read.set()

    def read(self, name, encoded, most_pixels):
        self.reading += 1
        assert self.may_read.wait(30)
        if encoded == b"bomb":
            raise TooManyPixels(f"has 9×9 pixels; the limit is {most_pixels}")
        try:
            number, bucket = map(int, encoded.split(b":"))
        except ValueError:
            raise PictureError("cannot be decoded: not an image") from None
        return bucket, (name, number)

    def run(self, bucket, images):
        self.entered += 1
        self.taken += len(images)
        assert self.go.wait(30)
        time.sleep(self.seconds)
        numbers = [number for _, number in images]
        self.batches.append((bucket, numbers))
        if self.fails(numbers):
            raise RuntimeError("the device is gone")
        return [self._found(name, number) for name, number in images]

    def _found(self, name, number):
        found = Detections(
            boxes=np.array([[number, 0, number + 1, 1], [0, 0, 2, 2]], np.float64),
            scores=np.array([0.9, 0.3], np.float32),
            labels=np.array([number % 2, 0], np.int32),
        )
        return ImageDetections.of(found, (480, 640), self.classes, Picture(name, b""))

    def pays_from(self, bucket):
        return 2

    def warm_up(self, done):
        done("nothing")


@contextlib.contextmanager
def serving(engine, wait=True, **limits):
    """A server in a thread; `stop` ends it as a signal does."""
    ready, started, notes = threading.Event(), threading.Event(), []
    server = Server(engine, Limits(**limits), started.set, ready.set, note=notes.append)
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    ended = []
    thread = threading.Thread(target=lambda: ended.append(server.serve_on(bound)))
    thread.start()
    assert started.wait(30)
    assert not wait or ready.wait(30)
    try:
        yield types.SimpleNamespace(
            port=port, server=server, service=server.service, thread=thread, ended=ended,
            notes=notes,
        )  # fmt: skip
    finally:
        if isinstance(engine, NumberedEngine):
            engine.go.set()
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def form(files):
    """The body of a form with ``(name, content)`` files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def ask(port, method="GET", path="/health", body=None, headers=(), seconds=30):
    """Status, headers and JSON of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        content = response.read()
        kind = response.headers["content-type"] or ""
        return response.status, response.headers, json.loads(content) if "json" in kind else content
    finally:
        connection.close()


def detect(port, *files, query="", headers=()):
    """Sends ``(name, content)`` files as a form."""
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **dict(headers)}
    return ask(port, "POST", f"/detect{query}", form(files), kind)


def numbered(number, bucket=0):
    return f"{number}.jpg", f"{number}:{bucket}".encode()


class Sending:
    """Requests in threads of their own, and their outcomes by number."""

    def __init__(self, port):
        self._port, self._threads, self.outcomes = port, [], {}

    def send(self, number, bucket=0):
        def run():
            self.outcomes[number] = detect(self._port, numbered(number, bucket))

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self):
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.outcomes


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
