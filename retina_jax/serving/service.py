"""Handles a request: admits it, reads its images, queues them, and returns their detections."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import ClientDisconnect, Request

from retina_jax.data.images import PictureError, TooManyPixels
from retina_jax.data.loader import decoding_threads
from retina_jax.errors import UserError
from retina_jax.prediction.result import labels_of
from retina_jax.serving.batcher import Batcher, Closed, Full
from retina_jax.serving.body import Refusal, read_images
from retina_jax.serving.engine import Engine
from retina_jax.serving.limits import Limits
from retina_jax.serving.statistics import Statistics

log = logging.getLogger("retina_jax.serving")
CLIENT_GONE = 499
"""nginx's code for a closed connection; it is counted, never sent."""


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Service:
    """The requests of a server, in its event loop.

    Threads decode images before they are queued. The queue therefore holds network inputs, whose
    size is known, and a damaged image never reaches the network.
    """

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits = engine, limits
        self.statistics = Statistics()
        self.is_warm = self.is_stopping = False
        self.open: set[asyncio.Task] = set()
        """Requests that have not been answered yet."""
        self._decoding = 0  # images
        self._decoders = ThreadPoolExecutor(decoding_threads(0), "decoder")
        self._batcher = Batcher(
            engine.run, engine.batch_size, limits.queue, engine.pays_from, self.statistics.ran
        )

    @property
    def state(self) -> State:
        if self.is_stopping:
            return State.STOPPING
        return State.READY if self.is_warm else State.STARTING

    @property
    def waiting(self) -> int:
        """Number of images that wait for the network."""
        return self._batcher.waiting

    def stop(self) -> None:
        """Refuses new requests; open ones are still answered."""
        self.is_stopping = True

    def give_up(self) -> None:
        """Answers the requests that are still open with an error."""
        for task in self.open:
            task.cancel()

    def close(self, seconds: float) -> bool:
        """Ends the threads; returns whether that of the network ended within ``seconds``."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        return self._batcher.close(seconds)

    async def detect(
        self, request: Request, threshold: float | None, classes: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """The detections of the images in a request, as `ImageDetections.to_dict` gives them.

        Raises `Refusal`.
        """
        started, status = time.monotonic(), 500
        try:
            self._admit()
            least, labels = self._selection(threshold, classes)
            found = await self._within_limits(request)
            status = 200
            return [one.select(least, labels).to_dict() for one in found]
        except Refusal as refusal:
            status = refusal.status
            raise
        except ClientDisconnect:
            status = CLIENT_GONE
            raise Refusal(CLIENT_GONE, "the client has closed the connection") from None
        except Exception:
            log.exception("a request failed")
            raise Refusal(500, "the detector failed; the reason is in the server's log") from None
        finally:
            self.statistics.answered(status, time.monotonic() - started)

    def _admit(self) -> None:
        if self.state is not State.READY:
            text = f"the server is {self.state.value}; try again later"
            raise Refusal(503, text, {"Retry-After": "5", "Connection": "close"})
        if len(self.open) >= self.limits.queue:
            raise _busy(f"open requests: {len(self.open)}", self.limits, 1)

    def _selection(
        self, threshold: float | None, classes: Sequence[str] | None
    ) -> tuple[float, list[int] | None]:
        least = self.engine.threshold
        if threshold is not None and threshold < least:
            raise Refusal(
                422,
                f"threshold={threshold:g} is below that of the server, {least:g}; restart it with "
                f"--score-threshold={threshold:g}",
            )
        known, names = self.engine.classes, []
        for text in classes or ():
            names += [text] if text in known.names else map(str.strip, text.split(","))
        names = [name for name in names if name]
        try:
            labels = labels_of(names, known, "classes") if names else None
        except UserError as error:
            raise Refusal(422, str(error)) from None
        return max(least, threshold or 0.0), labels

    async def _within_limits(self, request: Request) -> list[Any]:
        """Reads and detects in a separate task, which is cancelled if the client disconnects."""
        limit = self.limits.seconds
        has_body = asyncio.Event()
        work = asyncio.create_task(self._answer(request, has_body))
        gone = asyncio.create_task(_gone(request, has_body))
        self.open.add(work)
        try:
            await asyncio.wait({work, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled():
                return work.result()
            if gone.done() and not work.done():
                raise ClientDisconnect
            if work.cancelled():
                raise Refusal(503, "the server is stopping; try again later")
            if not has_body.is_set():
                raise Refusal(408, f"the body did not arrive within {limit:g} s", _CLOSE)
            raise Refusal(504, f"no detections within {limit:g} s; waiting images: {self.waiting}")
        finally:
            self.open.discard(work)
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})  # its places in the queue are free

    async def _answer(self, request: Request, has_body: asyncio.Event) -> list[Any]:
        images = await read_images(request, self.limits)
        has_body.set()
        waiting, count = self._decoding + self.waiting, len(images)
        if waiting + count > self.limits.queue:  # before they take more memory
            raise _busy(f"waiting images: {waiting}", self.limits, 1)
        self._decoding += count
        try:
            read = await self._read(images)
        finally:
            self._decoding -= count
        del images  # what waits is the network's input alone
        try:
            futures = self._batcher.submit(read)
        except Full as full:
            text = f"waiting images: {full.waiting}"
            raise _busy(text, self.limits, full.seconds) from None
        except Closed:
            raise Refusal(503, "the server is stopping; try again later") from None
        return await _all(asyncio.wrap_future(future) for future in futures)

    async def _read(self, images: Sequence[tuple[str, bytes]]) -> list[tuple[int, Any]]:
        loop = asyncio.get_running_loop()

        async def one(number: int, name: str, content: bytes) -> tuple[int, Any]:
            try:
                arguments = name, content, self.limits.pixels
                return await loop.run_in_executor(self._decoders, self.engine.read, *arguments)
            except PictureError as error:
                status = 413 if isinstance(error, TooManyPixels) else 422
                raise Refusal(status, f"image {number} ({name}) {error}") from None

        return await _all(one(number, *image) for number, image in enumerate(images, 1))


_CLOSE = {"Connection": "close"}


def _busy(text: str, limits: Limits, seconds: int) -> Refusal:
    text = f"{text}, limit: {limits.queue} (--max-queue); try again in {seconds} s"
    return Refusal(429, text, {"Retry-After": str(seconds)})


async def _all(awaitables: Any) -> list[Any]:
    """The results in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(a) for a in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _gone(request: Request, has_body: asyncio.Event) -> None:
    """Returns when the client has closed the connection."""
    await has_body.wait()  # only one may receive
    while (await request.receive())["type"] != "http.disconnect":
        pass
