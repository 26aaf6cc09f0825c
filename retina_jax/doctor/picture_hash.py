"""Finds duplicate images: byte for byte, or re-encoded or resized (with a difference hash)."""

from __future__ import annotations

import dataclasses
import hashlib

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt64

from retina_jax.data import transforms as _  # noqa: F401  one thread for each of OpenCV's calls

SIDE = 16
"""Rows and columns of the hash: 256 bits."""
FLAT = 6.0
"""Standard deviation, grey levels, below which an image has no hash: noise would determine it."""
LARGEST_DISTANCE = 32
"""Bits, of 256; different images differ in about 128 bits, and in at least 80 so far."""
LARGEST_DIFFERENCE = 5.0
"""Largest mean difference, grey levels, of two thumbnails of the same image."""
_WORDS = SIDE * SIDE // 64
_AT_ONCE = 32  # images on the right, compared with all on the left: 30 MB for 118,000


@dataclasses.dataclass(frozen=True)
class PictureHash:
    """Hashes of an image."""

    digest: bytes
    """Hash of the encoded bytes."""
    bits: np.ndarray | None
    """``[4]`` uint64: whether each pixel is darker than its right neighbour; None: flat."""
    thumbnail: np.ndarray | None
    """``[16, 17]`` uint8, grey."""
    readable: bool = True


def hash_picture(encoded: bytes, height: int, width: int) -> PictureHash:
    """Hashes of an encoded image of ``height`` × ``width`` pixels, decoded small and grey."""
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    flags = _reduced(min(height, width)) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        grey = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        grey = None
    if grey is None:
        return PictureHash(digest, None, None, readable=False)
    thumbnail = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    if thumbnail.std() < FLAT:
        return PictureHash(digest, None, None)
    bits = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1]).view(np.uint64)
    return PictureHash(digest, bits, thumbnail)


def _reduced(side: int) -> int:
    """The coarsest decoding with at least four pixels per pixel of the hash."""
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    ):
        if side >= 4 * SIDE * factor:
            return flag
    return cv2.IMREAD_GRAYSCALE


def same_bytes(left: list[PictureHash], right: list[PictureHash]) -> Int[np.ndarray, "pairs 2"]:
    """Indices (left, right) of images with equal encoded bytes; one left for each right."""
    first = {picture.digest: i for i, picture in reversed(list(enumerate(left)))}
    pairs = [(first[p.digest], i) for i, p in enumerate(right) if p.digest in first]
    return np.array(pairs, np.int64).reshape(-1, 2)


def repeats(pictures: list[PictureHash]) -> Int[np.ndarray, "pairs 2"]:
    """Indices (first, later) of images with equal bytes in one split."""
    pairs = same_bytes(pictures, pictures)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def same_pictures(left: list[PictureHash], right: list[PictureHash]) -> Int[np.ndarray, "pairs 2"]:
    """Indices (left, right) of equal images, also if re-encoded or resized; the nearest left.

    Flat images are skipped.
    """
    left_places, left_bits, left_small = _stacked(left)
    right_places, right_bits, right_small = _stacked(right)
    pairs = []
    if not len(left_places):
        return np.zeros((0, 2), np.int64)
    words = np.ascontiguousarray(left_bits.T)
    for start in range(0, len(right_places), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        # half of the bits rules out nearly all pairs
        first = np.bitwise_count(right_bits[some, None, 0] ^ words[0])
        first += np.bitwise_count(right_bits[some, None, 1] ^ words[1])
        r, l = np.nonzero(first <= LARGEST_DISTANCE)  # noqa: E741
        r += start
        distance = np.bitwise_count(right_bits[r] ^ left_bits[l]).sum(axis=1, dtype=np.int64)
        near = distance <= LARGEST_DISTANCE
        r, l, distance = r[near], l[near], distance[near]  # noqa: E741
        alike = _difference(right_small[r], left_small[l]) <= LARGEST_DIFFERENCE
        for i, j, _distance in sorted(
            zip(r[alike], l[alike], distance[alike], strict=True), key=lambda pair: pair[2]
        ):
            pairs.append((int(left_places[j]), int(right_places[i])))
    nearest: dict[int, int] = {}
    for left_place, right_place in pairs:
        nearest.setdefault(right_place, left_place)
    return np.array([(a, b) for b, a in sorted(nearest.items())], np.int64).reshape(-1, 2)


def _stacked(
    pictures: list[PictureHash],
) -> tuple[Int[np.ndarray, "n"], UInt64[np.ndarray, "n 4"], np.ndarray]:
    places = np.array([i for i, p in enumerate(pictures) if p.bits is not None], np.int64)
    bits = np.array([pictures[i].bits for i in places], np.uint64).reshape(-1, _WORDS)
    small = np.array([pictures[i].thumbnail for i in places], np.uint8)
    return places, bits, small.reshape(-1, SIDE, SIDE + 1)


def _difference(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "n"]:
    """Mean absolute difference of pairs of thumbnails, grey levels."""
    return np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(axis=(1, 2))
