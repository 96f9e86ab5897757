"""The file of recorded axis labels is what its program writes."""

from __future__ import annotations

import json

from compiler.program.axis_labels import spec_digest
from compiler.program.loading import load_program
from compiler.proof.record_labels import record, text
from compiler.resources import axis_labels_path, folder


def test_the_file_is_what_is_recorded() -> None:
    """Its form for all specs, and its content for one, which is proven here."""
    written = axis_labels_path().read_text(encoding="utf-8")
    labels = json.loads(written)
    assert text(labels) == written
    assert labels.keys() == {path.stem for path in folder("specs").glob("*.yaml")}
    found = record([folder("specs") / "llama2c_llama.yaml"])
    assert json.loads(text(found)) == {"llama2c_llama": labels["llama2c_llama"]}
    assert found["llama2c_llama"]["digest"] == spec_digest(load_program("llama2c_llama").spec)
