"""Rendered code as a class: imported from a temporary folder, built on the meta device, asked for its signature.

Takes the texts of path B's modules; what they hold was printed by this compiler from checked parts, never copied from
a checkpoint. Refuses a config that the class does not accept.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.target import Signature, signature_of


@contextmanager
def imported(files: Mapping[str, str], module: str) -> Iterator[Any]:
    """The module `module` of a package made of `files`; gone again afterwards."""
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        package = f"mapspec_rendered_{place.name.rsplit('_', 1)[-1]}"
        (place / package).mkdir()
        for file, text in {"__init__.py": "", **files}.items():
            (place / package / file).write_text(text, encoding="utf-8")
        sys.path.insert(0, name)
        try:
            yield importlib.import_module(f"{package}.{module}")
        finally:
            sys.path.remove(name)
            for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
                del sys.modules[loaded]


def signature(files: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]) -> Signature:
    """What `save_pretrained` of the rendered class writes when built from `config`, a config.json. Raises Refusal."""
    with imported(files, module) as found:
        return signature_of(getattr(found, model_class), config)
