"""Detects objects in files and writes the detections; an interrupted prediction resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from retina_jax.data.images import SUFFIXES, PictureError
from retina_jax.data.loader import decoding_threads
from retina_jax.draw import annotate
from retina_jax.errors import UserError
from retina_jax.files import atomic_write
from retina_jax.prediction import formats
from retina_jax.prediction.ahead import in_threads
from retina_jax.prediction.artefact import Artefact, from_export
from retina_jax.prediction.network import Network, from_workdir
from retina_jax.prediction.pictures import VIDEO_SUFFIXES, Picture, find_files
from retina_jax.prediction.record import Line, Record
from retina_jax.prediction.request import DRAWN_FROM, Prediction, Request
from retina_jax.prediction.result import ImageDetections, labels_of
from retina_jax.prediction.stream import Outcome, Predictor, check_threshold
from retina_jax.prediction.tiles import Tiling
from retina_jax.prediction.video import VideoReader, open_writer
from retina_jax.program_cache import keep_compiled_programs
from retina_jax.progress import ProgressBar, Reporter
from retina_jax.training.stop import StopRequest

DRAWN = "drawn"
_FRAMES_IN_FLIGHT = 8  # batches of frames that are read, detected in, or drawn at a time
_MEMORY_OF_FRAMES = 2**30  # bytes
_FIRST_RATE_AFTER = 2.0  # seconds


@dataclasses.dataclass(frozen=True)
class _File:
    """An input: its path, its name in the outputs, its size and modification time."""

    path: Path
    name: str
    stamp: tuple[int, int]

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def predict(request: Request, report: Reporter | None = None) -> Prediction:
    """Detects objects in every image and video; writes detections and drawings to ``out``.

    An interrupted request resumes if it is repeated. Raises `UserError` for inputs, values or an
    ``out`` folder that cannot be used; files that cannot be read are left out.
    """
    report = report or Reporter()
    if request.threshold is not None:
        check_threshold(request.threshold)
    if request.format not in formats.FORMATS:
        listed = ", ".join(formats.FORMATS)
        raise UserError(f"--format={request.format} must be one of {listed}")
    tiling = None if request.tile is None else Tiling(request.tile, request.overlap)
    if request.batch_size is not None and request.batch_size < 1:
        raise UserError(f"--batch-size={request.batch_size} must be 1 or more; set --batch-size=8")
    if request.out.exists() and not request.out.is_dir():
        raise UserError(f"--out={request.out} is a file; set it to a new folder")
    files = _find(request)
    if request.export:
        network = from_export(request.export)
        network.check(request.threshold, request.nms, request.class_agnostic)
    else:
        network = from_workdir(request.workdir, request.checkpoint, report.note)
    if network.config.train.compilation_cache:
        keep_compiled_programs()
    labels = labels_of(request.classes, network.classes, "--classes") if request.classes else None
    record = Record(request.out, _command(request, network))
    return _Run(request, network, labels, tiling, files, record, report).run()


def _find(request: Request) -> list[_File]:
    """The inputs, in order. Raises `UserError` if two would have the same outputs."""
    suffixes = SUFFIXES | VIDEO_SUFFIXES
    found = [find_files(given, "--input", suffixes, request.out) for given in request.inputs]
    root = Path(os.path.commonpath([os.path.abspath(files.root) for files in found]))
    paths = [Path(os.path.abspath(path)) for files in found for path in files.paths]
    files, taken = [], {}
    for path in dict.fromkeys(paths):
        status = path.stat()
        name = path.relative_to(root).as_posix()
        target = formats.path_of(request.out, name, request.format) or Path(name)
        if target in taken:
            raise UserError(
                f"--format={request.format}: {taken[target]} and {name} would both write "
                f"{target.name}; rename one of them"
            )
        taken[target] = name
        files.append(_File(path, name, (status.st_size, status.st_mtime_ns)))
    return files


def _command(request: Request, network: Network | Artefact) -> dict[str, object]:
    """What must be equal for the results of two requests to share a folder."""
    return {
        "--input": [os.path.abspath(given) for given in request.inputs],
        "--threshold": "not set" if request.threshold is None else request.threshold,
        "--classes": sorted(request.classes),
        "--format": request.format,
        "--no-images": not request.images,
        "--tile": request.tile,
        "--overlap": request.overlap if request.tile else None,
        "--nms": request.nms,
        "--class-agnostic": request.class_agnostic,
        "checkpoint": network.source,
        "weights": network.digest(),
    }


class _Run:
    """One prediction."""

    def __init__(
        self,
        request: Request,
        network: Network | Artefact,
        labels: list[int] | None,
        tiling: Tiling | None,
        files: list[_File],
        record: Record,
        report: Reporter,
    ):
        self._request, self._network, self._record, self._report = request, network, record, report
        self._labels, self._tiling, self._files = labels, tiling, files
        least = float(network.config.eval.score_threshold)
        self._least = least if request.threshold is None else request.threshold
        self._drawn_from = max(DRAWN_FROM, least) if request.threshold is None else self._least
        self._frames: dict[str, int] = {}
        self._predictors: dict[int, Predictor] = {}
        self._result = Prediction(drawn_from=self._drawn_from)
        self._started: float | None = None
        self._new = 0

    def run(self) -> Prediction:
        """Detects objects, then writes the files that the format has once."""
        with StopRequest() as stop, contextlib.closing(self._record):
            pictures = [f for f in self._files if not f.is_video]
            todo = [f for f in pictures if not self._record.has(f.name, f.stamp)]
            if len(todo) < len(pictures):
                done = len(pictures) - len(todo)
                self._report.say(f"{done} of {len(pictures)} images are already finished")
            if todo:
                self._detect_pictures(todo, len(pictures), stop)
            for file in self._files:
                if file.is_video and not stop:
                    self._detect_video(file, stop)
            self._result.signal = stop.signal
            self._finish()
        return self._result

    def _predictor(self, batch_size: int) -> Predictor:
        """One per batch size, for all files."""
        if batch_size not in self._predictors:
            request = self._request
            self._predictors[batch_size] = Predictor(
                self._network,
                batch_size,
                request.threshold,
                self._tiling,
                request.nms,
                request.class_agnostic,
            )
        return self._predictors[batch_size]

    def _detect_pictures(self, todo: list[_File], total: int, stop: StopRequest) -> None:
        size = self._request.batch_size or self._network.config.eval.batch_size
        if self._request.batch_size is None and self._tiling is None:
            size = min(size, len(todo))
        by_name = {file.name: file for file in todo}
        stream = self._predictor(size).stream(Picture(file.name, file.path) for file in todo)

        def write(outcome: tuple[Picture, Outcome]) -> Line | PictureError:
            picture, found = outcome
            if isinstance(found, PictureError):
                return found
            return self._written(found, by_name[picture.name].stamp, picture.source)

        results = in_threads(write, stream, decoding_threads(0))
        with (
            contextlib.closing(results),
            contextlib.closing(stream),
            self._report.progress("predicting", total, total - len(todo)) as bar,
        ):
            for (picture, _), line in results:
                if isinstance(line, PictureError):
                    self._leave_out(f"{picture.source} {line}")
                else:
                    self._record.append(line)
                self._advance(bar)
                if stop:
                    return

    def _written(self, found: ImageDetections, stamp: tuple[int, int], path: Path | None) -> Line:
        """Selects, draws and writes the detections of an image; ``path``: None for a frame."""
        found = found.select(self._least, self._labels)
        line = Line.of(found, stamp)
        if self._request.images and path is not None:
            picture = found.select(self._drawn_from).draw()
            target = self._drawn_path(found.source)
            with atomic_write(target) as temporary:
                if target.suffix.lower() == ".png":
                    picture.save(temporary, format="PNG")
                else:
                    picture.save(temporary, format="JPEG", quality=92)
        target = formats.path_of(self._request.out, found.source, self._request.format)
        if target is not None:
            formats.write_picture(target, line, self._request.format, self._network.classes)
        return line

    def _drawn_path(self, name: str) -> Path:
        kept = name.lower().endswith((".jpg", ".jpeg", ".png"))
        return self._request.out / DRAWN / (name if kept else f"{name}.png")

    def _leave_out(self, line: str) -> None:
        self._result.left_out.append(line)
        self._report.note(line, "left out")

    def _advance(self, bar: ProgressBar) -> None:
        """Counts one image; the rate excludes the first ones, which include compilation."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
            bar.advance("")
            return
        self._new += 1
        seconds = now - self._started
        # the images of a batch finish together, so the first rates mean nothing
        bar.advance(f"{self._new / seconds:.1f} images/s" if seconds > _FIRST_RATE_AFTER else None)

    def _detect_video(self, file: _File, stop: StopRequest) -> None:
        """Detects objects in every frame; rewrites the video, using recorded detections."""
        try:
            reader = VideoReader(file.path)
        except PictureError as error:
            self._leave_out(f"{file.path} {error}")
            return
        draws = self._request.images
        name = file.name if file.name.lower().endswith(".mp4") else f"{file.name}.mp4"
        target = self._request.out / DRAWN / name
        has = self._record.has
        known = next(n for n in itertools.count() if not has(_frame_name(file, n), file.stamp))
        whole = known and (target.exists() if draws else known >= (reader.count or np.inf))
        if whole:  # a video is written at its end
            reader.close()
            self._frames[file.name] = known
            return
        with (
            contextlib.closing(reader),
            contextlib.ExitStack() as stack,
            self._report.progress(file.name, reader.count) as bar,
        ):
            done, writer, frames = known, None, iter(())
            if draws:
                done, frames = 0, self._old_frames(file, reader, known)
                unfinished = stack.enter_context(_kept_if(target, lambda: done and not stop))
                writer = stack.enter_context(open_writer(unfinished, reader.rate))
            else:
                reader.skip(known)
            fresh = stack.enter_context(contextlib.closing(self._new_frames(file, reader, known)))
            for line, drawn in itertools.chain(frames, fresh):
                if done >= known:
                    self._record.append(line)
                if writer is not None:
                    writer.write(drawn)
                done += 1
                self._advance(bar)
                if stop:
                    break
        self._frames[file.name] = max(done, known)
        short = reader.count is not None and done < reader.count - 2  # some files count roughly
        if short and not stop:
            self._leave_out(f"{file.path} ends after {done} of {reader.count} frames")

    def _old_frames(
        self, file: _File, reader: VideoReader, known: int
    ) -> Iterator[tuple[Line, np.ndarray]]:
        lines = self._record.lines([_frame_name(file, n) for n in range(known)])
        for line, frame in zip(lines, itertools.islice(reader.frames(), known), strict=False):
            yield line, self._draw(line, frame)

    def _new_frames(
        self, file: _File, reader: VideoReader, known: int
    ) -> Iterator[tuple[Line, np.ndarray | None]]:
        size = self._request.batch_size or self._network.config.eval.batch_size
        frame_bytes = 3 * reader.height * reader.width
        most = _MEMORY_OF_FRAMES // max(1, _FRAMES_IN_FLIGHT * frame_bytes)
        size = max(1, min(size, most))
        pictures = (
            Picture(_frame_name(file, known + n), frame) for n, frame in enumerate(reader.frames())
        )
        stream = self._predictor(size).stream(pictures)

        def drawn(outcome: tuple[Picture, Outcome]) -> tuple[Line, np.ndarray | None]:
            picture, found = outcome
            line = self._written(found, file.stamp, None)
            return line, self._draw(line, picture.source) if self._request.images else None

        with contextlib.closing(stream):
            for _, result in in_threads(drawn, stream, decoding_threads(0)):
                yield result

    def _draw(self, line: Line, frame: np.ndarray) -> np.ndarray:
        scores = np.array(line.scores)
        shown = np.flatnonzero(scores > self._drawn_from)
        boxes = np.array(line.boxes, np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [line.labels[i] for i in shown]
        names = [self._network.classes.names[label] for label in labels]
        return np.asarray(annotate(frame, boxes[shown], labels, names, scores[shown]))

    def _finish(self) -> None:
        """Counts, and at the end writes the files that a format has once."""
        names = []
        for file in self._files:
            frames = range(self._frames.get(file.name, 0))
            own = [_frame_name(file, n) for n in frames] if file.is_video else [file.name]
            names += [name for name in own if self._record.has(name, file.stamp)]

        def numbered() -> Iterator[tuple[int, Line]]:
            for image_id, line in enumerate(self._record.lines(names), 1):
                self._result.pictures += 1
                self._result.detections += len(line.scores)
                self._result.drawn += sum(s > self._drawn_from for s in line.scores)
                yield image_id, line

        if self._result.signal:
            self._result.pictures = len(names)
            return
        out, form = self._request.out, self._request.format
        lines = numbered()
        self._result.path = formats.write_all(out, form, lines, self._network.classes)
        for _ in lines:  # counts the lines that a format with one file per image did not read
            pass


def _frame_name(file: _File, number: int) -> str:
    return f"{file.name}/{number:06d}"


class _DroppedError(Exception):
    """Ends `atomic_write` without its file."""


@contextlib.contextmanager
def _kept_if(path: Path, is_whole: Callable[[], object]) -> Iterator[Path]:
    """`atomic_write` of a file that is dropped at the end unless it is complete."""
    with contextlib.suppress(_DroppedError), atomic_write(path) as temporary:
        yield temporary
        if not is_whole():
            raise _DroppedError
