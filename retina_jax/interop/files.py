"""Reads and writes named arrays as .safetensors, .pth or .pkl; never executes code from a file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina_jax.errors import UserError
from retina_jax.files import atomic_write, open_path
from retina_jax.interop import torch_files
from retina_jax.interop.pickles import NotAdmittedError, load, unwrapped

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
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; use a readable file") from None
    except Exception as error:  # a truncated file may raise anything
        raise _damaged(path, error) from None
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
    reason = _line(error)
    if text := _text(path):  # a web page or a pointer file instead of the weights
        reason = f"it is a text file that begins with {text!r}"
    return UserError(f"{path} is truncated or damaged ({reason}); download or write it again")


def _line(error: Exception) -> str:
    """The message of an error, which may quote the file, in one line."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(path: Path) -> str:
    """The beginning of a text file; "" for any other file."""
    with path.open("rb") as file:
        start = file.read(40)
    text = " ".join(start.decode("ascii", "replace").split())
    return text if text.isascii() and text.isprintable() else ""


# .safetensors


def _read_safetensors(path: Path) -> Any:
    import ml_dtypes  # noqa: F401  adds bfloat16 to NumPy
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {**(file.metadata() or {}), "model": arrays}


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], note: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"format": "pt", **note})


# .pth


def _read_torch(path: Path) -> Any:
    try:
        return torch_files.read(path)
    except NotAdmittedError as error:
        raise UserError(
            f"{path} contains more than weights ({_line(error)}) and would execute code; save only "
            "model.state_dict() to it"
        ) from None


def _write_torch(path: Path, arrays: dict[str, np.ndarray], note: dict[str, str]) -> None:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: writing it needs torch, which is not installed; pip install torch, or use "
            ".safetensors"
        ) from None
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    torch.save({"model": tensors, **note} if note else tensors, path)


# .pkl


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if torch_files.begins(file.peek()):
                raise UserError(
                    f"{path} was written by torch.save and is not a pickle; rename it to .pth"
                )
            return unwrapped(load(file))
    except NotAdmittedError as error:
        raise UserError(
            f"{path} contains {_line(error)}, which is not an array; no code was executed; use a "
            "file with only named arrays, or, if you trust it, convert it to .safetensors"
        ) from None


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
