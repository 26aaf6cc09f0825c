"""Writes what ``torch.save`` writes, in both of its formats, without torch."""

import dataclasses
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np

KINDS = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""NumPy's dtypes by torch's types of storage."""
MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True)
class Name:
    """Something that a pickle names, such as ``torch.FloatStorage``."""

    module: str
    name: str

    def __call__(self):  # a pickler demands that it can be called
        raise NotImplementedError


@dataclasses.dataclass(eq=False)
class Storage:
    """``stated``: its number of elements in the pickle; ``view`` as torch 0.3 wrote it."""

    data: np.ndarray
    kind: str = "FloatStorage"
    key: str = ""
    stated: object = None
    view: object = None


@dataclasses.dataclass(eq=False)
class Tensor:
    """What a pickle says of a tensor; ``more`` are further arguments."""

    storage: object
    size: object
    stride: object
    offset: object = 0
    function: str = "_rebuild_tensor_v2"
    more: tuple = (False, {})

    def __reduce__(self):
        arguments = self.storage, self.offset, self.size, self.stride, *self.more
        return Name("torch._utils", self.function), arguments


@dataclasses.dataclass(eq=False)
class Call:
    """A call in the pickle."""

    name: Name
    arguments: tuple
    state: object = None

    def __reduce__(self):
        return self.name, self.arguments, *([] if self.state is None else [self.state])


def tensor(array, kind="FloatStorage"):
    """A tensor with a storage of its own."""
    stride = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(array.reshape(-1), kind), array.shape, stride)


class _Pickler(pickle._Pickler):  # the one whose way of writing names can be replaced
    def __init__(self, file, storages, views):
        super().__init__(file, protocol=2)
        self._storages, self._views = storages, views

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        value.key = value.key or str(len(self._storages))
        self._storages[value.key] = value
        count = len(value.data) if value.stated is None else value.stated
        kind = Name("torch", value.kind)
        return "storage", kind, value.key, "cpu", count, *([value.view] if self._views else [])

    def _save_name(self, value):
        self.write(f"c{value.module}\n{value.name}\n".encode())

    dispatch = {**pickle._Pickler.dispatch, Name: _save_name}  # noqa: RUF012


def dumps(content, views=False):
    """The pickle of ``content``, and its storages by key."""
    file, storages = io.BytesIO(), {}
    _Pickler(file, storages, views).dump(content)
    return file.getvalue(), storages


def write_zip(path, content, order="little", compression=zipfile.ZIP_STORED, more=()):
    """The format since torch 1.6; ``more`` are further records."""
    data, storages = dumps(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/.format_version", "1")
        if order:
            archive.writestr("archive/byteorder", order)
        for key, storage in storages.items():
            swapped = storage.data.byteswap() if order == "big" else storage.data
            archive.writestr(f"archive/data/{key}", swapped.tobytes())
        archive.writestr("archive/version", "3\n")
        for name, text in more:
            archive.writestr(name, text)


def write_legacy(path, content):
    """The format before torch 1.6."""
    data, storages = dumps(content, views=True)
    path.write_bytes(legacy_of(data, storages))


WRITERS = (write_zip, write_legacy)


def legacy_of(data, storages=None, little_endian=True):
    """A file with a pickle of tensors."""
    facts = {"protocol_version": 1001, "little_endian": little_endian}
    parts = [pickle.dumps(each, 2) for each in (MAGIC, 1001, facts)]
    parts += [data, pickle.dumps(sorted(storages or {}), 2)]
    for _, storage in sorted((storages or {}).items()):
        parts += [len(storage.data).to_bytes(8, "little"), storage.data.tobytes()]
    return b"".join(parts)
