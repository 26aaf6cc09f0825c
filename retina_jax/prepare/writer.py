"""Write a detection data set as TFDS ArrayRecord shards: parallel, resumable and atomic.

Shards are written to a folder next to the target, each with a note that records its sources. When
all shards are complete, the folder is renamed. A killed run never leaves an incomplete data set.
The same command then reuses the complete shards whose sources have not changed.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from retina_jax.data.records import (
    VERSION,
    Index,
    IndexRow,
    Record,
    data_set_directory,
    example_of,
    features,
    index_row,
)
from retina_jax.errors import UserError
from retina_jax.files import atomic_write, write_json, write_text
from retina_jax.prepare.handling import Handling

ROWS_A_SHARD = 1024
REPORT = "prepare_report.json"
LEFT_OUT = "left_out.txt"
"""File in the data set folder with one line for each record that was left out."""
LEFT_OUT_COUNT = f"records left out because they cannot be used (listed in {LEFT_OUT})"
_READERS = max(4, 2 * (os.cpu_count() or 1))
_READ_AHEAD = 4 * _READERS
_MOST_FAULTS = 20
_NOTE_FORMAT = 4
"""Version of the notes next to the shards; a shard with another version is written again."""


class Rows(Protocol):
    """The source of the records of a split; several threads read it."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> Record:
        """Returns the record of a row. Raises `UserError` if it is unusable."""

    def fingerprint(self, row: int) -> str:
        """Returns a cheap hash that changes when the record would change."""


class BusyError(UserError):
    """Another process is writing the same data set."""


class RecordsError(UserError):
    """Unusable records: the message is the first one, ``lines`` has all that were found."""

    def __init__(self, lines: Sequence[str]):
        more = f" (and {len(lines) - 1} more, listed above)" if len(lines) > 1 else ""
        super().__init__(lines[0] + more, lines[1:])
        self.lines = tuple(lines)


def write_data_set(
    data_dir: Path,
    name: str,
    splits: Mapping[str, Rows],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    description: str,
    advance: Callable[[int], None] = lambda rows: None,
    found: Mapping[str, Mapping[str, int]] | None = None,
    handling: Handling | None = None,
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Path, dict[str, collections.Counter[str]]]:
    """Writes ``data_dir/name/1.0.0``; returns this directory and the counts of each split.

    Args:
      class_names: by label.
      category_ids: the original category id of each label, for results.
      advance: called with the number of rows that have just been processed.
      found: other counts, by split or other heading; prepare_report.json includes them.
      handling: whether to leave out unusable rows; its pixel_scale becomes metadata.
      left_out: by split, records that were already left out; left_out.txt includes them.

    Raises `RecordsError` if there are unusable rows, or too many of them to leave out. Raises
    `UserError` for an invalid name or folder.
    """
    handling = handling or Handling()
    check_name(name)
    directory = data_set_directory(data_dir, name)
    partial = directory.with_name(f"incomplete.{VERSION}")
    shape = features(class_names)
    recipe = json.dumps([_NOTE_FORMAT, list(class_names), list(category_ids), handling.pixel_scale])
    known = {split: list((left_out or {}).get(split, ())) for split in splits}
    bad = _Bad(handling, sum(map(len, splits.values())), sum(map(len, known.values())))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            if (directory / "dataset_info.json").exists():  # another process was faster
                shutil.rmtree(partial, ignore_errors=True)
                raise BusyError(f"{directory} already exists; another process wrote it")
            partial.mkdir(exist_ok=True)
            indexes, counts, infos, kept = {}, {}, [], set()
            for split, rows in splits.items():
                template = tfds.core.ShardedFileTemplate(
                    data_dir=partial,
                    dataset_name=name,
                    split=split,
                    filetype_suffix="array_record",
                )
                shards = _write_split(template, rows, shape, recipe, advance, bad)
                known[split] += [line for shard in shards for line in shard.left_out]
                kept |= {shard.path for shard in shards} | {_note_path(s.path) for s in shards}
                index = Index.of(row for shard in shards for row in shard.index)
                indexes[split] = index.with_unique_ids()
                counts[split] = sum((s.counts for s in shards), collections.Counter())
                infos.append(
                    tfds.core.SplitInfo(
                        name=split,
                        shard_lengths=[len(shard.index) for shard in shards],
                        num_bytes=sum(shard.size for shard in shards),
                        filename_template=template,
                    )
                )
            bad.check([line for lines in known.values() for line in lines])
            empty = [split for split, index in indexes.items() if splits[split] and not len(index)]
            if empty:
                raise UserError(f"split {empty[0]!r} has no usable records")
            for path in set(partial.iterdir()) - kept:  # of an earlier attempt at other data
                path.unlink()
            metadata = {"category_ids": list(map(int, category_ids))}
            if handling.pixel_scale:
                metadata["pixel_scale"] = list(map(float, handling.pixel_scale))
            _write_info(partial, name, infos, shape, metadata, description)
            for split, index in indexes.items():
                index.save(partial, split)
            report = {split: collections.Counter(c) for split, c in counts.items()}
            for where, more in (found or {}).items():
                report.setdefault(where, collections.Counter()).update(more)
            for split, lines in known.items():
                report[split][LEFT_OUT_COUNT] += len(lines)
            report = {s: {what: n for what, n in c.items() if n} for s, c in report.items()}
            write_json(partial / REPORT, report)
            lines = [f"{split}: {line}\n" for split, entries in known.items() for line in entries]
            if lines:
                write_text(partial / LEFT_OUT, "".join(lines))
            for note in partial.glob("*.note"):
                note.unlink()
            partial.rename(directory)
    except OSError as error:
        raise UserError(_cannot_write(directory, error)) from None
    except RuntimeError as error:  # array_record's own words for what the system said
        if "write() failed" not in str(error) and "No space left" not in str(error):
            raise
        raise UserError(_cannot_write(directory, error)) from None
    return directory, counts


