"""Parse untrusted XML in any declared encoding, without custom entities."""

from __future__ import annotations

import codecs
import re
import xml.parsers.expat
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

_MOST_BYTES = 64 * 2**20
_DEEPEST = 200
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")


class XMLError(Exception):
    """The reason why an XML file is rejected, in one line."""


def read_xml(path: Path) -> Element:
    """Returns the root element; comments and processing instructions are skipped.

    Raises `XMLError`, also for declared entities: they can expand without limit or read files.
    """
    try:
        if not path.is_file():
            raise XMLError("not a regular file")
        if path.stat().st_size > _MOST_BYTES:
            raise XMLError(f"is larger than {_MOST_BYTES >> 20} MiB")
        return parse_xml(path.read_bytes())
    except OSError as error:
        raise XMLError(error.strerror or str(error)) from None


def parse_xml(data: bytes) -> Element:
    """Like `read_xml`, for the content of a file."""
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise XMLError(f"elements nest deeper than {_DEEPEST} levels")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_) -> None:
        raise XMLError("declares or uses custom entities, which are not supported")

    # the text is ours by now, whatever encoding its declaration names
    parser = xml.parsers.expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.SkippedEntityHandler = refuse
    parser.ExternalEntityRefHandler = parser.UnparsedEntityDeclHandler = refuse
    try:
        parser.Parse(_decoded(data).encode("utf-8"), True)
        return builder.close()
    except (xml.parsers.expat.ExpatError, UnicodeError, AssertionError) as error:
        raise XMLError(" ".join(str(error).split())) from None


def _decoded(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    if data[:4] == b"<\0?\0" or data[:2] == b"<\0":
        return data.decode("utf-16-le")
    if data[:2] == b"\0<":
        return data.decode("utf-16-be")
    declared = _DECLARED.match(data[:1024])
    name = declared[1].decode() if declared else "utf-8"
    if name.lower().replace("_", "-").startswith(("utf-16", "utf-32", "ucs-")):
        name = "utf-8"  # the declaration itself is ASCII: some tools write what is not so
    try:
        return data.decode(name)
    except LookupError:
        raise XMLError(f"declares the unknown encoding {name!r}") from None
