"""docs/gallery.md and docs/howto.md are what their generator makes, and their commands are ones that exist."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import make_gallery  # noqa: E402


@pytest.fixture(scope="module")
def entries() -> list[make_gallery.Entry]:
    return make_gallery.entries(make_gallery.measured())


def test_the_pages_are_fresh(entries: list[make_gallery.Entry]) -> None:
    assert make_gallery.GALLERY.read_text() == make_gallery.gallery(entries), "python docs/make_gallery.py"
    assert make_gallery.HOWTO.read_text() == make_gallery.howto(entries), "python docs/make_gallery.py"


def test_every_spec_is_there(entries: list[make_gallery.Entry]) -> None:
    names = {path.stem for path in (ROOT / "specs").glob("*.yaml")}
    assert {entry.name for entry in entries} == names
    assert set(re.findall(r"^mapspec run (\w+) ", make_gallery.HOWTO.read_text(), re.MULTILINE)) == names


def test_the_commands_are_right(entries: list[make_gallery.Entry]) -> None:
    parser = import_module("compiler.cli.run").run_parser()
    for entry in entries:
        (line,) = make_gallery._type(entry)
        options = parser.parse(line.split()[2:])
        assert {assigned.partition("=")[0] for assigned in options.set} in ({*entry.needs}, set())


def test_a_class_of_no_known_modality_is_asked_for() -> None:
    assert make_gallery.modality("WhisperForConditionalGeneration") == "audio"
    assert make_gallery.modality("CLIPModel") == "image and text"
    assert make_gallery.modality("ViTForImageClassification") == "image"
    assert make_gallery.modality("LlamaForCausalLM") == "text"
    with pytest.raises(LookupError, match="MODALITIES"):
        make_gallery.modality("SomethingForProteinFolding")
