"""Records what Transformers says of its classes: `python -m compiler.target.record_classes` writes it into the package.

`class_registry` describes and reads the record.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import Any

from compiler.diagnostics import Refusal
from compiler.resources import class_registry_path
from compiler.target import config_class, config_values, model_class


def record(kinds: Collection[str] = ()) -> dict[str, Any]:
    """The record of the installed Transformers, from its source text; a class whose type the text leaves open is imported.
    `kinds`: the model types whose defaults are read, by default all."""
    classes = model_class.model_types_by_class()
    configs = config_class.known_model_types()
    shared = {name: _type(name) for name, kinds in sorted(classes.items()) if len(kinds) > 1}
    return {
        "release": metadata.version("transformers"),
        "classes": {name: list(kinds) for name, kinds in sorted(classes.items())},
        "types": {name: kind for name, kind in shared.items() if kind},
        "configs": dict(sorted(configs.items())),
        "defaults": {kind: dict(config_class.config_defaults(kind)) for kind in sorted(kinds or configs)},
        "tables": {name: sorted(config_values.table_keys(name)) for name in config_values.TABLES},
    }


def _type(name: str) -> str | None:
    try:
        return model_class.model_type(name)
    except Refusal:  # it needs a package that is not installed
        return None


def text(found: Mapping[str, Any]) -> str:
    """The content of the file, one entry per line."""
    sections = [f' "release": {json.dumps(found["release"])}']
    for key, entries in found.items():
        if isinstance(entries, dict):
            rows = [
                f"  {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in entries.items()
            ]
            sections.append(f' "{key}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    class_registry_path().write_text(text(record()), encoding="utf-8")
