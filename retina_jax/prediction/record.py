"""The record of the finished images of a prediction, from which an interrupted command resumes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retina_jax.errors import UserError
from retina_jax.prediction.result import ImageDetections

NAME = "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Line:
    """A finished image."""

    name: str
    stamp: tuple[int, int]
    """Size and modification time of its file; if they change, the image is processed again."""
    height: int
    width: int
    boxes: list[list[float]]
    """COCO's xywh, pixels, rounded to three decimals."""
    scores: list[float]
    """Rounded to six decimals."""
    labels: list[int]

    @classmethod
    def of(cls, found: ImageDetections, stamp: tuple[int, int]) -> Line:
        results = found.to_coco()
        return cls(
            found.source,
            stamp,
            found.height,
            found.width,
            [result["bbox"] for result in results],
            [result["score"] for result in results],
            found.labels.tolist(),
        )


class Record:
    """One line of JSON per finished image, appended and flushed at once.

    The first line holds the command. A last line that a kill cut short is dropped.
    """

    def __init__(self, out: Path, command: Mapping[str, Any]):
        """Opens or creates the record in folder ``out``.

        Raises `UserError` if the folder has other files, or results of another command.
        """
        self._path = out / NAME
        self._stamps: dict[str, tuple[int, int]] = {}
        self._places: dict[str, int] = {}
        if self._path.exists():
            self._read(out, json.loads(json.dumps(command)))
        else:
            try:
                out.mkdir(parents=True, exist_ok=True)
                used = next(out.iterdir(), None)
            except OSError as error:
                raise UserError(
                    f"--out={out} cannot be used ({error.strerror}); set it to a new folder"
                ) from None
            if used is not None:
                raise UserError(
                    f"--out={out} holds {used.name}, which this command did not write; set it to "
                    "a new folder"
                )
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--out={out} is not writable ({error.strerror}); set it to another folder"
            ) from None
        if self._path.stat().st_size == 0:
            self._write(command)

    def _read(self, out: Path, command: dict[str, Any]) -> None:
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    content = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    content = None
                if content is None:  # the kill came while it was written
                    break
                if number == 0:
                    _check_same(out, content, command)
                else:
                    self._stamps[content["name"]] = tuple(content["stamp"])
                    self._places[content["name"]] = whole
                whole += len(line)
        with self._path.open("r+b") as file:
            file.truncate(whole)

    def _write(self, content: Any) -> None:
        text = json.dumps(content, separators=(",", ":"))
        self._file.write(text + "\n")
        self._file.flush()

    def append(self, line: Line) -> None:
        """Adds a finished image."""
        self._file.flush()
        place = self._path.stat().st_size
        self._write(dataclasses.asdict(line))
        self._stamps[line.name], self._places[line.name] = line.stamp, place

    def has(self, name: str, stamp: tuple[int, int]) -> bool:
        """Whether an image is finished and its file has not changed since."""
        return self._stamps.get(name) == stamp

    def lines(self, names: list[str]) -> Iterator[Line]:
        """The finished images among ``names``, in their order; read from disk one by one."""
        with self._path.open("rb") as file:
            for name in names:
                if name in self._places:
                    file.seek(self._places[name])
                    content = json.loads(file.readline())
                    yield Line(**{**content, "stamp": tuple(content["stamp"])})

    def close(self) -> None:
        self._file.close()


def _check_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise UserError(
                f"--out={out} holds results of another command: {name} was {before.get(name)!r}, "
                f"now {now.get(name)!r}; use another --out, or remove the folder"
            )
