"""Decode images for training, and normalise encoded images when a data set is prepared.

`upright_rgb` counts each conversion. An unreadable image raises `PictureError` with the reason.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from retina_jax.data.deep import (
    FEW_LEVELS,
    PixelScale,
    deep_mode,
    deep_values,
    kind_of,
    may_be_deep,
    spans_few_levels,
    to_8_bit,
    unusual_tiff,
    unusual_tiff_size,
    value_range,
)

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .avif .jp2 .j2k .jpx".split()
)
"""Suffixes of image files."""
_ORIENTATION = 0x0112  # EXIF tag
_KEPT_FORMATS = ("JPEG", "PNG")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Formats that Pillow may try, if its build supports them; others start programs (EPS)."""
_NOT_READ = {
    b"II*\0": "a damaged or unusual TIFF", b"MM\0*": "a damaged or unusual TIFF",
    b"%!PS": "EPS", b"%PDF": "PDF", b"8BPS": "PSD", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"v/1\x01": "OpenEXR", b"#?R": "Radiance HDR", b"DDS ": "DDS",
    b"P1": "PBM", b"P2": "PGM", b"P3": "PPM", b"P4": "PBM", b"P5": "PGM", b"P6": "PPM",
    b"<svg": "SVG", b"<?xml": "XML", b"SIMPLE  =": "FITS", b"\x93NUMPY": "NumPy",
    b"\x89HDF": "HDF5", b"\0\0\x01\0": "ICO", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip",
    b"<!DOC": "HTML", b"<html": "HTML", b"version https://git-lfs": "a Git LFS pointer",
}  # fmt: skip
"""Formats by their first bytes."""
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF",
           b"msf1": "HEIF", b"hevc": "HEIC", b"crx ": "Canon raw"}  # fmt: skip
_END_OF_JPEG = b"\xff\xd9"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image upright, by EXIF orientation."""
_LONGEST_SIDE = 2**20  # OpenCV's bound, which decodes in training
MOST_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs: 13,377² pixels."""


def decode_image(encoded: bytes) -> np.ndarray | None:
    """Decodes a JPEG or PNG to RGB uint8 ``[h, w, 3]``; returns None if it is unreadable.

    Grey images become three equal channels. EXIF orientation is ignored, as in TFDS, because
    `upright_rgb` has already turned such images upright.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


class PictureError(Exception):
    """The reason why an image is unusable, without its name."""


class TooManyPixels(PictureError):
    """The image has more pixels than may be decoded."""


class _UnknownFormat(PictureError):
    """Pillow cannot identify the format."""


def decode_small(encoded: bytes, size: tuple[int, int], longest: int) -> np.ndarray | None:
    """`decode_image` with a longest side of at most ``longest`` pixels.

    A JPEG of ``size`` (height, width) is decoded at an eighth, a quarter or half of its size where
    that suffices, which takes a fraction of the time.
    """
    factor = next((f for f in (8, 4, 2) if max(size) >= f * longest), 1)
    reduced = {
        8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4,
        2: cv2.IMREAD_REDUCED_COLOR_2, 1: cv2.IMREAD_COLOR,
    }[factor]  # fmt: skip
    try:
        image = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), reduced | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    if image is None:
        return None
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        target = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, target, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[:, :, ::-1])


@contextlib.contextmanager
def _faults_named(head: bytes):
    """Converts all Pillow errors to `PictureError`; ``head`` has the first bytes of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bombs are refused by size; the rest is not ours
            yield
    except UnidentifiedImageError:
        raise _UnknownFormat(f"cannot be decoded: {_unread_format(head)}") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"has more than {MOST_PIXELS} pixels; reduce its size") from None
    except MemoryError:
        raise PictureError("does not fit in memory; reduce its size") from None
    except PictureError:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet in a broken file
        text = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"cannot be decoded: {text}") from None


def _unread_format(head: bytes) -> str:
    name = next((name for start, name in _NOT_READ.items() if head.startswith(start)), None)
    if head[4:8] == b"ftyp":
        name = _BRANDS.get(head[8:12], "video or HEIF")
    if head[128:132] == b"DICM":
        name = "DICOM"
    if name is None:
        return "not an image"
    return f"{name} is not supported; convert it to PNG or JPEG"


@dataclasses.dataclass(frozen=True)
class Look:
    """What the first pass over a data set reads from an image."""

    size: tuple[int, int]
    """Width and height of the upright image."""
    kind: str | None = None
    """Kind of the values, from `deep.kind_of`, for more than 8 bits per channel."""
    values: tuple[float, float] | None = None
    """Minimum and maximum value."""


