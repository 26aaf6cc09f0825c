"""Reads .pth and .pt files without torch; never executes code from a file.

``torch.save`` writes a pickle in which each tensor is a view of a storage, and the bytes of the
storages: since torch 1.6 as records of a zip archive, ``NAME/data.pkl`` and ``NAME/data/KEY``,
before that one after the other. Source: torch/serialization.py and torch/_utils.py.

All numbers come from the file, so each is checked before it is used: a storage is not larger than
the file, and a tensor does not reach beyond its storage.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import ml_dtypes  # noqa: F401  adds bfloat16 to NumPy
import numpy as np

from retina_jax.errors import UserError
from retina_jax.interop.pickles import (
    Admitted,
    Names,
    NotAdmittedError,
    Placeholder,
    Unchangeable,
    load,
    unwrapped,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""NumPy's dtypes by torch's types of storage."""
_REPEATS = 4
_SPARE_ELEMENTS = 1 << 24
"""Tensors that share or repeat elements have at most `_REPEATS` elements for each byte of the file,
and `_SPARE_ELEMENTS`: a tensor of strides 0 has any size, but is copied later."""
_LARGEST = 1 << 62


def begins(start: bytes) -> bool:
    """Whether a file that begins with ``start`` was written by ``torch.save``."""
    return start.startswith((_ZIP, pickle.dumps(_MAGIC, 2)))


def read(path: Path) -> Any:
    """The object that ``torch.save`` wrote to ``path``, with arrays instead of tensors.

    Raises `pickles.NotAdmittedError` if it contains more than tensors and plain containers,
    `UserError` for formats that are not read, and anything if the file is damaged.
    """
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        reader = _Reader(file)
        if start.startswith(_ZIP):
            found = _read_zip(reader, path)
        elif start[257:262] == b"ustar":
            raise UserError(
                f"{path} is in the tar format of torch 0.1, which is not supported; load it with "
                "torch.load and save it again"
            )
        else:
            found = _read_legacy(reader)
        return unwrapped(found)


def _read_zip(reader: _Reader, path: Path) -> Any:
    file = reader.file
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
    folder = next(iter(records), "").partition("/")[0]
    if f"{folder}/constants.pkl" in records:
        raise UserError(
            f"{path} is a TorchScript archive, which contains code; save only model.state_dict() "
            "with torch.save"
        )

    def record(name: str) -> np.ndarray:
        # not from ZipFile.read: it fails where torch.save was told to leave out the CRC-32
        info = records.get(f"{folder}/{name}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {name} is {'compressed' if info else 'missing'}")
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        return reader.read(info.header_offset + 30 + name_length + extra_length, info.file_size)

    found = reader.load(io.BytesIO(record("data.pkl")))
    order = bytes(record("byteorder")).decode() if f"{folder}/byteorder" in records else "little"
    for key, storage in reader.storages.items():
        storage.fill(record(f"data/{key}"), order)
    return found


def _read_legacy(reader: _Reader) -> Any:
    file = reader.file
    if load(file) != _MAGIC or load(file) != _PROTOCOL:
        raise ValueError("torch.save did not write it")
    load(file)  # facts of the machine that wrote it; the bytes are little-endian on all
    found = reader.load(file)
    for key in load(file):
        storage = reader.storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} elements instead of {storage.count}")
        storage.fill(reader.read(file.tell(), storage.bytes), "little")
    return found


class _Storage:
    """Elements that tensors are views of; ``data`` are their bytes."""

    def __init__(self, dtype: str, count: int):
        self.dtype = np.dtype(dtype)
        self.count = count
        self.data: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize

    def fill(self, data: np.ndarray, order: str) -> None:
        """Sets the bytes, whose order is "little" or "big"."""
        if data.size != self.bytes:
            raise ValueError(f"a storage has {data.size} bytes instead of {self.bytes}")
        if order != sys.byteorder:
            data.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
        self.data = data


