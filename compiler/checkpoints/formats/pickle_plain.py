"""Turn objects stored with the weights into plain Python data: dict, list, str, int, float, bool, None.

Takes an object made of the stand-ins of `compiler.checkpoints.formats.pickle_globals`; returns a copy without them: instances as dictionaries of
their attributes, classes and functions as their dotted names. Raises LeftOut where it holds tensors, is huge, or is
nested without end.
"""

from __future__ import annotations

from typing import Any

from compiler.checkpoints.formats.pickle_globals import Global, Inert, Storage, Unreadable, View

_MOST_VALUES = 1_000_000  # of one object
_MOST_IN_ALL = 4_000_000
_DEEPEST = 50
_LONGEST_NAME = 300


class LeftOut(Exception):
    """Why an object was left out."""


def shown(name: object) -> str:
    """A name out of a file as a message shows it: short, and without the control characters that it may hold."""
    if isinstance(name, tuple):
        return f"({', '.join(shown(part) for part in name[:4])}{', ...' * (len(name) > 4)})"
    text = name if isinstance(name, str) else str(name[:_LONGEST_NAME] if isinstance(name, bytes) else name)
    text = text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "..."
    return text if text.isprintable() else ascii(text)


class Plain:
    """Makes objects plain that may share parts: a file that names one large part often costs no more than a large one."""

    def __init__(self) -> None:
        self.left = 0
        self.left_in_all = _MOST_IN_ALL

    def of(self, value: Any) -> object:
        """The plain form of the next object. Raises LeftOut."""
        self.left = min(_MOST_VALUES, self.left_in_all)
        before = self.left
        try:
            return self._of(value, 0)
        finally:
            self.left_in_all -= before - self.left

    def _of(self, value: Any, depth: int) -> object:
        self.left -= 1
        if self.left < 0 or depth > _DEEPEST:
            raise LeftOut("too large or nested too deeply")
        if isinstance(value, str | int | float | None):
            return value
        if isinstance(value, dict):
            return {self._key(k): self._of(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set):
            return [self._of(v, depth + 1) for v in value]
        if isinstance(value, bytes):
            return f"<{len(value)} bytes>"
        if isinstance(value, Global):
            return value.path
        if isinstance(value, View | Unreadable | Storage):
            raise LeftOut("holds tensors")
        return self._instance(value, depth)

    def _instance(self, value: Inert, depth: int) -> object:
        """An instance as its attributes, and its class as `__class__` unless it is a plain namespace."""
        path, state = value.cls.path, value.state
        if path in ("numpy.ndarray", "numpy.dtype") or path.endswith(".scalar"):
            return f"<{path}>"
        if path.startswith("omegaconf.") and isinstance(state, dict):  # nodes that also refer to their parents
            return self._of(state["_content"] if "_content" in state else state.get("_val"), depth + 1)
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # (__dict__, __slots__)
            state = {**(state[0] or {}), **state[1]} if isinstance(state[0], dict | None) else state[1]
        if value.values and not value.items and state is None:
            return self._of(value.values, depth + 1)
        fields: dict[object, object] = {}
        if path not in ("argparse.Namespace", "types.SimpleNamespace"):
            fields["__class__"] = path
        if value.args:
            fields["__args__"] = self._of(value.args, depth + 1)
        for part in (state, value.items):
            if isinstance(part, dict):
                fields |= {self._key(k): self._of(v, depth + 1) for k, v in part.items()}
            elif part is not None:
                fields["__state__"] = self._of(part, depth + 1)
        if value.values:
            fields["__values__"] = self._of(value.values, depth + 1)
        return fields

    def _key(self, key: Any) -> object:
        if isinstance(key, str | int | float | None):
            return key
        return (
            key.path if isinstance(key, Global) else shown(key) if isinstance(key, tuple) else f"<{type(key).__name__}>"
        )