def look(encoded: bytes, with_values: bool) -> Look:
    """Reads the size and, ``with_values``, the range of 16-bit or float values."""
    try:
        return _look(encoded, with_values)
    except _UnknownFormat:
        values = unusual_tiff(encoded)
        if values is None:
            raise
        height, width = values.shape[:2]
        return Look((width, height), kind_of(values), value_range(values))


def _look(encoded: bytes, with_values: bool) -> Look:
    with _faults_named(encoded), _open(encoded) as picture:
        size = picture.size
        turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        upright = size[::-1] if turned else size
        if not (with_values and may_be_deep(encoded) and deep_mode(picture, encoded)):
            return Look(upright)
        _check_sides(picture)
        picture.load()
        values = deep_values(picture, encoded)
        return Look(upright, kind_of(values), value_range(values))


def upright_size(path: Path) -> tuple[int, int]:
    """Reads (width, height) of the upright image from the header."""
    with path.open("rb") as file:
        head = file.read(256)
        file.seek(0)
        try:
            with _faults_named(head), Image.open(file, formats=_FORMATS) as picture:
                width, height = picture.size
                turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except _UnknownFormat:
            if not may_be_deep(head):
                raise
            return look(path.read_bytes(), False).size
    return (height, width) if turned else (width, height)


