"""Mistakes that people make at the command line: each message names what is wrong, and what to type next."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from support.error_runs import SHAPES, weights

import mapspec
from compiler.cli.main import main

SMALL = Path(__file__).parent.parent / "errors" / "runs" / "small.yaml"
RUN = "run small.yaml model.safetensors out"
VERIFY = "verify small.yaml model.safetensors done"

# The command; the exit status; texts that the message has, the last of which says what to type next.
MISTAKES = [
    # the command
    ("", 2, ["usage: mapspec", "mapspec run SPEC SOURCE OUT"]),
    ("rnu small.yaml model.safetensors out", 2, ["no such command", "did you mean 'run'?"]),
    ("--verison", 2, ["no option --verison", "did you mean '--version'?"]),
    ("small.yaml model.safetensors out", 2, ["a checkpoint", "mapspec run small.yaml model.safetensors out"]),
    ("model.safetensors", 2, ["not a spec", "mapspec detect model.safetensors"]),
    ("completion tcsh", 2, ["cannot be 'tcsh'", "bash, zsh or fish"]),
    ("schema out.json", 2, ["unexpected words: out.json", "usage: mapspec schema [options]"]),
    ("explain claimed-twise", 1, ["no kind 'claimed-twise'", "did you mean 'claimed-twice'?"]),
    # SPEC
    ("llma", 1, ["no spec 'llma'", "did you mean 'llama'?"]),
    ("--check smal.yaml", 1, ["no spec 'smal.yaml'", "did you mean 'small.yaml'?"]),
    ("run smal.yaml model.safetensors out", 1, ["no spec 'smal.yaml'", "did you mean 'small.yaml'?"]),
    ("run qwen33 model.safetensors out", 1, ["no spec 'qwen33'", "did you mean 'qwen3'?"]),
    ("run zzzzzz model.safetensors out", 1, ["no spec 'zzzzzz'", "`mapspec detect SOURCE`"]),
    ("run model.safetensors small.yaml out", 2, ["not a spec", "mapspec run small.yaml model.safetensors"]),
    ("run model.safetensors notes.txt out", 2, ["a checkpoint, not a spec", "mapspec run auto model.safetensors"]),
    ("run model.safetensors out", 2, ["OUT is missing", "mapspec run auto model.safetensors out"]),
    ("plan done small.yaml", 2, ["not a spec", "mapspec plan small.yaml done"]),
    ("run --reverse auto done back.pth", 2, ["needs the name of a spec", "mapspec.json in the folder names the spec"]),
    # SOURCE and OUT
    ("run small.yaml model.safetensors", 2, ["OUT is missing", "mapspec run SPEC SOURCE ... OUT"]),
    ("run small.yaml modle.safetensors out", 1, ["no such file", "did you mean 'model.safetensors'?"]),
    ("run small.yaml done/modle.safetensors out", 1, ["no such file", "did you mean 'done/model.safetensors'?"]),
    ("run small.yaml dnoe/model.safetensors out", 1, ["no folder 'dnoe'", "did you mean 'done'?"]),
    ("run small.yaml data/model.safetensors out", 1, ["no folder 'data'", "did you mean 'model.safetensors'?"]),
    ("run small.yaml notes.txt out", 1, ["a text file that begins 'hello'", "a checkpoint is .pth"]),
    ("run small.yaml empty out", 1, ["no checkpoint", "it is empty"]),
    ("run small.yaml model.safetensors full", 1, ["is not empty", "--force"]),
    ("run small.yaml model.safetensors model.safetensors", 1, ["exists", "choose another"]),
    ("run --reverse small.yaml model.safetensors b.pth", 1, ["have no rule", "leave out --reverse"]),
    ("detect modle.safetensors", 1, ["no such file", "did you mean 'model.safetensors'?"]),
    ("detect small.yaml", 2, ["not a checkpoint", "the file or the folder of the weights"]),
    ("adapter small.yaml model.safetensors lora peft", 1, ["no such file", "this folder has done/, empty/, full/"]),
    # options
    (f"{RUN} --tok done", 2, ["no option --tok", "did you mean '--tokenizer'?"]),
    (f"{RUN} --dyte float16", 2, ["no option --dyte", "did you mean '--dtype'?"]),
    (f"{RUN} --dtype bf16", 2, ["cannot be 'bf16'", "did you mean 'bfloat16'?"]),
    (f"{RUN} --dtype", 2, ["--dtype needs a value", "write --dtype"]),
    (f"{RUN} --jobs two", 2, ["a whole number of at least 1, not 'two'", "mapspec run --help"]),
    (f"{RUN} --jobs 0", 2, ["a whole number of at least 1, not '0'", "mapspec run --help"]),
    (f"{RUN} --max-shard-size big", 2, ["'big' is not a size", "5GB"]),
    (f"{RUN} --device cdua", 1, ["'cdua' cannot be used", "did you mean 'cuda'?"]),
    (f"{RUN} --parts 2", 2, ["an option of --reverse", "add --reverse"]),
    (f"{RUN} --output-format xml", 2, ["cannot be 'xml'", "text, json or github"]),
    (f"{RUN} --model large", 1, ["no model 'large'", "leave out --model"]),
    (f"{RUN} --tokenizer tokeniser", 1, ["no such file", "this folder has done/, empty/, full/"]),
    ("plan small.yaml model.safetensors --htlm x.html", 2, ["no option --htlm", "did you mean '--html'?"]),
    # --config and --set
    (f"{RUN} --config confg.json", 1, ["no such file", "did you mean 'config.json'?"]),
    (f"{RUN} --config model.safetensors", 1, ["a binary file", "config.json or params.json"]),
    (f"{RUN} --config broken.json", 1, ["broken.json:1:27", "{\"num_attention_heads\": 4,}"]),
    (f"{RUN} --set num_attention_heads", 2, ["not an assignment", "write NAME=VALUE"]),
    (f"{RUN} --set num_heads=4", 1, ["no argument 'num_heads'", "did you mean 'num_key_value_heads'?"]),
    (f"{RUN} --set num_attention_heads=four", 1, ["'four' (--set)", "--set num_attention_heads=VALUE"]),
    ("run strict.yaml model.safetensors out --set num_attention_heads=5", 1,
     ["hidden_size = 32, num_attention_heads = 5 (--set)", "it holds for num_attention_heads = 1, 2, 4 or 8"]),
    # verify, draft, new
    ("verify small.yaml model.safetensors dnoe", 1, ["no such file", "did you mean 'done'?"]),
    ("verify small.yaml done model.safetensors", 2, ["OUT is a file", "mapspec verify small.yaml model.safetensors done"]),
    (f"{VERIFY} --source-model trained", 2, ["neither MODULE:CLASS nor", "--source-model trainer.model:Transformer"]),
    (f"{VERIFY} --source-model trianer.py:Model", 1, ["no file 'trianer.py'", "did you mean 'trainer.py'?"]),
    (f"{VERIFY} --length 1", 2, ["it must be 2 or more", "--length 64"]),
    ("draft model.safetensors", 2, ["--target is missing", "--target CLASS"]),
    ("draft model.safetensors --target X -o small.yaml", 1, ["the file exists", "choose another name"]),
    ("draft model.safetensors --target X -o mine.txt", 2, ["must be NAME.yaml", "choose mine.yaml"]),
    ("new My-Model --target X", 1, ["not a valid name", "as in my_model"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec, a checkpoint, a converted folder, and what lies about."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copyfile(SMALL, folder / "small.yaml")
    rule = "  hidden_size % num_attention_heads == 0 and num_attention_heads < 16: the heads do not divide the width\n"
    strict = SMALL.read_text().replace("name: small", "name: strict").replace("require:\n", f"require:\n{rule}")
    (folder / "strict.yaml").write_text(strict)
    weights(str(folder / "model.safetensors"), SHAPES)
    (folder / "config.json").write_text('{"num_attention_heads": 4}')
    (folder / "broken.json").write_text('{"num_attention_heads": 4,}')
    (folder / "notes.txt").write_text("hello")
    (folder / "trainer.py").write_text("")
    for name in ("empty", "full"):
        (folder / name).mkdir()
    (folder / "full" / "thesis.tex").write_text("")
    mapspec.convert(folder / "small.yaml", folder / "model.safetensors", folder / "done", check=False)
    return folder


@pytest.mark.parametrize(("command", "status", "texts"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_the_message_says_what_to_type(
    command: str,
    status: int,
    texts: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as done:
        main(shlex.split(command))
    said = capsys.readouterr()
    assert done.value.code == status, said.err
    for text in texts:
        assert text in said.err
    # The way out is in the hint, nothing is on stdout, nothing is written, and no line is a traceback or a wall.
    if command and texts[-1] not in said.err.splitlines()[1]:
        assert texts[-1] in said.err.partition("hint: ")[2]
    assert said.out == ""
    assert "Traceback" not in said.err
    assert sorted(place.rglob("*")) == before


def test_there_are_forty() -> None:
    assert len(MISTAKES) >= 40


def test_the_same_as_json_and_as_annotations(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (place / "typo.yaml").write_text(
        SMALL.read_text().replace("embed.weight: model.", "embed.wieght: 50%, a:b\n  x: model.")
    )
    for words in (["--json"], ["--output-format", "json"], ["--output-format=json"]):
        with pytest.raises(SystemExit) as done:
            main(["typo.yaml", "--no-proof", *words])
        said = capsys.readouterr()
        problems = json.loads(said.out)["diagnostics"]
        assert (done.value.code, said.err) == (1, "")
        assert {"file", "line", "column", "kind", "message", "hint", "severity"} <= problems[0].keys()
    with pytest.raises(SystemExit):
        main(["typo.yaml", "--no-proof", "--output-format", "github"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert (len(lines), said.err) == (len(problems), "")
    for line, problem in zip(lines, problems, strict=True):
        start = f"::error file=typo.yaml,line={problem['line']},col={problem['column']},"
        assert line.startswith(start)
        assert f"title={problem['kind']}::" in line
        assert "50%25" in line or "50%" not in line
    (place / "typo.yaml").unlink()
