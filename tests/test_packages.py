"""What an installation without torch and Transformers does: the same bytes, or one line about what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from compiler import packages
from compiler.diagnostics import Refusal
from compiler.language import document
from compiler.target import class_registry, model_class, record_classes

ROOT = Path(__file__).parent.parent
# Commands, one after the other, in one process in which the packages cannot be imported.
RUNNER = """
import contextlib, io, json, sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from compiler.cli.main import main
for line in sys.stdin:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main(json.loads(line))
        except SystemExit as done:
            status = done.code
    print(json.dumps([status, text.getvalue()]), flush=True)
"""
DONE = [
    "sample s",
    "detect s/model.pth",
    "plan qwen3 s/model.pth",
    "plan minimind s/model.pth",
    "run qwen3 s/model.pth out",
    "run --reverse qwen3 out back.pth",
    "run minimind s/model.pth custom",
    "qwen3 minimind --no-proof",
    "new mine --target LlamaForCausalLM",
    "explain wrong-shape",
]
REFUSED = {
    "qwen3": "--no-proof",
    "verify qwen3 s/model.pth out": "needs torch",
    "verify qwen3 s/model.pth out --source-spec minimind": "needs torch and transformers",
    "run qwen3 s/model.pth other --readback": "--readback: needs transformers",
    "run qwen3 s/model.pth other --verify": "--verify: needs torch and transformers",
    "run qwen3 s/model.pth other --device cuda": "needs torch",
    "run minimind3_lora_qwen3 merged.pth other": "which computes,: needs torch",
    "adapter qwen3 s/model.pth s/lora.pth peft": "adapter: needs",
    "draft s/model.pth --target LlamaForCausalLM": "draft: needs",
    "plan qwen3 s/model.pth --check": "a target class: needs torch and transformers",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """The folder, and command -> its exit status and what it printed."""
    place = tmp_path_factory.mktemp("core")
    _merged(place / "merged.pth")
    commands = [*DONE, *REFUSED]
    lines = "".join(json.dumps(command.split()) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=lines, cwd=place, env={"PYTHONPATH": str(ROOT), "PATH": "", "MAPSPEC_CACHE": ""}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return place, {c: tuple(json.loads(a)) for c, a in zip(commands, done.stdout.splitlines(), strict=True)}


def _merged(path: Path) -> None:
    """A checkpoint that a spec with a computing rule reads: its weights with a LoRA beside them."""
    import torch

    from compiler.jobs.sample import write_sample

    write_sample(path.parent / "parts")
    weights = torch.load(path.parent / "parts" / "model.pth") | torch.load(path.parent / "parts" / "lora.pth")
    torch.save(weights, path)


@pytest.mark.parametrize("command", DONE)
def test_a_command_needs_neither(command: str, answers: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    status, text = answers[1][command]
    assert status == 0, text


@pytest.mark.parametrize("command", REFUSED)
def test_a_command_says_what_to_install(command: str, answers: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    place, (status, text) = answers[0], answers[1][command]
    assert status == 1
    assert REFUSED[command] in text
    assert "[missing-package]\n  hint: pip install 'mapspec[proof]'" in text
    assert "Traceback" not in text
    assert not {"other", "peft"} & {path.name for path in place.iterdir()}


def test_the_class_check_is_left_out_with_a_note(answers: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    note = "note: not compared with the target class, because torch and transformers are not installed"
    assert answers[1]["run qwen3 s/model.pth out"][1].count(note) == 1
    assert answers[1]["run minimind s/model.pth custom"][1].count(note) == 1
    assert note not in answers[1]["plan qwen3 s/model.pth"][1]


def test_the_folder_is_the_same(answers: tuple[Path, dict[str, tuple[int, str]]], tmp_path: Path) -> None:
    import mapspec

    notes: list[str] = []
    mapspec.convert("qwen3", answers[0] / "s" / "model.pth", tmp_path / "out", on_note=notes.append)
    assert not any("not compared" in note for note in notes)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    others = {path.name: path.read_bytes() for path in (answers[0] / "out").iterdir()}
    assert files.keys() == others.keys()
    # The card and the manifest name the source by its path.
    assert {name for name in files if files[name] != others[name]} <= {"README.md", "mapspec.json"}


def test_a_new_spec_names_a_schema_that_exists(answers: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    first = (answers[0] / "specs" / "mine.yaml").read_text().partition("\n")[0]
    assert (answers[0] / "specs" / first.partition("$schema=")[2]).resolve() == ROOT / "compiler" / "schema.json"


def test_a_package_that_is_there_is_not_asked_for() -> None:
    assert packages.missing() == []
    packages.need("a test")
    with pytest.raises(Refusal, match="a test: needs no_such_package, which is not installed"):
        packages.need("a test", "torch", "no_such_package")


# ---------------------------------------------------------------------------------------------------------------------
# The record


def test_the_record_is_that_of_the_pinned_release() -> None:
    """`python -m compiler.target.record_classes` writes it anew, which `make regen` does."""
    stored = class_registry.stored()
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"transformers=={stored['release']}\n" in pinned
    if metadata.version("transformers") == stored["release"]:
        some = [kind for kind in stored["defaults"] if kind[0] in "lm"]  # reading all takes a while
        made = record_classes.record(some)
        assert made["defaults"].keys() == {*some}
        assert json.loads(record_classes.text(made)) == {**stored, "defaults": {k: stored["defaults"][k] for k in some}}


def test_every_shipped_target_is_in_it() -> None:
    stored = class_registry.stored()
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        target = document.plain(document.read_document(path))["target"]
        if name := target.get("model"):
            kinds = stored["classes"][name]
            kind = kinds[0] if len(kinds) == 1 else stored["types"][name]
            assert kind in stored["defaults"]
            assert kind == model_class.model_type(name)
