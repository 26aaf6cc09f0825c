"""Unpickles arrays and plain containers; never executes code from a file.

NumPy's own unpickling trusts types and sizes from the file, so it is not used. A file can only call
the replacements below, and cannot change the state of anything that outlives it.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class NotAdmittedError(pickle.UnpicklingError):
    """The file contains something other than arrays; the message names it."""


class Unchangeable:
    """What a file may name but not change.

    Pickle's BUILD could otherwise set attributes, also those of a plain function or class, such as
    ``__defaults__``.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise NotAdmittedError(f"a change of {self}")


class Placeholder(Unchangeable):
    """Stands for an array, its attribute ``array``, until the whole file is read."""

    __slots__ = ()

    def __str__(self) -> str:
        return "an array"


class Admitted(Unchangeable):
    """A function that a file may call by ``name``."""

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[..., Any]):
        self._name = name
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __str__(self) -> str:
        return self._name


class Names(dict):
    """Replaces ``OrderedDict``; ignores its attributes (torch's ``_metadata``)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def load(
    file: IO[bytes],
    admitted: Mapping[tuple[str, str], Any] | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of the pickle at the position of ``file``, which then is behind it.

    Args:
      admitted: what stands for further names, by module and name: `Admitted`, or a constant.
      persistent_load: what stands for a persistent id (pickle's PERSID).

    Raises `NotAdmittedError`, and anything if the file is damaged.
    """
    _check_memo(file)
    unpickler = _ArraysOnly(file, _ADMITTED | dict(admitted or {}), persistent_load)
    return unpickler.load()


def unwrapped(value: Any) -> Any:
    """``value`` with arrays instead of each `Placeholder`, also in dicts within dicts."""
    done: dict[int, dict] = {}  # a dict may occur many times

    def unwrap(value: Any) -> Any:
        if isinstance(value, dict):
            if id(value) not in done:
                done[id(value)] = {key: unwrap(each) for key, each in value.items()}
            return done[id(value)]
        return value.array if isinstance(value, Placeholder) else value

    return unwrap(value)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that creates only arrays and plain containers."""

    def __init__(self, file: IO[bytes], admitted: dict, persistent_load: Callable | None):
        # latin1: the model zoo's files are pickles of Python 2, whose strings are bytes
        super().__init__(file, encoding="latin1")
        self._names = admitted
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise NotAdmittedError(f"{module}.{name}")
        return self._names[module, name]

    def persistent_load(self, key: Any) -> Any:
        if self._persistent_load is None:
            raise pickle.UnpicklingError("a reference to something outside the pickle")
        return self._persistent_load(key)


def _check_memo(file: IO[bytes]) -> None:
    """Raises `ValueError` for a memo index that no pickler writes; keeps the position.

    The memo is a list as long as its largest index: a file of a few bytes could fill the memory.
    """
    start, count, code = file.tell(), 0, b""
    while code != b".":
        code = file.read(1)
        opcode = _OPCODES.get(code.decode("latin1"))
        if opcode is None:
            raise ValueError(f"opcode {code!r}" if code else "the pickle ends early")
        count += 1
        if opcode.name == "STRING":  # its reader, unlike pickle, demands ASCII
            file.readline()
        elif opcode.arg:
            argument = opcode.arg.reader(file)
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
                raise ValueError(f"memo index {argument}")
    file.seek(start)


class _Dtype:
    """Replaces ``numpy.dtype``; accepts only number types."""

    __slots__ = ("dtype",)

    def __init__(self, code: str = "", *_: Any):
        if not re.fullmatch(r"[<>=|]?[fiub]\d", code):
            raise NotAdmittedError(f"dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Placeholder):
    """Replaces ``numpy.ndarray``: rebuilds the array from the state that NumPy writes."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, by_columns, data = state[-4:]
        self.array = _from_bytes(data, dtype, shape, "F" if by_columns else "C")


def _from_bytes(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2: text
    if not isinstance(data, (bytes, bytearray)):
        raise NotAdmittedError(f"an array of {type(data).__name__}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _array_to_fill(*_: Any) -> _Array:
    return _Array()


def _array_of_buffer(*arguments: Any) -> _Array:
    filled = _Array()
    filled.array = _from_bytes(*arguments)
    return filled


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return _from_bytes(data, dtype, (1,))[0]


def _encode_latin1(text: str = "", _encoding: str = "latin1") -> bytes:
    """Python 3 writes this call for bytes in Python 2's protocol; looks up no codec."""
    return text.encode("latin1")


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): Names,
    ("_codecs", "encode"): _encode_latin1,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _array_to_fill
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = _scalar
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _array_of_buffer
_ADMITTED: dict[tuple[str, str], Admitted | None] = {
    ("numpy", "ndarray"): None,  # named as an argument, never called
    **{names: Admitted(".".join(names), call) for names, call in _FUNCTIONS.items()},
}
