"""YAML whose scalars all stay text: no, on, 007 and 12:30 are what they look like."""

from __future__ import annotations

from typing import Any

import yaml

from retina_jax.prepare.handling import printable

_MOST_CHARACTERS = 2**20
_DEEPEST = 50


class YAMLError(Exception):
    """Why a text is not YAML that may be read, in one line."""


def parse_yaml(text: str) -> Any:
    """Dicts, lists and strings; `YAMLError` for aliases, which can grow without bound, and tags."""
    if len(text) > _MOST_CHARACTERS:
        raise YAMLError(f"has over {_MOST_CHARACTERS} characters")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # the parser's time grows with the square of it
                raise YAMLError(f"line {_line(event)}: nests more than {_DEEPEST} deep")
            if isinstance(event, yaml.AliasEvent):
                raise YAMLError(f"line {_line(event)}: an alias; write it out")
            tag = getattr(event, "tag", None) or ""
            if tag and tag.rpartition(":")[2] not in ("str", "map", "seq", "int", "float", "bool"):
                raise YAMLError(f"line {_line(event)}: the tag {tag[:80]!a}")
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _plain(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split()).replace(' in "<unicode string>",', ", at")
        raise YAMLError(printable(why)) from None


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(entry) for entry in node.value]
    found = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise YAMLError(f"line {_line(name)}: a key that is no text")
        if name.value in found:
            raise YAMLError(f"line {_line(name)}: the key {name.value[:80]!a} is there twice")
        found[name.value] = _plain(value)
    return found
