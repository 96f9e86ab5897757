"""Config files and `--set` assignments as plain mappings.

Reads JSON (Transformers' config.json, Meta's params.json) and YAML. Rejects duplicate keys, NaN and infinity, deep
nesting, and an `auto_map` that points outside its folder. Raises Refusal.
"""

from __future__ import annotations

import codecs
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler import strict_json
from compiler.diagnostics import Span, refuse
from compiler.language import document

MOST_BYTES = 16 << 20  # of a config; the largest known ones have a few hundred thousand


def beside(source: Path, name: str) -> Path | None:
    """The first file in the source's folder whose name matches the glob `name`."""
    if not name:
        return None
    folder = source if source.is_dir() else source.parent
    matches = sorted(folder.glob(name))
    return matches[0] if matches else None


def read_config_file(path: Path) -> dict[str, Any]:
    """The fields of a config: a JSON or YAML file, or a folder with a config.json. Raises Refusal."""
    if os.path.isdir(path) and (path / "config.json").is_file():
        path = path / "config.json"
    name = str(path)
    stamp = path.stat() if os.path.isfile(path) else None
    fields = mapping_of_fields(name, _fields(path, stamp and (stamp.st_ino, stamp.st_size, stamp.st_mtime_ns)))
    classes = fields.get("auto_map")
    for value in classes.values() if isinstance(classes, dict) else [classes]:
        if any(part in str(value) for part in ("/", "\\", "..", "--")):  # `--` follows the name of another repository
            refuse(
                name,
                f"auto_map points outside the folder: {value!r}",
                "bad-config",
                "the config is damaged or an attack",
            )
    return dict(fields)


def mapping_of_fields(where: str, content: Any) -> dict[str, Any]:
    """The content of a config. Raises Refusal where it is no mapping."""
    if not isinstance(content, dict):
        refuse(where, f"a config must be a mapping of fields, not {type(content).__name__}", "bad-config")
    return content


@lru_cache(8)  # `detect` reads one config for every spec
def _fields(path: Path, stamp: object) -> Any:
    """The content of a file. `stamp` changes when the file does: inode, size and time of change."""
    if path.suffix in (".yaml", ".yml"):
        fields = document.plain(document.read_document(path))
        return _with_underscores(fields) if isinstance(fields, dict) else fields
    return _json(path)


def _with_underscores(fields: dict[Any, Any]) -> dict[Any, Any]:
    """The fields, those that are written like options of a command line (`num-layers`) with underscores."""
    named = {name.replace("-", "_") if isinstance(name, str) else name: value for name, value in fields.items()}
    return named if len(named) == len(fields) else fields


def _json(path: Path) -> Any:
    try:
        if not path.is_file() and path.exists():
            refuse(str(path), "not a regular file", "unreadable-file")
        if path.stat().st_size > MOST_BYTES:
            refuse(str(path), f"a config of more than {MOST_BYTES:,} bytes", "bad-config", "is this the right file?")
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        refuse(str(path), f"cannot be read: {error.strerror}", "unreadable-file")
    try:
        data.decode()
    except UnicodeDecodeError:
        refuse(
            str(path),
            "a binary file, not JSON or YAML",
            "json-syntax",
            "a config is a file such as config.json or params.json",
        )
    try:
        return strict_json.parse(data, most_depth=document.MAX_DEPTH)
    except strict_json.JsonError as error:
        lines = data.decode(errors="replace").splitlines()
        text = lines[error.line - 1] if 0 < error.line <= len(lines) else ""
        span = Span(str(path), error.line, error.column, 1, text)
        prefix = "not JSON: " if error.kind == "json-syntax" else ""
        refuse(span, f"{prefix}{error.reason}", "bad-config" if error.kind == "too-deep" else error.kind)


def parse_assignments(texts: list[str]) -> dict[str, Any]:
    """The values of `--set NAME=VALUE`, read as YAML 1.2 or JSON. Raises Refusal."""
    assigned: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            refuse("--set", f"{text!r} is not an assignment", "wrong-usage", "write NAME=VALUE")
        if name.strip() in assigned:
            refuse("--set", f"{name.strip()!r} is set twice", "wrong-usage")
        assigned[name.strip()] = document.plain(document.read_document("--set", value)) if value.strip() else None
    return assigned
