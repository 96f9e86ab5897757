"""The processor of a model of images or audio: copied from beside the source or a named folder, or made from the spec.

Both versions of Transformers load it; those for images need Pillow.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.converter_process import ConverterProcess
from support.oracle_cases import Case
from support.parity import ORACLES

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import Request

AUDIO, IMAGES, PAIRS = (Case(ORACLES / name) for name in ("whisper/tiny", "timm/vit", "clip/vit"))
LOAD = """
import json, sys
import transformers
loaded = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2])
print(json.dumps(getattr(loaded, "image_processor", loaded).to_dict(), default=str))
"""
NAME = "preprocessor_config.json"
# As transformers 4.57.6 and 5.24.0 save the class of Segment Anything.
SEGMENTS = {
    "do_normalize": True, "do_pad": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "SamImageProcessor", "image_std": [0.229, 0.224, 0.225],
    "pad_size": {"height": 64, "width": 64}, "processor_class": "SamProcessor", "size": {"longest_edge": 64},
}  # fmt: skip
PYTHONS = [sys.executable, *filter(None, [os.environ.get("MAPSPEC_PYTHON_4")])]
images = pytest.mark.skipif(not importlib.util.find_spec("PIL"), reason="Pillow is not installed")


def load(name: str, folder: Path, python: str) -> dict[str, Any]:
    """The settings of the processor that a class of Transformers reads from a folder."""
    done = subprocess.run([python, "-c", LOAD, name, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def converted(case: Case, out: Path, **given: Any) -> dict[str, Any]:
    """The preprocessor_config.json of a converted case."""
    request = case.request
    convert(case.program, Request(request.source, request.config, request.assigned, **given), out)
    return dict(json.loads((out / NAME).read_text())) if (out / NAME).exists() else {}


@pytest.mark.parametrize("python", PYTHONS)
def test_audio(tmp_path: Path, python: str) -> None:
    fields = converted(AUDIO, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["feature_size"] == config["num_mel_bins"]
    assert fields["processor_class"] == "WhisperProcessor"
    for name in ("WhisperFeatureExtractor", "AutoFeatureExtractor"):
        found = load(name, tmp_path / "out", python)
        assert found.items() >= {n: v for n, v in fields.items() if n != "processor_class"}.items()


@images
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("case", "name"), [(IMAGES, "ViTImageProcessor"), (PAIRS, "CLIPImageProcessor")])
def test_images(tmp_path: Path, case: Case, name: str, python: str) -> None:
    fields = converted(case, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    size = config.get("vision_config", config)["image_size"]
    assert set(fields["size"].values()) == {size}
    for loader in (name, "AutoImageProcessor"):
        found = load(loader, tmp_path / "out", python)
        assert {n: found[n] for n in ("image_mean", "image_std", "resample")} == {
            n: fields[n] for n in ("image_mean", "image_std", "resample")
        }


@pytest.mark.parametrize("case", [AUDIO, IMAGES, PAIRS])
def test_a_converter_writes_the_same(server: ConverterProcess, tmp_path: Path, case: Case) -> None:
    """Made from the spec, or copied where the source has one."""
    name, request = case.program.spec.name.value, case.request
    source = given = request.source[0]
    options = [f"--{argument}={value}" for argument, value in request.assigned.items()]
    options += ["--config", str(request.config)] if request.config else []
    assert server.run(name, str(source), str(tmp_path / "made"), *options) == ""
    converted(case, tmp_path / "out")
    assert (tmp_path / "made" / NAME).read_bytes() == (tmp_path / "out" / NAME).read_bytes()
    (tmp_path / "source").mkdir()
    for file in source.iterdir() if source.is_dir() else [source]:
        (given := tmp_path / "source" / file.name).symlink_to(file.resolve())
    given = given.parent if source.is_dir() else given
    (tmp_path / "source" / NAME).write_text('{"size": 7}')
    assert server.run(name, str(given), str(tmp_path / "copied"), *options) == ""
    assert (tmp_path / "copied" / NAME).read_text() == '{"size": 7}'


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    def said(program: Any, request: Request, out: Path) -> str:
        notes: list[str] = []
        convert(program, request, out, on_note=lambda note: notes.append(str(note)))
        return " ".join(notes)

    request = PAIRS.request
    assert "no tokenizer, which CLIPProcessor needs" in said(PAIRS.program, request, tmp_path / "out")
    bare = dataclasses.replace(PAIRS.program, spec=dataclasses.replace(PAIRS.program.spec, processor=None))
    assert "(vision_config), and the folder has no preprocessor_config.json" in said(bare, request, tmp_path / "bare")
    assert "processor" not in said(IMAGES.program, IMAGES.request, tmp_path / "images")


def test_a_file_is_copied_before_the_spec_is_asked(tmp_path: Path) -> None:
    """Named, in the tokenizer's folder, or beside the source, in this order."""
    source = tmp_path / "source"
    source.mkdir()
    given = AUDIO.request.source[0]
    file = given if given.is_file() else next(given.glob("*.pt"))
    (source / file.name).symlink_to(file.resolve())
    case_request = AUDIO.request
    for n, name in enumerate(("source", "tokens", "named")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / NAME).write_text(json.dumps({"feature_size": n}))
    (tmp_path / "named" / "processor_config.json").write_text("{}")
    (tmp_path / "named" / "video_preprocessor_config.json").write_text("{}")

    def size(**given: Any) -> int:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        convert(AUDIO.program, Request([source / file.name], case_request.config, case_request.assigned, **given), out)
        names = {"processor_config.json", "video_preprocessor_config.json"}
        assert {p.name for p in out.iterdir()} & names == (names if "processor" in given else set())
        return int(json.loads((out / NAME).read_text())["feature_size"])

    tokens, named = tmp_path / "tokens", tmp_path / "named"
    assert [size(), size(tokenizer=tokens), size(processor=named)] == [0, 1, 2]


@images
@pytest.mark.parametrize("python", PYTHONS)
def test_a_processor_of_images_is_copied(tmp_path: Path, python: str) -> None:
    (tmp_path / NAME).write_text(json.dumps(SEGMENTS))
    converted(IMAGES, tmp_path / "out", processor=tmp_path / NAME)
    assert load("SamProcessor", tmp_path / "out", python)["pad_size"] == {"height": 64, "width": 64}


def test_what_is_not_a_processor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / NAME).symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / NAME).write_text('{"auto_map": {"AutoImageProcessor": "their--code.Processor"}}')
    for name, kind in (
        ("", "missing-processor"),
        ("none", "missing-processor"),
        ("linked", "bad-config"),
        ("code", "bad-config"),
    ):
        with pytest.raises(Refusal) as caught:
            converted(AUDIO, tmp_path / "out", processor=tmp_path / name)
        assert [d.kind for d in caught.value.diagnostics] == [kind]
        assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as done:
        main(["run", "whisper_whisper", "x.pt", str(tmp_path / "out"), "--processor", str(tmp_path), "--json"])
    assert done.value.code == 1
    capsys.readouterr()
