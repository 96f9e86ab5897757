"""The small commands, and what all commands have in common."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.signals import default_signals

from compiler.cli import explain
from compiler.cli.compile import compile_parser
from compiler.cli.main import COMMANDS, dispatch
from compiler.diagnostics import Refusal
from compiler.jobs.detect import Fit
from compiler.language import document
from compiler.language.parser import load_spec

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_speaks_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *([command] if command != "compile" else []), "--help")
    assert status == 0
    assert "--json" in out
    status, out, _ = run(capsys, *([command] if command != "compile" else []), "--json", "--no-such-option")
    assert status == 2
    assert json.loads(out)["diagnostics"][0]["kind"] == "wrong-usage"


def test_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "new", "mine", "--target", "MistralForCausalLM", "--out", tmp_path)[0] == 0
    spec = load_spec(tmp_path / "mine.yaml")
    assert (spec.name.value, spec.target.class_name) == ("mine", "MistralForCausalLM")
    # Every part of the language stands in it.
    keys = {key.text for key, _ in document.read_document(tmp_path / "mine.yaml").entries}  # type: ignore[union-attr]
    schema = json.loads(run(capsys, "schema")[1])
    assert {"target", "rename", "transform", "tie", "example"} <= keys <= schema["properties"].keys()
    status, _, err = run(capsys, "new", "mine", "--target", "A", "--out", tmp_path)
    assert (status, "[output-exists]" in err) == (1, True)
    status, _, err = run(capsys, "new", "Not-A-Name", "--target", "A", "--out", tmp_path)
    assert (status, "[bad-name]" in err) == (1, True)
    # What is left to say is told, not thrown.
    status, _, err = run(capsys, tmp_path / "mine.yaml", "--out", tmp_path)
    assert status == 1
    assert "MistralForCausalLM needs" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, script, _ = run(capsys, "completion", shell)
    assert status == 0
    assert all(word in script for word in ("detect", "--reverse", "litgpt_llama", "claimed-twice"))
    program = shutil.which(shell)
    if program:
        assert subprocess.run([program, "-n"], input=script, text=True, check=False).returncode == 0


def test_a_word_that_is_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A mistyped command is no spec, and a mistyped spec has a near one; nothing is written meanwhile."""
    status, out, err = run(capsys, "rnu", "llama", tmp_path / "model.pth", tmp_path / "out")
    assert (status, out, "did you mean 'run'?" in err) == (2, "", True)
    status, out, err = run(capsys, "lama", "--out", tmp_path, "--no-proof")
    assert (status, out, "did you mean 'llama'?" in err) == (1, "", True)
    status, out, _ = run(capsys, "plam", "llama", "--json")
    assert (status, json.loads(out)["diagnostics"][0]["kind"]) == (2, "wrong-usage")


def test_help_and_readme_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for page in (run(capsys, "--help")[1], (ROOT / "README.md").read_text()):
        named = set(re.findall(r"^(?:compile|mapspec) (\w+) ", page, re.MULTILINE))
        assert COMMANDS.keys() - {"compile"} <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_knows_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, *([command] if command != "compile" else []), "--help")[1]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.partition("options:")[2]))
    assert flags - {"--help"} != set()
    bash, fish = (run(capsys, "completion", shell)[1].splitlines() for shell in ("bash", "fish"))
    said = next(line for line in bash if line.strip().startswith(f"{command}) options="))
    assert flags <= set(re.findall(r"--[a-z-]+", said))
    place = "__fish_use_subcommand" if command == "compile" else f"'__fish_seen_subcommand_from {command}'"
    lines = [line for line in fish if line.startswith(f"complete -c mapspec -n {place} -l")]
    assert flags <= {f"--{line.split(' -l ')[1].split()[0]}" for line in lines}


