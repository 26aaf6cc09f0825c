"""A config that remembers which of its fields were set, even if to their default."""

from __future__ import annotations

from typing import Any

import ml_collections


class RecordingConfig(ml_collections.ConfigDict):
    """A ``ConfigDict`` whose groups note the names that are set after `forget`.

    Copies keep the notes. A group that is replaced as a whole counts as set in every field.
    """

    def __init__(self, *args: Any, **options: Any):
        object.__setattr__(self, "_names", set())
        super().__init__(*args, **options)

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            value = value if isinstance(value, RecordingConfig) else RecordingConfig(value)
        super().__setitem__(key, value)
        self._names.add(key)

    def __setstate__(self, state: dict[str, Any]) -> None:  # deepcopy and pickle
        super().__setstate__(state)
        object.__setattr__(self, "_names", set(state["_names"]))

    def copy_and_resolve_references(self, visit_map: Any = None) -> RecordingConfig:
        copy = super().copy_and_resolve_references(visit_map)
        object.__setattr__(copy, "_names", set(self._names))
        return copy

    def forget(self) -> RecordingConfig:
        """Discards the notes of every group; returns the config."""
        self._names.clear()
        for value in self.values():
            if isinstance(value, RecordingConfig):
                value.forget()
        return self

    def names_set(self, prefix: str = "") -> set[str]:
        """Dotted names of the fields set since `forget`."""
        found = set()
        for name, value in self.items():
            if isinstance(value, RecordingConfig):
                found |= value.names_set(f"{prefix}{name}.")
            elif name in self._names:
                found.add(prefix + name)
        return found
