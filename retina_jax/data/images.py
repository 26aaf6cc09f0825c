"""Encoded pictures: decoded in training, and made fit for it once, when a data set is prepared.

What `upright_rgb` mends is counted; what cannot be read is a `PictureError`, which says why.
"""

from __future__ import annotations

import collections
import contextlib
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = frozenset(".jpg .jpeg .png .bmp .gif .tif .tiff .webp".split())
"""Of the files that count as pictures."""
_ORIENTATION = 0x0112  # EXIF tag
_KEPT_FORMATS = ("JPEG", "PNG")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # others start programs (EPS)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""
_LONGEST_SIDE = 2**20  # OpenCV's bound, which decodes in training
MOST_PIXELS = 178_956_970
"""Pillow's own bound against decompression bombs, which it takes to be attacks: 13,377² pixels."""


def decode_image(encoded: bytes) -> np.ndarray | None:
    """JPEG or PNG to RGB uint8 ``[h, w, 3]``; None where it cannot be read.

    Grey becomes three equal channels. EXIF orientation is left alone, as TFDS leaves it:
    `retina_jax.data.images` has turned such pictures upright.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


class PictureError(Exception):
    """Why a picture cannot be used, without its name."""


@contextlib.contextmanager
def _faults_named():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bombs are refused by size; the rest is not ours
            yield
    except UnidentifiedImageError:
        raise PictureError("cannot be decoded: is no picture") from None
    except Image.DecompressionBombError:
        raise PictureError(f"has over {MOST_PIXELS} pixels; shrink it") from None
    except MemoryError:
        raise PictureError("does not fit in memory; shrink it") from None
    except PictureError:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet in a broken file
        text = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"cannot be decoded: {text}") from None


def header_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as stored and as shown upright, of the header alone; `PictureError`."""
    with _faults_named(), Image.open(path, formats=_FORMATS) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height), ((height, width) if turned else (width, height))


def upright_rgb(
    encoded: bytes, named: tuple[int | None, int | None], counts: collections.Counter[str]
) -> tuple[bytes, int, int]:
    """The picture's own bytes where they are fit to be read, else a PNG of it; height, width.

    Args:
      named: width and height that the annotations give; they tell which frame the boxes of an
        EXIF-rotated picture belong to: the upright one, unless they fit only the stored one.
      counts: what was mended is added.

    Raises `PictureError` for what cannot be decoded to its end, or has another size than named.
    """
    with _faults_named(), Image.open(io.BytesIO(encoded), formats=_FORMATS) as picture:
        if max(picture.size) > _LONGEST_SIDE:
            raise PictureError(f"has a side of over {_LONGEST_SIDE} pixels; cut it")
        # GIF, APNG, WebP and TIFF may hold several; before load(), which may move on
        frames = getattr(picture, "n_frames", 1)
        kept_format = picture.format in _KEPT_FORMATS and frames == 1
        picture.load()  # the whole of it: a cut file must not pass
        orientation = picture.getexif().get(_ORIENTATION, 1)
        format_name, raw = picture.format, picture.copy()
    turned = orientation in _UPRIGHT
    upright = raw
    if turned:
        upright = raw.transpose(_UPRIGHT[orientation])
        if named == raw.size != upright.size:
            counts["EXIF-rotated pictures left as stored, as their size in the file says"] += 1
            raw.info.pop("exif", None)
            upright = raw
        else:
            counts["EXIF-rotated pictures, turned upright"] += 1
    width, height = upright.size
    if None not in named and named != (width, height):
        raise PictureError(f"has {width}×{height} pixels, the file says {named[0]}×{named[1]}")
    if frames > 1:
        counts["animated or many-page pictures, first frame kept"] += 1
    if upright.mode == "L":
        counts["grey pictures, read as RGB"] += 1
    if kept_format and not turned and upright.mode in ("L", "RGB"):
        return encoded, height, width
    if upright.mode not in ("L", "RGB"):
        counts[f"pictures of mode {upright.mode}, written as 8-bit RGB"] += 1
        upright = _to_rgb(upright)
    elif not turned and frames == 1:
        counts[f"pictures of format {format_name}, written as PNG"] += 1
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG", icc_profile=None)  # without loss
    return buffer.getvalue(), height, width


def _to_rgb(picture: Image.Image) -> Image.Image:
    """CMYK, 16-bit, palette, alpha … to 8-bit RGB; 16-bit keeps its high byte."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.nan_to_num(np.asarray(picture).astype(np.float64))
        high = np.clip(values / 256 if values.max(initial=0) > 255 else values, 0, 255)
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