COMPLETED = [
    # the words so far; what is offered; what is not
    ("r", "run", "rename"),
    ("", "detect", "llama"),
    ("run litgpt_q", "litgpt_qwen2 litgpt_qwen3", "litgpt_llama"),
    ("run a", "auto", "a.json"),
    ("run qwen3 ", "model.pth a.json", "qwen3 --config"),
    ("run qwen3 --dtype ", "float16 bfloat16", "model.pth"),
    ("run --dtype float16 qwen", "qwen3", "model.pth"),
    ("run qwen3 model.pth out --di", "--digests", "--dtype"),
    ("run qwen3 model.pth --config ", "a.json", "auto"),
    ("run qwen3 model.pth --set ", "", "model.pth auto"),
    ("detect ", "model.pth", "qwen3"),
    ("detect --", "--json --all", "--dtype"),
    ("explain claimed", "claimed-twice", "model.pth"),
    ("completion ", "bash zsh fish", "model.pth"),
    ("qwen3 ll", "llama", "run"),
    ("ls", "lsp", "llama"),
]


def test_completion_offers_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run(capsys, "completion", "bash")[1]
    for name in ("model.pth", "a.json"):
        (tmp_path / name).touch()
    asked = []
    for line, _, _ in COMPLETED:
        words = " ".join(f"'{word}'" for word in f"mapspec {line}".split(" "))
        asked.append(
            f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _mapspec; echo "${{COMPREPLY[*]}}"'
        )
    text = "\n".join([script, *asked])
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
    for (line, offered, other), answer in zip(COMPLETED, done.stdout.splitlines(), strict=True):
        assert {*offered.split()} <= {*answer.split()}, line
        assert not {*other.split()} & {*answer.split()}, line


def test_watch(tmp_path: Path) -> None:
    spec = tmp_path / "llama.yaml"
    sound = (ROOT / "specs" / "llama.yaml").read_text()
    spec.write_text(sound)
    command = [
        sys.executable,
        "-u",
        "-m",
        "compiler",
        "--watch",
        "--no-proof",
        str(spec),
        "--out",
        str(tmp_path / "out"),
    ]
    log = tmp_path / "log"
    with log.open("w") as file:
        with default_signals():
            watching = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        try:
            until(log, "wrote")
            spec.write_text(sound.replace("keep:", "kept:"))
            os.utime(spec, (1, 1))
            until(log, "[unknown-key]")
            spec.write_text(sound)
            os.utime(spec, (2, 2))
            until(log, "unchanged")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(20) == 0
        finally:
            watching.kill()


def until(log: Path, word: str) -> None:
    for _ in range(300):
        if word in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{word!r} was not said: {log.read_text()}")


def test_hooks_name_what_there_is() -> None:
    hooks = document.plain(document.read_document(ROOT / ".pre-commit-hooks.yaml"))
    assert isinstance(hooks, list)
    for hook in hooks:
        words = hook["entry"].split()
        assert words[0] == "compile"
        with pytest.raises(Refusal) as caught:  # its options exist; only the spec is missing
            compile_parser().parse([*words[1:], "--json"])
        assert "SPEC" in str(caught.value)


