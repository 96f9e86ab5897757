"""The options of the commands: derived from `Request`, and taken only as they are written out."""

from __future__ import annotations

import io
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from compiler.cli.adapter import adapter_parser
from compiler.cli.compile import compile_parser
from compiler.cli.detect import detect_parser
from compiler.cli.draft import draft_parser
from compiler.cli.main import main
from compiler.cli.options import Parser, ask_on_stderr, person, request
from compiler.cli.plan import plan_parser
from compiler.cli.run import run_parser
from compiler.cli.verify import verify_parser
from compiler.diagnostics import Refusal
from compiler.jobs.request import Request

WORDS = {"run": ["s", "a.pth", "out"], "plan": ["s", "a.pth"], "verify": ["s", "a.pth", "out"], "detect": ["a.pth"]}
PARSERS = {"run": run_parser, "plan": plan_parser, "verify": verify_parser, "detect": detect_parser}


@pytest.mark.parametrize("command", WORDS)
def test_without_options_a_request_is_that_of_its_defaults(command: str) -> None:
    expected = {"run": {}, "plan": {"checksums": False, "compare": False}, "verify": {"checksums": False}}
    made = request(PARSERS[command]().parse(WORDS[command]))
    assert made == Request([Path("a.pth")], **expected.get(command, {}))


def test_every_field_of_a_request_is_an_option_of_run() -> None:
    """But for `compare`, which only a plan may leave out."""
    options = vars(run_parser().parse(WORDS["run"]))
    named = {field.name for field in fields(Request) if field.default is not MISSING}
    assert named - options.keys() == {"compare"}
    words = ["--no-checksums", "--jobs", "3", "--parts", "2", "--reverse", "--force", "--resume", "--digests"]
    words += ["--check-values", "--device", "cuda", "--max-shard-size", "1GB", "--dtype", "float16", "--config", "c"]
    words += ["--weights", "ema", "--tokenizer", "t", "--set", "a=1", "--set", "b=[x]", "--processor", "p"]
    words += ["--model", "m", "--ignore-model-type", "--strict", "--no-check", "--container", "dcp", "--ranks", "tp=2"]
    made = request(run_parser().parse([*WORDS["run"], *words]))
    words[words.index("--reverse")] = "--to=s"
    other = request(run_parser().parse([*WORDS["run"], *words]))
    changed = {
        f.name for f in fields(Request) for one in (made, other) if getattr(one, f.name) != getattr(Request([]), f.name)
    }
    assert changed == {field.name for field in fields(Request)} - {"compare", "names"}  # names: of NAME=PATH words
    assert (made.jobs, made.parts, made.assigned) == (3, 2, {"a": 1, "b": ["x"]})


@pytest.mark.parametrize("words", [["--toke", "x"], ["--tok=x"], ["--forc"], ["--no-checksum"], ["--js"]])
def test_an_option_is_written_out(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", *WORDS["run"], *words])
    assert done.value.code == 2
    assert "there is no option --" in capsys.readouterr().err


@pytest.mark.parametrize("parser", [*PARSERS.values(), adapter_parser, draft_parser, compile_parser])
def test_no_parser_completes_words(parser: type[Parser]) -> None:
    assert not parser().allow_abbrev


def test_two_directions_exclude_each_other() -> None:
    with pytest.raises(Refusal, match="--reverse and --to exclude each other") as caught:
        request(run_parser().parse([*WORDS["run"], "--reverse", "--to", "llama"]))
    assert (caught.value.diagnostics[0].kind, caught.value.diagnostics[0].hint) == ("wrong-usage", "leave one out")


@pytest.mark.parametrize("option", ["--reverse", "--to=llama"])
def test_a_reverse_run_cannot_be_verified(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", *WORDS["run"], option, "--verify"])
    assert done.value.code == 2
    wanted = f"--verify compares a converted folder with its source; {option.partition('=')[0]} writes no such folder"
    assert wanted in capsys.readouterr().err


def test_a_person_is_asked_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is for results; the end of the input is no answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n"))
    assert ask_on_stderr("which one? ") == "2\n"
    assert capsys.readouterr() == ("", "which one? ")
    with pytest.raises(Refusal, match="no spec was chosen") as caught:
        ask_on_stderr("which one? ")
    assert (caught.value.diagnostics[0].kind, caught.value.diagnostics[0].hint) == (
        "ambiguous-spec",
        "run one by its name",
    )


@pytest.mark.parametrize(("stdin", "stderr", "json"), [(True, True, False), (True, True, True), (False, True, False), (True, False, False)])  # fmt: skip
def test_only_a_person_is_asked(stdin: bool, stderr: bool, json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = run_parser().parse([*WORDS["run"], *["--json"] * json])
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdin, "isatty", lambda: stdin, raising=False)
        patch.setattr(sys.stderr, "isatty", lambda: stderr, raising=False)
        found = person(options)
    assert found is (ask_on_stderr if (stdin, stderr, json) == (True, True, False) else None)
