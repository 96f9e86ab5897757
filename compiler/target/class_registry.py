"""What Transformers' source text says of its classes, recorded for installations without it.

`python -m compiler.target.record_classes` writes the record from the installed release. It is read only where Transformers
cannot be found, so that a checkpoint can be planned and moved without it. Fields of the record:

- `release`: the release of Transformers
- `classes`: model class -> the model types that the auto classes map to it
- `types`: model class -> its own model type, where several share it
- `configs`: model type -> the name of its config class
- `defaults`: model type -> config field -> default
- `tables`: table of names -> its keys, such as the activations
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from compiler.resources import class_registry_path

Record = Mapping[str, Any]


@cache
def record() -> Record | None:
    """The record; None if Transformers is installed, whose own source text is then read."""
    return None if importlib.util.find_spec("transformers") is not None else stored()


def stored() -> Record:
    """The record in the package."""
    found: Record = json.loads(class_registry_path().read_text(encoding="utf-8"))
    return found