def test_a_reader_that_stops_ends_the_command(tmp_path: Path) -> None:
    """`mapspec schema | head -1`: no traceback."""
    with default_signals():
        command = [sys.executable, "-m", "compiler", "schema"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


def test_a_package_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that the proof needs; any other is a mistake of this program."""

    def without(name: str) -> None:
        def schema(_: object) -> int:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr("compiler.cli.explain.schema", schema)

    without("torch")
    status, out, err = run(capsys, "schema")
    assert (status, out) == (1, "")
    assert err.startswith("mapspec schema: needs torch, which is not installed [missing-package]\n  hint: pip install")
    without("another")
    with pytest.raises(ModuleNotFoundError, match="another"):
        dispatch(["schema"])


def test_an_unchanged_spec_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, looks = [], iter((None, None, KeyboardInterrupt()))

    def sleep(seconds: float) -> None:
        if (end := next(looks)) is not None:
            raise end

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr("compiler.cli.compile._compile", lambda options: compiled.append(options.specs))
    assert dispatch(["llama", "phi3_llama", "--watch"]) == 0
    assert compiled == [["llama"], ["phi3_llama"]]
    assert list(looks) == []


def test_check_prints_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llama", "--no-proof", "--out", tmp_path]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, *words, "--check") == (0, "", "")
    (made,) = tmp_path.rglob("*.py")
    text = made.read_text()
    made.write_text(f"# mine\n{text}")
    status, out, _ = run(capsys, *words, "--check")
    assert status == 1
    assert out.startswith(f"--- {made}\n+++ {made} (as compiled now)\n@@ -1,4 +1,3 @@\n-# mine\n")
    status, out, _ = run(capsys, *words, "--check", "--json")
    assert (status, json.loads(out)["files"]) == (1, {str(made): "differs"})
    assert made.read_text() == f"# mine\n{text}", "it is not written"


def test_a_warning_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ROOT / "tests" / "errors" / "unused_name.yaml"
    status, out, err = run(capsys, spec, "--no-proof", "--out", tmp_path)
    assert (status, out.startswith("wrote ")) == (0, True)
    assert err.startswith(f"{spec}:")
    assert "warning" in err
    assert "[unused-name]" in err


def test_explain_lists_all_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "explain")
    kinds = out.splitlines()
    assert (status, kinds) == (0, sorted(kinds))
    assert {"claimed-twice", "wrong-usage"} <= {*kinds}
    assert json.loads(run(capsys, "explain", "--json")[1]) == kinds
    assert run(capsys, "explain", kinds[0])[1].strip()


def test_a_page_of_kinds_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    explain.sections.cache_clear()
    monkeypatch.setattr(explain, "folder", lambda name: tmp_path / name)
    try:
        status, _, err = run(capsys, "explain", "claimed-twice")
    finally:
        explain.sections.cache_clear()
    assert status == 1
    assert err.startswith(f"{tmp_path / 'docs' / 'errors.md'}: the page of problem kinds is missing [unreadable-file]")


def test_a_new_spec_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    status, out, err = run(capsys, "new", "mine", "--target", "LlamaForCausalLM", "--out", tmp_path / "file" / "in")
    assert (status, out) == (1, "")
    assert err == f"{tmp_path / 'file' / 'in' / 'mine.yaml'}: cannot be written: Not a directory [output-unwritable]\n"


# ---------------------------------------------------------------------------------------------------------------------
# What detect prints


def fit(spec: str, **fields: Any) -> Fit:
    return replace(Fit(spec, f"all about {spec}", "", "fits", 1.0, True, (), ()), **fields)


def detected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fits: list[Fit], *words: str
) -> tuple[int, list[str]]:
    monkeypatch.setattr("compiler.jobs.detect.detect", lambda *_: fits)
    monkeypatch.setattr("compiler.jobs.detect.known_specs", lambda *_: [])
    monkeypatch.chdir(ROOT)
    status, out, err = run(capsys, "detect", "pyproject.toml", *words)
    assert err == ""
    return status, out.splitlines()


def test_detect_says_what_a_spec_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fits = [
        fit("one", status="asks", asks=("heads", "theta"), doubt="mistral", container=False),
        fit("two", status="asks"),
    ]
    assert detected(capsys, monkeypatch, fits, "--set", "a=1") == (
        0,
        [
            "one: fits, but needs arguments (all names match)",
            "    all about one",
            "    needs --set heads=VALUE --set theta=VALUE, or --config FILE",
            "    file names mention another model: mistral",
            "    the spec expects another file name",
            "two: fits, but needs arguments (all names match)",
            "    all about two",
            "next: mapspec run one pyproject.toml OUT --set a=1 --set heads=VALUE --set theta=VALUE",
            "if this is another model, use its spec instead: two",
        ],
    )
    assert detected(capsys, monkeypatch, fits, "-q")[1][-1] == "    all about two"


def test_detect_says_why_no_spec_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = tuple(f"it lacks tensor {n}" for n in range(5))
    fits = [fit(name, status="near", share=0.915, reasons=reasons) for name in "abcde"]
    status, lines = detected(capsys, monkeypatch, fits)
    assert status == 1
    assert lines[:6] == [
        "a: does not fit (91% of the names match)",
        "    all about a",
        "    - it lacks tensor 0",
        "    - it lacks tensor 1",
        "    - it lacks tensor 2",
        "    - and 2 more",
    ]
    assert lines[-2:] == [
        "no spec fits; next: mapspec draft pyproject.toml --target CLASS -o mine.yaml",
        "for the names of a Transformers class: mapspec run hf pyproject.toml OUT --config CONFIG_JSON",
    ]
    assert sum(line.endswith("names match)") for line in lines) == 4
    assert "    - it lacks tensor 4" in detected(capsys, monkeypatch, fits, "--all")[1]