class _View(Unchangeable):
    """What a file sees of a storage: ``count`` elements from ``start`` on."""

    __slots__ = ("count", "start", "storage")

    def __init__(self, storage: _Storage, start: int, count: int):
        self.storage, self.start, self.count = storage, start, count

    def __str__(self) -> str:
        return "a storage"


class _Tensor(Placeholder):
    """A tensor before the storages are read; ``offset`` and ``strides`` count elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = shape, strides

    @property
    def array(self) -> np.ndarray:
        """A view of the storage's bytes."""
        data, dtype = self.storage.data, self.storage.dtype
        if data is None:
            raise ValueError("a tensor has no storage")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, strides)


class _Reader:
    """Reads parts of a file, and makes tensors of what its pickle names."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.storages: dict[str, _Storage] = {}
        self._size = os.fstat(file.fileno()).st_size
        self._bytes_left = self._size
        self._elements_left = _REPEATS * self._size + _SPARE_ELEMENTS
        self._admitted: dict[tuple[str, str], Any] = {
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
            ("torch", "Size"): Admitted("torch.Size", tuple),
            # learning rate schedules beside the weights have counters
            ("collections", "Counter"): Admitted("collections.Counter", Names),
        }
        for name, function in (
            ("_rebuild_tensor", self._tensor),
            ("_rebuild_tensor_v2", self._tensor),
            ("_rebuild_parameter", self._parameter),
        ):
            self._admitted["torch._utils", name] = Admitted(f"torch._utils.{name}", function)

    def load(self, file: IO[bytes]) -> Any:
        """The object of the pickle with the tensors; its storages are not read yet."""
        return load(file, self._admitted, self._storage)

    def read(self, start: int, count: int) -> np.ndarray:
        """``count`` bytes of the file from ``start`` on."""
        if count > self._size - start:
            raise ValueError(f"{count} bytes from {start} on in a file of {self._size}")
        data = np.empty(count, np.uint8)
        self.file.seek(start)
        if self.file.readinto(data) != count:
            raise ValueError("the file became shorter")
        return data

    def _storage(self, reference: Any) -> _View:
        kind, dtype, key, _device, count, *views = reference
        if kind != "storage":
            raise NotAdmittedError(f"a reference to a {kind}")
        if dtype not in _DTYPES.values() or not _is_count(count):
            raise ValueError(f"a storage of {count!r} elements of {dtype!r}")
        storage = self.storages.get(key)
        if storage is None:
            storage = _Storage(dtype, count)
            self._bytes_left -= storage.bytes
            if self._bytes_left < 0:  # each has its own bytes in the file
                raise ValueError("the storages are larger than the file")
            self.storages[key] = storage
        elif (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"storage {key} has two sizes")
        if not views or views[0] is None:
            return _View(storage, 0, count)
        _, start, part = views[0]  # only torch before 0.4 wrote these
        if not _is_count(start) or not _is_count(part) or start + part > count:
            raise ValueError(f"elements {start!r} to {start!r} + {part!r} of {count}")
        return _View(storage, start, part)

    def _tensor(
        self,
        view: _View,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        _requires_grad: bool = False,
        _hooks: Any = None,
        metadata: Any = None,
    ) -> _Tensor:
        if metadata:  # such as a sign to change
            raise NotAdmittedError(f"a tensor with {metadata}")
        if not isinstance(view, _View) or not isinstance(size, tuple):
            raise ValueError("a tensor without a storage or a size")
        if len(size) != len(stride) or len(size) > 64:
            raise ValueError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
        if not all(_is_count(number) for number in (offset, *size, *stride)):
            raise ValueError(f"a tensor of size {size} with stride {stride} from {offset!r} on")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and last >= view.count:
            raise ValueError(f"a tensor reaches element {last} of a storage of {view.count}")
        self._elements_left -= count
        if self._elements_left < 0:
            raise ValueError("the tensors are far larger than the file")
        return _Tensor(view.storage, view.start + offset, size, stride)

    @staticmethod
    def _parameter(data: Any, _requires_grad: bool = False, _hooks: Any = None) -> _Tensor:
        if not isinstance(data, _Tensor):
            raise ValueError("a parameter without a tensor")
        return data


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST
