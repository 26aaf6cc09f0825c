"""Images with more than 8 bits per channel: their values, and the scale that maps them to 8 bits.

A scale is a pair (low, high) of values that become 0 and 255. It applies to a whole data set, not
to an image. The same scene therefore looks the same in every image, and prediction sees the same
values as training.
"""

from __future__ import annotations

import io
import threading
import warnings

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

PixelScale = tuple[float, float]
FEW_LEVELS = "16-bit or float images that span fewer than 32 of 256 grey levels"
"""The count in `upright_rgb` of images that lose most of their contrast."""
_FEW = 32
_FULL = {"integers": (0.0, 65535.0), "floating-point numbers": (0.0, 1.0)}
_BITS_PER_SAMPLE = 258  # TIFF tag
_MOST_PIXELS = 2**27
_LOG_LEVEL = threading.Lock()
"""Guards the OpenCV log level, which all threads share."""
_TIFF = (b"II*\0", b"MM\0*")
_PNG = b"\x89PNG\r\n\x1a\n"
_MAY_BE_DEEP = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")


def may_be_deep(head: bytes) -> bool:
    """Whether a file may have more than 8 bits per channel, given its first 32 bytes or more."""
    if head.startswith(_PNG):
        return head[24:25] == b"\x10"
    return head.startswith(_MAY_BE_DEEP)


def deep_mode(picture: Image.Image, encoded: bytes) -> str | None:
    """Returns a mode such as ``RGB;16`` if an image has more than 8 bits per channel, else None.

    Pillow keeps only the high byte of 16-bit colour, and its mode does not show this.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return picture.mode
    deep = picture.format == "PNG" and encoded[24:25] == b"\x10"
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        deep = max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return f"{picture.mode};16" if deep and picture.mode in ("RGB", "RGBA", "LA", "L") else None


def deep_values(picture: Image.Image, encoded: bytes) -> np.ndarray:
    """Returns the values of a loaded `deep_mode` image: ``[h, w]``, or RGB ``[h, w, 3]``.

    The values are as stored, not turned upright. Transparency is dropped. Raises `ValueError` if
    they cannot be read.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        values = np.asarray(picture)
        return values.astype(values.dtype.newbyteorder("="))
    values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[:2] != (picture.height, picture.width):
        raise ValueError("its 16-bit colours are damaged or in an unsupported format")
    if values.ndim == 3 and picture.mode in ("L", "LA"):
        values = values[..., 0]
    return values if values.ndim == 2 else values[..., 2::-1]


def unusual_tiff_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) of the first page of a TIFF, from its header; None for any other file."""
    if not encoded.startswith(_TIFF):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that do not matter
            file = io.BytesIO(encoded)
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            size = tags[256], tags[257]
    except Exception:  # Pillow raises whatever its parsers meet in a broken file
        return None
    return size if all(isinstance(side, int) and side > 0 for side in size) else None


def unusual_tiff(encoded: bytes) -> np.ndarray | None:
    """Reads the first page of a TIFF that Pillow cannot identify, such as float colour.

    Returns ``[h, w]``, or RGB ``[h, w, 3]``; None for any other file.
    """
    size = unusual_tiff_size(encoded)
    if size is None or size[0] * size[1] > _MOST_PIXELS:
        return None
    log = cv2.utils.logging
    with _LOG_LEVEL:
        level = log.setLogLevel(log.LOG_LEVEL_SILENT)  # a broken file is reported once, by us
        try:
            values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            return None
        finally:
            log.setLogLevel(level)
    if values is None or values.dtype == np.uint8 or values.ndim not in (2, 3):
        return None
    return values if values.ndim == 2 else values[..., 2::-1]


def kind_of(values: np.ndarray) -> str:
    """Returns "integers" or "floating-point numbers"."""
    return "integers" if np.issubdtype(values.dtype, np.integer) else "floating-point numbers"


def value_range(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the minimum and maximum finite values; None if there are none."""
    if kind_of(values) != "integers":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def smallest_scale(kind: str, low: float, high: float) -> PixelScale:
    """Returns the scale of a data set whose values range from ``low`` to ``high``.

    ``kind`` is from `kind_of`. The scale is the smallest common range that contains all values: 8,
    10, 12, 14 or 16 bits for integers; 0 to 1, 255 or 65535 for floats; else ``low`` to ``high``.
    """
    usual = [255.0, 1023.0, 4095.0, 16383.0, 65535.0]
    if kind != "integers":
        usual = [1.0, 255.0, 65535.0]
    if low >= 0:
        for most in usual:
            if high <= most:
                return 0.0, most
    return low, max(high, float(np.nextafter(low, np.inf)))


def to_8_bit(values: np.ndarray, scale: PixelScale | None) -> np.ndarray:
    """Converts values to uint8 in 256 equal steps from ``low`` to ``high``.

    Values outside the range are clipped, and NaN becomes 0. If ``scale`` is None, it is all 16 bits
    for integers and 0 to 1 for floats. A scale of 0 to 65535 keeps the high byte.
    """
    kind = kind_of(values)
    low, high = scale or _FULL[kind]
    steps = high - low + 1 if kind == "integers" else high - low
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.floor((values.astype(np.float64) - low) * (256 / steps))
    return np.clip(np.nan_to_num(levels, nan=0, posinf=255, neginf=0), 0, 255).astype(np.uint8)


def spans_few_levels(picture: np.ndarray) -> bool:
    """Whether an 8-bit image spans only a few grey levels."""
    return int(picture.max()) - int(picture.min()) + 1 < _FEW
