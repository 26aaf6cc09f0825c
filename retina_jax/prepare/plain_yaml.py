"""Parse YAML and keep all scalars as strings, such as no, on, 007 and 12:30."""

from __future__ import annotations

from typing import Any

import yaml

from retina_jax.prepare.handling import printable

_MOST_CHARACTERS = 2**20
_DEEPEST = 50


class YAMLError(Exception):
    """The reason why YAML text is rejected, in one line."""


def parse_yaml(text: str) -> Any:
    """Returns dicts, lists and strings. Raises `YAMLError`, also for aliases and custom tags."""
    if len(text) > _MOST_CHARACTERS:
        raise YAMLError(f"is longer than {_MOST_CHARACTERS} characters")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # the parser's time grows with the square of it
                raise YAMLError(f"line {_line(event)}: nests deeper than {_DEEPEST} levels")
            if isinstance(event, yaml.AliasEvent):
                raise YAMLError(f"line {_line(event)}: aliases are not supported; write the value")
            tag = getattr(event, "tag", None) or ""
            if tag and tag.rpartition(":")[2] not in ("str", "map", "seq", "int", "float", "bool"):
                raise YAMLError(f"line {_line(event)}: the tag {tag[:80]!a} is not supported")
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
            raise YAMLError(f"line {_line(name)}: a key is not a string")
        if name.value in found:
            raise YAMLError(f"line {_line(name)}: duplicate key {name.value[:80]!a}")
        found[name.value] = _plain(value)
    return found
