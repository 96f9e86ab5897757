"""The options of the commands: derived from `Request`, and taken only as they are written out."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from compiler.cli.adapter import adapter_parser
from compiler.cli.compile import compile_parser
from compiler.cli.detect import detect_parser
from compiler.cli.draft import draft_parser
from compiler.cli.main import main
from compiler.cli.options import Parser, request
from compiler.cli.plan import plan_parser
from compiler.cli.run import run_parser
from compiler.cli.verify import verify_parser
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
    words += ["--model", "m", "--ignore-model-type", "--strict", "--no-check"]
    made = request(run_parser().parse([*WORDS["run"], *words]))
    words[words.index("--reverse")] = "--to=s"
    other = request(run_parser().parse([*WORDS["run"], *words]))
    changed = {
        f.name for f in fields(Request) for one in (made, other) if getattr(one, f.name) != getattr(Request([]), f.name)
    }
    assert changed == {field.name for field in fields(Request)} - {"compare"}
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