def stored_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) as stored, from the header: nothing is decoded, however large.

    Raises `PictureError` for what is not an image, and `TooManyPixels` beyond `MOST_PIXELS`.
    """
    try:
        with _faults_named(encoded), _open(encoded) as picture:
            return picture.size
    except _UnknownFormat:
        size = unusual_tiff_size(encoded)
        if size is None:
            raise
        return size


def _open(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=_FORMATS)


def _check_sides(picture: Image.Image) -> None:
    if max(picture.size) > _LONGEST_SIDE:
        raise PictureError(f"has a side longer than {_LONGEST_SIDE} pixels; crop or resize it")


def upright_rgb(
    encoded: bytes,
    named: tuple[int | None, int | None],
    counts: collections.Counter[str],
    pixel_scale: PixelScale | None = None,
    allow_truncated: bool = False,
) -> tuple[bytes, int, int]:
    """Returns the original bytes if they are usable, else a PNG of the image; height, width.

    Args:
      named: width and height from the annotations. For an EXIF-rotated image, they tell whether
        the boxes belong to the upright image (the default) or to the stored one.
      counts: receives the number of conversions.
      pixel_scale: the scale of the data set for 16-bit and float images; None for the full range.
      allow_truncated: accept a truncated JPEG; the decoder fills the rest with grey.

    Raises `PictureError` if the image cannot be fully decoded, or its size differs from ``named``.
    """
    upright, height, width = _upright(encoded, named, counts, pixel_scale, allow_truncated)
    return upright if isinstance(upright, bytes) else _png(upright), height, width


def read_upright(encoded: bytes, pixel_scale: PixelScale | None = None) -> np.ndarray:
    """The pixels that training would see of an image: RGB uint8 ``[h, w, 3]``.

    Those of `decode_image` after `upright_rgb`, without writing a PNG in between. Raises
    `PictureError` if the image cannot be fully decoded.
    """
    unnamed = (None, None)
    upright, *_ = _upright(encoded, unnamed, collections.Counter(), pixel_scale, False)
    if not isinstance(upright, bytes):
        return np.asarray(upright.convert("RGB"))
    pixels = decode_image(upright)
    if pixels is None:
        raise PictureError("cannot be decoded: OpenCV cannot read it")
    return pixels


def picture_pixels(picture: Image.Image, pixel_scale: PixelScale | None = None) -> np.ndarray:
    """The pixels of an opened image, treated as those of a file: RGB uint8 ``[h, w, 3]``.

    Pillow has already reduced colours of 16 bits to 8; only grey images keep their values.
    """
    with _faults_named(b""):
        orientation = picture.getexif().get(_ORIENTATION, 1)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
            values = np.asarray(picture)
            values = values.astype(values.dtype.newbyteorder("="))
            picture = Image.fromarray(to_8_bit(values, pixel_scale))
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
        return np.asarray(picture.convert("RGB"))


def array_pixels(values: np.ndarray, pixel_scale: PixelScale | None = None) -> np.ndarray:
    """An array as RGB uint8 ``[h, w, 3]``.

    Args:
      values: grey ``[h, w]`` or ``[h, w, 1]``, RGB ``[h, w, 3]``, or RGBA ``[h, w, 4]``, whose
        last channel is dropped. uint8; or uint16 or floating point, mapped to 8 bits by
        ``pixel_scale`` (None: all 16 bits, or 0 to 1).

    Raises `PictureError` for any other shape or type.
    """
    shape = values.shape
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
        raise PictureError(
            f"has the shape {shape}; it must be [height, width], or end in 1, 3 or 4 channels"
        )
    values = values[..., :3]
    if values.dtype == np.uint16 or np.issubdtype(values.dtype, np.floating):
        if pixel_scale is None and values.dtype != np.uint16 and np.nanmax(values) > 1:
            raise PictureError(
                f"has floating-point values up to {np.nanmax(values):g}; scale them to 0 to 1, or "
                "convert values of 0 to 255 with .astype(numpy.uint8)"
            )
        values = to_8_bit(values, pixel_scale)
    if values.dtype != np.uint8:
        raise PictureError(f"has the type {values.dtype}; convert it with .astype(numpy.uint8)")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _upright(
    encoded: bytes,
    named: tuple[int | None, int | None],
    counts: collections.Counter[str],
    pixel_scale: PixelScale | None,
    allow_truncated: bool,
) -> tuple[bytes | Image.Image, int, int]:
    """`upright_rgb` before the image is encoded; the original bytes if they are usable."""
    try:
        return _upright_rgb(encoded, named, counts, pixel_scale)
    except _UnknownFormat:
        values = unusual_tiff(encoded)
        if values is None:
            raise
        counts[f"TIFF images with {values.dtype} colour, written as 8-bit RGB"] += 1
        return _upright_rgb(_png(_scaled(values, pixel_scale, counts)), named, counts, None)
    except PictureError as error:
        cut = "truncated" in str(error) and encoded.startswith(b"\xff\xd8")
        if not (cut and allow_truncated):
            raise
    ended = _upright_rgb(encoded + _END_OF_JPEG, named, counts, pixel_scale)
    counts["truncated JPEGs, kept with the missing part in grey"] += 1
    return ended


def _upright_rgb(
    encoded: bytes,
    named: tuple[int | None, int | None],
    counts: collections.Counter[str],
    pixel_scale: PixelScale | None,
) -> tuple[bytes | Image.Image, int, int]:
    with _faults_named(encoded), _open(encoded) as picture:
        _check_sides(picture)
        # GIF, APNG, WebP and TIFF may hold several; before load(), which may move on
        frames = getattr(picture, "n_frames", 1)
        mode = deep_mode(picture, encoded)
        kept_format = picture.format in _KEPT_FORMATS and frames == 1 and mode is None
        picture.load()  # the whole of it: a cut file must not pass
        orientation = picture.getexif().get(_ORIENTATION, 1)
        format_name, raw = picture.format, picture.copy()
        if mode:
            raw = _scaled(deep_values(picture, encoded), pixel_scale, counts)
    turned = orientation in _UPRIGHT
    upright = raw
    if turned:
        upright = raw.transpose(_UPRIGHT[orientation])
        if named == raw.size != upright.size:
            counts["EXIF-rotated images, left as stored to match their annotated size"] += 1
            raw.info.pop("exif", None)
            upright = raw
        else:
            counts["EXIF-rotated images, turned upright"] += 1
    width, height = upright.size
    if None not in named and named != (width, height):
        raise PictureError(
            f"is {width}×{height} pixels, but the annotations say {named[0]}×{named[1]}"
        )
    if frames > 1:
        counts["animated or multi-page images, only the first frame kept"] += 1
    if upright.mode == "L" and mode is None:
        counts["grey images, read as RGB"] += 1
    if kept_format and not turned and upright.mode in ("L", "RGB"):
        return encoded, height, width
    mode = mode or upright.mode
    if mode not in ("L", "RGB"):
        counts[f"images of mode {mode}, written as 8-bit RGB"] += 1
        upright = upright.convert("RGB")
    elif not turned and frames == 1:
        counts[f"images of format {format_name}, written as PNG"] += 1
    return upright, height, width


def _png(picture: Image.Image) -> bytes:
    """Encodes losslessly."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", icc_profile=None)
    return buffer.getvalue()


def _scaled(
    values: np.ndarray, pixel_scale: PixelScale | None, counts: collections.Counter[str]
) -> Image.Image:
    levels = to_8_bit(values, pixel_scale)
    counts[FEW_LEVELS] += spans_few_levels(levels)
    return Image.fromarray(levels)