def check_name(name: str) -> None:
    """Raises `UserError` for an invalid data set name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name):
        fix = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")[:100] or "custom"
        shown = name if len(name) <= 120 else name[:117] + "…"
        raise UserError(
            f"--name={shown} must have at most 100 lower-case letters, digits and _, a letter "
            f"first; try --name={fix}"
        )


def _cannot_write(directory: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or " ".join(str(error).split())
    full = "No space left" in why or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full:
        why = "no space left on the disk"
        return f"{directory} cannot be written ({why}); free some space and run the command again"
    return f"{directory} cannot be written ({why}); choose a writable folder with enough space"


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Allows only one process at a time to write to ``partial``."""
    path = partial.parent / f".{partial.name}.lock"
    with contextlib.ExitStack() as opened:
        while True:
            lock = opened.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another process is writing {partial}; wait until it has finished"
                raise BusyError(message) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    break
            # else its last owner removed it after it was opened, and the next has a new one
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is ours


class _Bad:
    """Counts the unusable rows and decides whether to continue."""

    def __init__(self, handling: Handling, rows: int, before: int):
        """``before``: number of records that were already left out, beyond ``rows``."""
        self.handling = handling
        self._total = rows + before
        self._most = int(handling.max_bad * self._total + 1e-9) if handling.skip_bad else 0
        self._count = before

    def add(self, count: int) -> None:
        self._count += count

    @property
    def enough(self) -> bool:
        """Whether enough errors are known to stop reading."""
        return self._count >= max(_MOST_FAULTS, self._most + 1)

    def check(self, lines: Sequence[str]) -> None:
        """Raises `RecordsError` if there are too many unusable rows."""
        if self._count <= self._most:
            return
        if self.handling.skip_bad:
            first = (
                f"{self._count} of {self._total} records cannot be used"
                f"{' (possibly more)' if self.enough else ''}, a larger share than "
                f"--max-bad={self.handling.max_bad:g}; correct them, or raise it; the first: "
                f"{lines[0]}"
            )
            raise RecordsError([first, *lines[1:_MOST_FAULTS]])
        raise RecordsError(lines)


