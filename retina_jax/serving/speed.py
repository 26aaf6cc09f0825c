"""Measures servers of a run under load over loopback: rates, latencies, memory, lost answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from retina_jax.errors import RunError

_IMAGES = 64
_READY = 900.0  # seconds to compile
_ENDS = 60.0  # seconds to stop


def images_of(bucket: tuple[int, int]) -> list[tuple[tuple[int, int], bytes]]:
    """Images a little larger than an input shape, no two of one size: (height, width) and JPEG.

    A server that mixed up two requests would therefore return the wrong size.
    """
    rng = np.random.default_rng(0)
    height, width = bucket
    made = []
    for number in range(_IMAGES):
        size = height + number // 8, width + number % 8
        coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        pixels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        made.append((size, cv2.imencode(".jpg", pixels)[1].tobytes()))
    return made


class _Running:
    """A server in a separate process."""

    def __init__(self, workdir: str, batch_size: int, most: int):
        command = [
            sys.executable, "-m", "retina_jax.main", "serve", f"--workdir={workdir}", "--port=0",
            f"--batch-size={batch_size}", f"--max-queue={most}", "--max-seconds=600",
        ]  # fmt: skip
        self.batch_size = batch_size
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self._process.stdout.readline()  # "serving NAME at URL"
        self._lines: list[str] = []
        reader = threading.Thread(target=self._read_errors, daemon=True)
        reader.start()
        if not line:
            self._process.stdout.close()
            self._process.wait()
            reader.join(_ENDS)
            raise RunError(f"the server did not start: {' '.join(self._lines[-1:])}")
        self.address = urlsplit(line.split()[-1])

    def _read_errors(self) -> None:
        with self._process.stderr as lines:
            self._lines.extend(lines)

    def health(self) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(
            self.address.hostname, self.address.port, timeout=60
        )
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def wait_until_ready(self) -> dict[str, Any]:
        end = time.monotonic() + _READY
        while time.monotonic() < end and self._process.poll() is None:
            status, content = self.health()
            if status == 200:
                return content
            time.sleep(0.2)
        raise RunError(f"the server did not become ready: {' '.join(self._lines[-1:])}")

    def resident_mebibytes(self) -> float | None:
        """Memory of the process; None without /proc."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
            return round(int(next(x for x in lines if x.startswith("VmRSS:")).split()[1]) / 1024, 1)
        return None

    def stop(self) -> int:
        """Sends SIGTERM; returns the exit code."""
        self._process.stdout.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_ENDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def load(
    host: str, port: int, images: Sequence[tuple[tuple[int, int], bytes]], clients: int, count: int
) -> tuple[float, list[float], list[str]]:
    """Sends ``count`` requests of one image from ``clients`` threads, each on one connection.

    Returns the total time, the time of each request (seconds), and a line for each answer that is
    missing or belongs to another image.
    """
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    taken: list[float] = []
    wrong: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=600)
        with contextlib.closing(connection):
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    return
                size, jpeg = images[number % len(images)]
                started = time.perf_counter()
                try:
                    connection.request("POST", "/detect", jpeg, {"Content-Type": "image/jpeg"})
                    response = connection.getresponse()
                    content = json.loads(response.read())
                    taken.append(time.perf_counter() - started)
                    if response.status != 200:
                        wrong.append(f"{response.status}: {content['error']}")
                        continue
                    (image,) = content["images"]
                    if (image["height"], image["width"]) != size:
                        wrong.append("an answer to another request")
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    wrong.append(f"no answer: {error!r}")
                    connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, taken, wrong


def time_serving(
    workdir: str, batch_size: int, runs: int, steps: int, clients: int
) -> Iterator[dict[str, Any]]:
    """Compares servers with batches of ``batch_size`` and of 1, in turn, ``runs`` times each.

    Each run sends ``steps`` requests per client, from one client and from ``clients``. Raises
    `RunError` if a server does not start or stop.
    """
    with contextlib.ExitStack() as stack:
        servers = []
        for size in dict.fromkeys((batch_size, 1)):
            servers.append(_Running(workdir, size, max(64, 2 * clients)))
            stack.callback(servers[-1].stop)
        images = images_of(tuple(servers[0].wait_until_ready()["buckets"][0]))
        cases = [(server, count) for count in dict.fromkeys((1, clients)) for server in servers]
        health = {server: server.wait_until_ready() for server in servers}
        for server in servers:  # the first requests fill pools of memory and of threads
            load(server.address.hostname, server.address.port, images, clients, 4 * clients)
        before = {server: server.resident_mebibytes() for server in servers}
        results: dict[Any, list[Any]] = {case: [] for case in cases}
        batches: dict[Any, list[tuple[int, int]]] = {case: [] for case in cases}
        for _ in range(runs):
            for case in cases:
                server, count = case
                first = server.health()[1]["figures"]
                address = server.address.hostname, server.address.port
                results[case].append(load(*address, images, count, steps * count))
                last = server.health()[1]["figures"]
                batches[case].append(
                    (last["images"] - first["images"], last["batches"] - first["batches"])
                )
        for case in cases:
            server, count = case
            wrong = [line for _, _, lines in results[case] for line in lines]
            latencies = np.array([t for _, taken, _ in results[case] for t in taken]) * 1000
            p50, p95, p99 = np.percentile(latencies, (50, 95, 99)).round(1).tolist()
            seen, called = map(sum, zip(*batches[case], strict=True))
            yield {
                "timed": "serve",
                "batch_size": server.batch_size,
                "batched_from": health[server]["batched_from"],
                "clients": count,
                "requests": len(latencies),
                "lost_or_wrong": len(wrong),
                **({"first_wrong": wrong[0]} if wrong else {}),
                "images_per_second": round(
                    statistics.median(steps * count / seconds for seconds, _, _ in results[case]), 2
                ),
                "p50_ms": p50,
                "p95_ms": p95,
                "p99_ms": p99,
                "images_per_batch": round(seen / max(1, called), 2),
                "resident_mib": [before[server], server.resident_mebibytes()],
            }
        stack.pop_all()
        codes = [server.stop() for server in servers]
        if any(code != 128 + signal.SIGTERM for code in codes):
            raise RunError(f"the servers ended with exit codes {codes} instead of 143")
