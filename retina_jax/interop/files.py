"""Reads and writes named arrays as .safetensors, .pth or .pkl; never executes code from a file."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina_jax.errors import UserError
from retina_jax.files import atomic_write, open_path

SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl")
WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "blobs")
"""Keys under which training programs and Caffe2 store the arrays."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that torch's DataParallel and compile add to every name."""
NOTE = "retina_jax"
"""Key of a `WeightFile.note`, as JSON: next to ``model``, or in the .safetensors metadata."""


class WeightFile(NamedTuple):
    """Arrays by name, and the note that this program stored with them."""

    arrays: dict[str, np.ndarray]
    note: dict[str, Any]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, as from `read_file`."""
    return read_file(path).arrays


def read_file(path: str | Path) -> WeightFile:
    """The arrays of a file by name, floats converted to float32, and its note ({} if none).

    Removes wrappers such as ``{"model": …}`` and prefixes such as ``module.``. Raises `UserError`
    for a file that is missing, truncated or damaged, contains no arrays, or would execute code.
    """
    path = _checked(path, "read")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        found = _READERS[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; use a readable file") from None
    note = _note(path, found)
    while isinstance(found, dict) and (key := _wrapper(found)):
        found = found[key]
    if not isinstance(found, dict):
        raise UserError(
            f"{path} contains {type(found).__name__}, not a dict of arrays; save "
            "model.state_dict() to it"
        )
    arrays = {str(name): value for name, value in found.items() if isinstance(value, np.ndarray)}
    if not arrays:
        keys = ", ".join(repr(key) for key in list(found)[:6])
        content = f"the keys {keys}" if keys else "nothing"
        raise UserError(
            f"{path} contains no named arrays, only {content}; save model.state_dict() to it"
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): value for name, value in arrays.items()}
    return WeightFile({name: _plain(path, name, value) for name, value in arrays.items()}, note)


def write_arrays(
    path: str | Path, arrays: dict[str, np.ndarray], note: dict[str, Any] | None = None
) -> None:
    """Writes ``arrays`` atomically, in the format given by the suffix of ``path``.

    ``.pkl`` is Detectron2's format, ``{"model": arrays, "__author__": …}``. ``.pth`` is a
    ``state_dict``, or ``{"model": state_dict, NOTE: …}`` with a ``note``. Raises `UserError` if the
    file cannot be written.
    """
    path = _checked(path, "write")
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    try:
        with atomic_write(path) as temporary:
            _WRITERS[path.suffix](temporary, arrays, {NOTE: json.dumps(note)} if note else {})
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; use a writable path") from None


def _checked(path: str | Path, verb: str) -> Path:
    path = open_path(path, "weight file")
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot {verb} {path.suffix or 'a file without suffix'!r}; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    return path


def _wrapper(found: dict) -> str | None:
    return next((key for key in WRAPPERS if isinstance(found.get(key), dict)), None)


def _note(path: Path, found: Any) -> dict[str, Any]:
    text = found.get(NOTE) if isinstance(found, dict) else None
    if not isinstance(text, str):
        return {}
    try:
        note = json.loads(text)
    except ValueError as error:
        raise _damaged(path, error) from None
    return note if isinstance(note, dict) else {}


def _plain(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    is_float = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    if not is_float and value.dtype.kind not in "iub":
        raise UserError(
            f"{path}: {name} has dtype {value.dtype}, which weights cannot have; remove it"
        )
    return np.asarray(value, np.float32) if is_float else value


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if text := _text(path):  # a web page or a pointer file instead of the weights
        reason = f"it is a text file that begins with {text!r}"
    return UserError(f"{path} is truncated or damaged ({reason}); download or write it again")


def _text(path: Path) -> str:
    """The beginning of a text file; "" for any other file."""
    with path.open("rb") as file:
        start = file.read(40)
    text = " ".join(start.decode("ascii", "replace").split())
    return text if text.isascii() and text.isprintable() else ""


# .safetensors


def _read_safetensors(path: Path) -> Any:
    import ml_dtypes  # noqa: F401  adds bfloat16 to NumPy
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {**(file.metadata() or {}), "model": arrays}
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise _damaged(path, error) from None


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], note: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"format": "pt", **note})


# .pth


def check_readable(path: Path) -> None:
    """Raises `UserError` if a file with this suffix needs a package that is not installed."""
    if path.suffix in (".pth", ".pt") and importlib.util.find_spec("torch") is None:
        raise _no_torch(path)


def _no_torch(path: Path) -> UserError:
    return UserError(
        f"{path} needs torch, which is not installed; pip install torch, or use .safetensors"
    )


def _torch(path: Path):
    try:
        import torch
    except ImportError:
        raise _no_torch(path) from None
    return torch


def _read_torch(path: Path) -> Any:
    torch = _torch(path)
    try:
        # weights_only: creates only tensors and plain containers
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        for_code = "weights_only" in str(error) or "Unsupported" in str(error)
        if not for_code or _text(path):
            raise _damaged(path, error) from None
        raise UserError(
            f"{path} contains more than weights and would execute code; save only "
            "model.state_dict() to it"
        ) from None
    except Exception as error:  # a truncated file may raise anything
        raise _damaged(path, error) from None

    def to_numpy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            return (value.float() if value.is_floating_point() else value).numpy()
        return {k: to_numpy(v) for k, v in value.items()} if isinstance(value, dict) else value

    return to_numpy(loaded)


def _write_torch(path: Path, arrays: dict[str, np.ndarray], note: dict[str, str]) -> None:
    torch = _torch(path)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    torch.save({"model": tensors, **note} if note else tensors, path)


# .pkl: NumPy's own unpickling trusts types and sizes from the file, so it is not used. A file can
# only call the replacements below, and cannot change the state of anything that outlives it.


class _Dtype:
    """Replaces ``numpy.dtype``; accepts only number types."""

    __slots__ = ("dtype",)

    def __init__(self, code: str = "", *_: Any):
        if not re.fullmatch(r"[<>=|]?[fiub]\d", code):
            raise _NotAdmittedError(f"dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replaces ``numpy.ndarray``: rebuilds the array from the state that NumPy writes."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, by_columns, data = state[-4:]
        self.array = _from_bytes(data, dtype, shape, "F" if by_columns else "C")


def _from_bytes(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2: text
    if not isinstance(data, (bytes, bytearray)):
        raise _NotAdmittedError(f"an array of {type(data).__name__}")
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


class _Names(dict):
    """Replaces ``OrderedDict``; ignores its attributes (torch's ``_metadata``)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Callable:
    """A function that a file may call but cannot change.

    Pickle's BUILD could set attributes of a plain function or class, such as ``__defaults__``.
    """

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[..., Any]):
        self._name = name
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _NotAdmittedError(f"a change of {self._name}")


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): _Names,
    ("_codecs", "encode"): _encode_latin1,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _array_to_fill
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = _scalar
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _array_of_buffer
_ADMITTED: dict[tuple[str, str], _Callable | None] = {
    ("numpy", "ndarray"): None,  # named as an argument, never called
    **{names: _Callable(".".join(names), call) for names, call in _FUNCTIONS.items()},
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that creates only arrays and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _NotAdmittedError(f"{module}.{name}")
        return _ADMITTED[module, name]


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unwrapped(each) for key, each in value.items()}
    return value.array if isinstance(value, _Array) else value


class _NotAdmittedError(pickle.UnpicklingError):
    pass


def _read_pickle(path: Path) -> Any:
    data = path.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} was written by torch.save and is not a pickle; rename it to .pth")
    try:
        # latin1: the model zoo's files are pickles of Python 2, whose strings are bytes
        return _unwrapped(_ArraysOnly(io.BytesIO(data), encoding="latin1").load())
    except _NotAdmittedError as error:
        raise UserError(
            f"{path} contains {error}, which is not an array; no code was executed; use a file "
            "with only named arrays, or, if you trust it, convert it to .safetensors"
        ) from None
    except Exception as error:  # a truncated file may raise anything
        raise _damaged(path, error) from None


def _write_pickle(path: Path, arrays: dict[str, np.ndarray], note: dict[str, str]) -> None:
    # protocol 3 stores names as text, so NumPy 2's module name can be replaced by the one that
    # every NumPy knows: Detectron2 is often used with NumPy 1
    data = pickle.dumps({"model": arrays, "__author__": "retina_jax", **note}, protocol=3)
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


_READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pkl": _read_pickle,
}
_WRITERS = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".pkl": _write_pickle,
}