class _Shard:
    """One file of records with its index and counts."""

    def __init__(
        self,
        path: Path,
        size: int,
        index: list,
        counts: Mapping[str, int],
        left_out: Sequence[str] = (),
    ):
        self.path = path
        self.size = size
        self.index = [IndexRow(*row) for row in index]
        self.counts = collections.Counter(counts)
        self.left_out = list(left_out)

    def write_note(self, fingerprint: str, handling: Handling) -> None:
        """Writes the note last: it marks the shard as complete and records its sources."""
        truncated = handling.allow_truncated
        content = [fingerprint, truncated, self.size, self.index, self.counts, self.left_out]
        write_text(_note_path(self.path), json.dumps(content))

    @classmethod
    def whole(cls, path: Path, fingerprint: str, handling: Handling) -> _Shard | None:
        """Returns the shard of an earlier run if this run would write the same."""
        try:
            known, truncated, size, *content = json.loads(_note_path(path).read_text())
            shard = cls(path, size, *content)
            same = known == fingerprint and path.stat().st_size == size
        except (OSError, ValueError, TypeError):
            return None
        if shard.left_out:
            same = same and handling.skip_bad and truncated == handling.allow_truncated
        return shard if same and truncated <= handling.allow_truncated else None


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".note")


def _write_split(template, rows: Rows, shape, recipe: str, advance, bad: _Bad) -> list[_Shard]:
    """Writes the shards of a split; each lists its unusable rows."""
    starts = range(0, max(len(rows), 1), ROWS_A_SHARD)
    shards = []
    with ThreadPoolExecutor(_READERS) as threads:
        for number, start in enumerate(starts):
            members = range(start, min(start + ROWS_A_SHARD, len(rows)))
            path = Path(template.sharded_filepath(shard_index=number, num_shards=len(starts)))
            sources = [recipe, *map(rows.fingerprint, members)]
            fingerprint = hashlib.sha256("\n".join(sources).encode()).hexdigest()
            shard = _Shard.whole(path, fingerprint, bad.handling)
            if shard:
                advance(len(members))
                bad.add(len(shard.left_out))
            else:
                _note_path(path).unlink(missing_ok=True)
                shard = _write_shard(path, _read_ahead(threads, rows, members, bad), shape, advance)
                usable = bad.handling.skip_bad or not shard.left_out
                if usable and len(shard.index) + len(shard.left_out) == len(members):
                    shard.write_note(fingerprint, bad.handling)
            shards.append(shard)
            if bad.enough:
                break
    return shards


def _read_ahead(
    threads: ThreadPoolExecutor, rows: Rows, members: range, bad: _Bad
) -> Iterator[Record | UserError]:
    """Yields records or their errors in order; reads a bounded number in advance."""
    pending: collections.deque = collections.deque()
    waiting = iter(members)
    try:
        while True:
            for row in waiting:
                pending.append(threads.submit(rows.read, row))
                if len(pending) > _READ_AHEAD:
                    break
            if not pending or bad.enough:
                return
            try:
                yield pending.popleft().result()
            except UserError as error:
                bad.add(1)
                yield error
    finally:
        for future in pending:
            future.cancel()


def _write_shard(path: Path, records: Iterator[Record | UserError], shape, advance) -> _Shard:
    index, counts, left_out = [], collections.Counter(), []
    with atomic_write(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for record in records:
                advance(1)
                if isinstance(record, UserError):
                    left_out.append(str(record))
                    continue
                writer.write(shape.serialize_example(shape.encode_example(example_of(record))))
                index.append(index_row(record))
                counts += record.counts
        finally:
            writer.close()
    return _Shard(path, path.stat().st_size, index, counts, left_out)


def _write_info(directory: Path, name, infos, shape, metadata, description) -> None:
    """Writes the TFDS metadata, so that any TFDS reader can open the data set."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=shape,
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            raise NotImplementedError  # the shards are there

        _generate_examples = _split_generators

    Builder.name = name
    builder = Builder(data_dir=directory.parent.parent, file_format="array_record")
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(str(directory))
