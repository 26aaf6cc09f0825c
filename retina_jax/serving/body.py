"""Reads the images in the body of a request, and counts its bytes as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from retina_jax.serving.limits import MEBIBYTE, Limits

_RAW = ("", "application/octet-stream")
_MOST_NAME = 200  # characters of a file name


class Refusal(Exception):
    """An error in response to a request; ``text`` is one line."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers or {}


async def read_images(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """The name and content of each image in a request.

    The body is a form (multipart/form-data) whose files are the images, or one image. Raises
    `Refusal` for another type (415), more bytes or images than the limits allow (413), and no image
    or a broken form (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind in _RAW or kind.startswith("image/")):
        raise Refusal(
            415,
            f"Content-Type={_shown(kind)} is not supported; send an image (image/jpeg, image/png, "
            "…) or a form (multipart/form-data)",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise Refusal(
            415, f"Content-Encoding={_shown(encoding)} is not supported; send the body uncompressed"
        )
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise _too_large(int(stated), limits)  # without reading it
    if is_form:
        images = await _of_form(request, limits)
    else:
        content = bytearray()
        async for chunk in _counted(request, limits):
            content += chunk
        images = [("image", bytes(content))]
    for number, (name, content) in enumerate(images, 1):
        if not content:
            raise Refusal(400, f"image {number} ({name}) is empty")
    return images


async def _counted(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """The body in chunks; does not rely on the stated length."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body_bytes:
            raise _too_large(size, limits)
        yield chunk


async def _of_form(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    parser = MultiPartParser(
        request.headers, _counted(request, limits), max_files=limits.images, max_fields=20
    )
    parser.spool_max_size = limits.body_bytes  # in memory, not in a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refusal(
                413, f"the request has more than {limits.images} images; use several requests"
            ) from None
        raise Refusal(400, f"the form cannot be read: {error.message}") from None
    except FormParserError:  # of earlier versions of starlette
        raise Refusal(400, "the form cannot be read: Invalid multipart data.") from None
    try:
        images = []
        for number, (_, value) in enumerate(form.multi_items(), 1):
            if isinstance(value, UploadFile):
                images.append((_shown(value.filename or f"image {number}"), await value.read()))
    finally:
        await form.close()
    if not images:
        raise Refusal(
            400, "the form has no files; send each image as a file (curl: -F image=@street.jpg)"
        )
    return images


def _too_large(size: int, limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"the body has at least {size / MEBIBYTE:.1f} MiB; the limit is {limits.body:g} MiB",
    )


def _shown(text: str) -> str:
    """Text from a client, shortened and on one line."""
    return " ".join(text.split())[:_MOST_NAME]
