"""Records the axis labels of the shipped specs: `python -m compiler.proof.record_labels` writes them into the package.

Proves every shipped spec, so it needs Transformers. Raises Refusal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.program.axis_labels import spec_digest
from compiler.program.loading import load_program
from compiler.proof.proof import prove
from compiler.resources import axis_labels_path, folder
from compiler.templating import write_if_changed


def record(paths: Iterable[Path]) -> dict[str, Any]:
    """Name of a spec -> its digest and its labels."""
    found = {}
    for path in sorted(paths):
        program = load_program(str(path))
        spec = program.spec
        found[spec.name.value] = {"digest": spec_digest(spec), **asdict(prove(program).labels)}
    return found


def text(labels: dict[str, Any]) -> str:
    """The content of the file: one line for each tensor name."""
    lines = []
    for name, entry in labels.items():
        sides = []
        for side in ("source", "target"):
            rows = [f"   {json.dumps(form)}: {json.dumps(axes)}" for form, axes in entry[side].items()]
            sides.append(f'  "{side}": {{\n' + ",\n".join(rows) + "\n  }")
        lines.append(f' "{name}": {{\n  "digest": "{entry["digest"]}",\n' + ",\n".join(sides) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    write_if_changed(axis_labels_path(), text(record(folder("specs").glob("*.yaml"))))
