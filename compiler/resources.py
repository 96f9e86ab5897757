"""Where shipped files are: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def package_root() -> Path:
    """The folder that holds the package, for the PYTHONPATH of a child process."""
    return _PACKAGE.parent


def schema_path() -> Path:
    """The JSON Schema of the spec language."""
    return _PACKAGE / "schema.json"


def axis_labels_path() -> Path:
    """The recorded axis labels of the shipped specs."""
    return _PACKAGE / "axis_labels.json"


def class_registry_path() -> Path:
    """What a release of Transformers says of its classes, recorded."""
    return _PACKAGE / "class_registry.json"


def sample_path() -> Path:
    """The shapes and texts of the sample checkpoint."""
    return _PACKAGE / "sample.json"


def gguf_tokenizers_path() -> Path:
    """How a GGUF file names tokenizers."""
    return _PACKAGE / "gguf_tokenizers.json"


def folder(name: str) -> Path:
    """A shipped folder: `specs`, `templates` or `docs`."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def spec_label(path: str) -> str:
    """What messages call a file: a shipped spec by its bare name (`NAME.yaml`), any other by its path."""
    name = os.path.basename(path)
    return name if os.path.isabs(path) and os.path.dirname(path) == str(folder("specs")) else path


def find_spec(text: str) -> Path:
    """The path of a spec: a file, or a shipped spec by its file name or bare name."""
    path = Path(text)
    if path.is_file():
        return path
    shipped = folder("specs") / (path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml")
    bare = path.parent in (Path(), Path("specs")) and shipped.is_file()
    return shipped if bare else path
